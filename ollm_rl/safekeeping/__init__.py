"""What keeps work safe: one process per folder, outputs that can be written, paths that survive a move, signals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
