"""What runs elsewhere: whether the hub can be reached, and metrics in services by their own packages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
