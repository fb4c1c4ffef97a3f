from .base import Machine as Machine
from .base import PromptSettings as PromptSettings
from .base import ReportSettings as ReportSettings
from .base import Settings as Settings
from .base import checked as checked
from .base import expect as expect
from .base import is_text as is_text
from .base import own_fields as own_fields
from .base import read_settings as read_settings
from .base import refuse_changed as refuse_changed
from .base import sections as sections
from .base import shown as shown
from .flags import refuse_unknown_flags as refuse_unknown_flags
from .flags import settings_parser as settings_parser
from .ranges import Coefficient as Coefficient
from .ranges import Count as Count
from .ranges import CountOrZero as CountOrZero
from .ranges import Nats as Nats
from .ranges import Positive as Positive
from .ranges import Seed as Seed
from .ranges import Share as Share
from .ranges import Temperature as Temperature
from .ranges import Weight as Weight
from .ranges import Width as Width

__all__ = [
    "checked",
    "Coefficient",
    "Count",
    "CountOrZero",
    "expect",
    "is_text",
    "Machine",
    "Nats",
    "own_fields",
    "Positive",
    "PromptSettings",
    "read_settings",
    "refuse_changed",
    "refuse_unknown_flags",
    "sections",
    "ReportSettings",
    "Seed",
    "Settings",
    "settings_parser",
    "Share",
    "shown",
    "Temperature",
    "Weight",
    "Width",
]
