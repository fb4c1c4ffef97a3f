from .sb3 import TextGenVecEnv as TextGenVecEnv
from .text_gen import TextGenEnv as TextGenEnv
from .vector import TextGenVectorEnv as TextGenVectorEnv

__all__ = [
    "TextGenEnv",
    "TextGenVecEnv",
    "TextGenVectorEnv",
]

def register_envs() -> None: ...
