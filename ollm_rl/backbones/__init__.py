"""Language models by name, a LoRA on them, and what their output head does to h_t."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
