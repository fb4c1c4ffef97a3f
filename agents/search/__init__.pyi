from .run import format_search as format_search
from .run import run_search as run_search
from .run import search as search

__all__ = [
    "format_search",
    "run_search",
    "search",
]
