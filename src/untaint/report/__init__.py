"""The page that shows a person what was found, and the sheet on which probes are looked at."""

from __future__ import annotations

from untaint.report.contact_sheet import contact_sheet
from untaint.report.marks import read_marks
from untaint.report.page import write_report

__all__ = ["contact_sheet", "read_marks", "write_report"]
