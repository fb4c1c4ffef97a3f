from .rl import RLConfig as RLConfig
from .rollout import RewardConfig as RewardConfig

__all__ = [
    "RewardConfig",
    "RLConfig",
]
