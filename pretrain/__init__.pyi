from .config import SFTConfig as SFTConfig
from .sft import run_sft as run_sft

__all__ = [
    "run_sft",
    "SFTConfig",
]
