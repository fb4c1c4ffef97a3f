"""Files that are checked when they are read: checksums, JSON records and tensors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
