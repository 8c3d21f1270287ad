"""report.html: what was asked and found, on one self-contained page, made from files alone."""

from bigcircuit.report.make import render, report

__all__ = ["render", "report"]
