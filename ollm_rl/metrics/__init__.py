"""Rates of language switching and degeneracy, and what can be said of measured numbers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
