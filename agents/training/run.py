"""Train the agent that the settings name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ollm_rl.agents.config import RLConfig


def train_agent(
    config: RLConfig,
    on_iteration: Callable[[dict[str, float]], None] | None = None,
    *,
    functions: Sequence[Callable[..., Any]] = (),
) -> Path:
    """Train the agent that ``config.agent`` names, or resume its training; see `train` and `train_sb3`."""
    if config.agent == "ollm-rl":
        from ollm_rl.agents.training.trainer import train

        return train(config, on_iteration, functions=functions)
    from ollm_rl.agents.training.sb3 import train_sb3

    return train_sb3(config, on_iteration, functions=functions)
