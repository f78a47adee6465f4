"""The report of a sweep: tables, figures and one self-contained page, from the result folder alone."""

from lrsweep.report.tables import TextTable, brackets_text, frontier_text, to_rich
from lrsweep.report.write import Report, write_report

__all__ = ["Report", "TextTable", "brackets_text", "frontier_text", "to_rich", "write_report"]
