from .held_out import exclude_questions as exclude_questions
from .problem import Problem as Problem
from .prompts import encode_prompts as encode_prompts
from .sources import load_problems as load_problems

__all__ = [
    "encode_prompts",
    "exclude_questions",
    "load_problems",
    "Problem",
]
