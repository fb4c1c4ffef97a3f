from .audit import audit as audit
from .audit import run_audit as run_audit
from .explorer import explore as explore
from .free_running import evaluate as evaluate
from .free_running import run_eval as run_eval
from .reporting import report_methods as report_methods
from .reporting import run_explore as run_explore
from .reporting import run_report as run_report

__all__ = [
    "audit",
    "evaluate",
    "explore",
    "report_methods",
    "run_audit",
    "run_eval",
    "run_explore",
    "run_report",
]
