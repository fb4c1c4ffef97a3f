"""Settings: dataclasses that validate themselves, their ranges, and the flags and files made from them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
