from .loading import load_backbone as load_backbone
from .loading import load_tokenizer as load_tokenizer
from .lora import load_lora as load_lora

__all__ = [
    "load_backbone",
    "load_lora",
    "load_tokenizer",
]
