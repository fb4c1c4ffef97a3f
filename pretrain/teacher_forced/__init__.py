"""Teacher-forced evaluation: how well backbone, LoRA and options predict each token of a worked solution."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
