from .network import hub_answers as hub_answers
from .trackers import Trackers as Trackers
from .trackers import require_packages as require_packages

__all__ = [
    "hub_answers",
    "require_packages",
    "Trackers",
]
