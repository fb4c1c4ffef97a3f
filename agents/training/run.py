"""Train the agent that the settings name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.trainer import OnIteration, train
from ollm_rl.files import read_rows
from ollm_rl.report.ending import counted, ending
from ollm_rl.runs import METRICS_FILE
from ollm_rl.settings import expect


def train_agent(
    config: RLConfig,
    on_iteration: OnIteration | None = None,
    *,
    functions: Sequence[Callable[..., Any]] = (),
) -> Path:
    """Train the agent that ``config.agent`` names, or resume its training; see `train` and `train_sb3`."""
    expect(config, RLConfig)
    if config.agent == "ollm-rl":
        return train(config, on_iteration, functions=functions)
    from ollm_rl.agents.training.sb3 import train_sb3  # an extra

    return train_sb3(config, on_iteration, functions=functions)


def train_ending(folder: Path, config: RLConfig) -> str:
    """The last reward of a run, and its last accuracy if it was evaluated, where the run lies, and what comes next."""
    rows = read_rows(folder / METRICS_FILE, {"reward": float, "episodes": float})
    last = rows[-1]
    accuracies = [f", accuracy {row['eval_accuracy']:.1%}" for row in rows if "eval_accuracy" in row]
    return ending(
        f"reward {last['reward']:.3f}{''.join(accuracies[-1:])} after {counted(int(last['episodes']), 'episode')}",
        folder,
        ["ollm-rl", "report", folder],
    )
