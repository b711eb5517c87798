"""report.html: what a bundle proves, for people. One page, no scripts, no network; see docs/report.md."""

from planish.report.pages import comparison, page
from planish.report.subject import Subject, open_subject, read_report

__all__ = ["Subject", "comparison", "open_subject", "page", "read_report"]
