"""report.html: what was asked and found, on one self-contained page."""

from bigcircuit.report.page import write_report

__all__ = ["write_report"]
