"""Loading of language models by name, LoRA on them, and their output heads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
