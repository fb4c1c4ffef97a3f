"""OLLM-RL: latent-space reinforcement learning for language models.

Public names are loaded on first use (`__init__.pyi` says from where), so importing the package costs nothing: neither
torch nor transformers is imported here.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("ollm-rl")
except PackageNotFoundError:  # the repository root without an install
    __version__ = "0.0.0+unknown"
