"""One self-contained page about any number of runs."""

from analysis.report.figures import FEW
from analysis.report.page import write_report

__all__ = ["FEW", "write_report"]
