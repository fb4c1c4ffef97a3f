from .config import OptionConfig as OptionConfig
from .diagnostics import option_diagnostics as option_diagnostics
from .model import CountedStates as CountedStates
from .model import OptionModel as OptionModel
from .model import OptionOutput as OptionOutput

__all__ = [
    "CountedStates",
    "option_diagnostics",
    "OptionConfig",
    "OptionModel",
    "OptionOutput",
]
