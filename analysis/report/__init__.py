"""One self-contained page about any number of runs."""

from analysis.report.page import write_report

__all__ = ["write_report"]
