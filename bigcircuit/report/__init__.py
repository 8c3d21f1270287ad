"""report.html: what was asked and found, on one self-contained page."""

from bigcircuit.report.page import predictions, write_report

__all__ = ["predictions", "write_report"]
