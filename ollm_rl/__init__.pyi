from .backbones.loading import load_backbone as load_backbone
from .decode.engine import DecodeEngine as DecodeEngine
from .options.config import OptionConfig as OptionConfig
from .options.model import OptionModel as OptionModel
from .problems.problem import Problem as Problem
from .problems.sources import load_problems as load_problems

__all__ = [
    "DecodeEngine",
    "OptionConfig",
    "OptionModel",
    "Problem",
    "load_backbone",
    "load_problems",
]

__version__: str
