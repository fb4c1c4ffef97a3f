from .page import format_table as format_table
from .page import write_explorer as write_explorer
from .page import write_report as write_report

__all__ = [
    "format_table",
    "write_explorer",
    "write_report",
]
