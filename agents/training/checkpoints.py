"""A training run's checkpoints: those of the last iterations, by number, and the best."""

import json
from pathlib import Path
from typing import Any

from ollm_rl.errors import UsageError
from ollm_rl.files.records import read_rows
from ollm_rl.files.tensors import sealed_tensors
from ollm_rl.runs import CHECKPOINTS_FOLDER, METRICS_FILE, numbered_checkpoints, write_atomic

BEST_FILE = "best.pt"
# Metrics that stay the same if an iteration is computed again, after a damaged checkpoint; its seconds differ.
SAME_AGAIN = ("episodes", "reward", "completion_tokens")


def score(row: dict[str, float]) -> tuple[str, float]:
    """Name and value of an iteration's score: its evaluated accuracy, or its reward if it was not evaluated."""
    name = "eval_accuracy" if "eval_accuracy" in row else "reward"
    return name, row[name]


def is_best(history: list[dict[str, float]]) -> bool:
    """Whether the last iteration is the best; if any were evaluated, only those count."""
    scores = [score(row) for row in history]
    metric = "eval_accuracy" if any(name == "eval_accuracy" for name, _ in scores) else "reward"
    return scores[-1][0] == metric and all(value < scores[-1][1] for name, value in scores[:-1] if name == metric)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically, and before that also as the best one if it is the best.

    Args:
        folder: Folder of the run.
        state: ``policy``, ``optimizer`` and ``history``, whose last row is this iteration's.
    """
    data = sealed_tensors(state)
    history = state["history"]
    if is_best(history):
        write_atomic(folder / BEST_FILE, data)
    write_atomic(folder / CHECKPOINTS_FOLDER / f"{len(history):06d}.pt", data)


def check_history(folder: Path, checkpoint: Path, history: list[dict[str, float]]) -> None:
    """Refuse a checkpoint of another run, whose rows are not those of ``metrics.json``; one of the two may have more.

    Raises:
        UsageError: If a row that both have differs, or ``metrics.json`` is broken.
    """
    path = folder / METRICS_FILE
    rows = read_rows(path, {}, remedy="delete it, and the run writes it again") if path.exists() else []
    for row, (saved, shown) in enumerate(zip(history, rows, strict=False), 1):
        if any(saved.get(name) != shown.get(name) for name in SAME_AGAIN):
            raise UsageError(
                f"{checkpoint} and {path} differ in row {row}, so one is of another run; delete the one that is wrong"
            )


def complete_checkpoint(folder: Path, history: list[dict[str, float]], *, keep: int) -> None:
    """Remove older checkpoints and write ``metrics.json`` for people and reports.

    Args:
        folder: Folder of the run.
        history: Rows up to the last checkpoint.
        keep: Number of latest checkpoints to keep.
    """
    for path in numbered_checkpoints(folder)[:-keep]:
        path.unlink()
    write_atomic(folder / METRICS_FILE, json.dumps(history, indent=1))
