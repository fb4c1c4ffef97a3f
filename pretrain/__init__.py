"""The supervised stage: data, stored hidden states, fine-tuning, teacher-forced evaluation, the embedded backbone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
