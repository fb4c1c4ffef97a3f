from .prompts import encode_prompts as encode_prompts
from .sources import Problem as Problem
from .sources import load_problems as load_problems

__all__ = [
    "encode_prompts",
    "load_problems",
    "Problem",
]
