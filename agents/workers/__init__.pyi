from .local import Batch as Batch
from .local import RolloutWorker as RolloutWorker

__all__ = [
    "Batch",
    "RolloutWorker",
]
