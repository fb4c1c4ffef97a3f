from .engine import DecodeEngine as DecodeEngine
from .rollout import Rollout as Rollout
from .rollout import collect as collect
from .row_cache import Snapshot as Snapshot
from .turns import Action as Action
from .turns import Turns as Turns

__all__ = [
    "Action",
    "collect",
    "DecodeEngine",
    "Rollout",
    "Snapshot",
    "Turns",
]
