"""OLLM-RL: latent-space reinforcement learning for language models.

Public names are loaded on first use, so that importing the package costs nothing: neither torch
nor transformers is imported here.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("ollm-rl")
except PackageNotFoundError:  # the repository root without an install
    __version__ = "0.0.0+unknown"

# Public name -> module that defines it.
_LAZY = {
    "DecodeEngine": "ollm_rl.engine",
    "OptionConfig": "ollm_rl.config",
    "OptionModel": "ollm_rl.model",
    "Problem": "ollm_rl.problems",
    "load_backbone": "ollm_rl.backbones",
    "load_problems": "ollm_rl.problems",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
