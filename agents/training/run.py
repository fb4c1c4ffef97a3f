"""Train the agent that the settings name."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.trainer import OnIteration, train
from ollm_rl.files import read_rows


def train_agent(
    config: RLConfig,
    on_iteration: OnIteration | None = None,
    *,
    functions: Sequence[Callable[..., Any]] = (),
) -> Path:
    """Train the agent that ``config.agent`` names, or resume its training; see `train` and `train_sb3`."""
    if config.agent == "ollm-rl":
        return train(config, on_iteration, functions=functions)
    from ollm_rl.agents.training.sb3 import train_sb3  # an extra

    return train_sb3(config, on_iteration, functions=functions)


def format_run(folder: Path) -> str:
    """The last reward of a run, where the run lies, and the command that comes next."""
    (*_, last) = read_rows(folder / "metrics.json", {"reward": float, "episodes": float})
    return (
        f"reward {last['reward']:.3f} after {int(last['episodes']):,} episodes; written to {folder}; "
        f"next: {shlex.join(['ollm-rl', 'report', str(folder)])}"
    )
