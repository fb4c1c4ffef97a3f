from .run import train_agent as train_agent
from .trainer import Trainer as Trainer
from .trainer import train as train

__all__ = [
    "train",
    "train_agent",
    "Trainer",
]
