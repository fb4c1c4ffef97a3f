"""Rollouts of an iteration's episodes, in this process or in Ray workers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
