"""A training run's checkpoints: those of the last iterations, by number, and the best."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from ollm_rl.runs import CHECKPOINTS_FOLDER, numbered_checkpoints, write_atomic

BEST_FILE = "best.pt"


def score(row: dict[str, float]) -> tuple[str, float]:
    """What an iteration is judged by: its evaluated accuracy; where it was not evaluated, its reward."""
    name = "eval_accuracy" if "eval_accuracy" in row else "reward"
    return name, row[name]


def is_best(history: list[dict[str, float]]) -> bool:
    """Whether the last iteration is the best, of those evaluated where some are."""
    scores = [score(row) for row in history]
    wanted = "eval_accuracy" if any(name == "eval_accuracy" for name, _ in scores) else "reward"
    return scores[-1][0] == wanted and all(value < scores[-1][1] for name, value in scores[:-1] if name == wanted)


def save_checkpoint(folder: Path, state: dict[str, Any], *, keep: int) -> None:
    """Write a checkpoint, then the history for people and reports, each atomically.

    Args:
        folder: Of the run.
        state: ``policy``, ``optimizer`` and ``history``, whose last row is this iteration's.
        keep: Number of iterations whose checkpoints stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    history = state["history"]
    if is_best(history):
        write_atomic(folder / BEST_FILE, buffer.getvalue())
    write_atomic(folder / CHECKPOINTS_FOLDER / f"{len(history):06d}.pt", buffer.getvalue())
    for path in numbered_checkpoints(folder)[:-keep]:
        path.unlink()
    write_atomic(folder / "metrics.json", json.dumps(history, indent=1))
