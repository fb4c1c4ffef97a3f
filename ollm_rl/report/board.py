"""TensorBoard: the settings of a run, the numbers that change while it runs, and text."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ollm_rl.settings import Settings

# Shown from the first step on. Other numbers are held back while they have only one value, since a flat line at, say,
# 0 lost workers says nothing and hides the others.
ALWAYS = ("reward", "accuracy", "learning_rate", "loss", "grad_norm")


class Board:
    """A run's TensorBoard file.

    Args:
        folder: The run's folder.
        settings: Settings of the run, shown as its hparams.
        metrics: Tags of the numbers beside them.
        start: Step from which this start of the run writes. What a killed one wrote from there on is discarded.
    """

    def __init__(self, folder: Path, settings: Settings, metrics: Sequence[str], *, start: int = 0) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=start)
        # Not add_hparams, which writes them as another run, in a folder below this one.
        for summary in hparams(flat(settings), dict.fromkeys(metrics, 0.0)):
            self.writer._get_file_writer().add_summary(summary)
        self._held: dict[str, list[tuple[int, float]]] = {}  # points of numbers that have had one value only
        self._moving: set[str] = set()

    def known(self, scalars: Mapping[str, float], step: int) -> None:
        """Take note of numbers that an earlier start has written."""
        for tag, value in scalars.items():
            self._due(tag, value, step)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the numbers of a step, by tag."""
        for tag, value in scalars.items():
            for at, number in self._due(tag, value, step):
                self.writer.add_scalar(tag, number, at)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Write Markdown."""
        self.writer.add_text(tag, text, step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self.writer.close()

    def _due(self, tag: str, value: float, step: int) -> list[tuple[int, float]]:
        """The points to write now that a number has a new one: none, this one, or also those held back before."""
        if not math.isfinite(value):
            return []
        held = self._held.setdefault(tag, [])
        held.append((step, value))
        if tag not in self._moving and tag.rpartition("/")[2] not in ALWAYS and value == held[0][1]:
            return []
        self._moving.add(tag)
        self._held[tag] = []
        return held


def flat(settings: Settings) -> dict[str, Any]:
    """Settings by name, those of nested ones as ``OUTER.INNER``; other values than numbers and flags as text."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Settings):
            found |= {f"{field.name}.{name}": inner for name, inner in flat(value).items()}
        else:
            found[field.name] = value if isinstance(value, int | float | None) else str(value)
    return found
