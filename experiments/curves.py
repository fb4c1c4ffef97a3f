"""Learning curves of runs, one row per iteration, and what is read from them.

Letters: I iterations.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ollm_rl.metrics.statistics import time_to_threshold

ROUNDING = 1e-9  # a mean over a window is not exact: 93 of 96 may come out just below 0.96875


class Curve:
    """The metrics of one run as arrays of I values.

    Args:
        rows: The run's metrics, at least one iteration, with the ``episodes`` and ``tokens`` so far.
        window: Number of last episodes that a mean is taken over.

    Attributes:
        rows: As given.
        reward: Mean reward of the last ``window`` episodes, NaN before there are so many, (I,).
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], window: int) -> None:
        self.rows = rows
        self._length = window_length(window, rows[0]["episodes"])
        self.reward = self.trailing_mean("reward")

    def column(self, name: str) -> np.ndarray:
        """A metric by iteration, (I,)."""
        return np.array([row[name] for row in self.rows])

    def trailing_mean(self, name: str) -> np.ndarray:
        """The mean of a metric over the iterations of a window, NaN before the first, (I,)."""
        values, window = np.full(len(self.rows), np.nan), np.full(self._length, 1 / self._length)
        if len(self.rows) >= self._length:
            values[self._length - 1 :] = np.convolve(self.column(name), window, "valid")
        return values

    def first_reached(self, threshold: float) -> int | None:
        """The first iteration at which the mean reward of the window is at least a threshold; None if it never is."""
        iteration = time_to_threshold(range(len(self.rows)), self.reward.tolist(), threshold - ROUNDING)
        return None if iteration is None else int(iteration)

    def time_to(self, threshold: float, axis: str, *, censored: bool = True) -> float:
        """Episodes, tokens or seconds until then; infinite if the run ends before, or its end without ``censored``."""
        iteration = self.first_reached(threshold)
        if iteration is None and censored:
            return math.inf
        return float(self.rows[-1 if iteration is None else iteration][axis])

    def rate_at(self, threshold: float, name: str) -> float:
        """A rate over the window in which the threshold is first reached; NaN if it never is."""
        iteration = self.first_reached(threshold)
        return math.nan if iteration is None else float(self.trailing_mean(name)[iteration])

    def evaluations(self) -> dict[int, float]:
        """Greedy accuracy by the number of episodes before it."""
        return {int(row["episodes"]): row["eval_accuracy"] for row in self.rows if "eval_accuracy" in row}

    @property
    def mean_reward(self) -> float:
        """Mean reward of all episodes: the area under the curve per episode."""
        return float(np.mean(self.column("reward")))


def window_length(window: int, episodes: float) -> int:
    """Number of iterations, each of so many episodes, that make a window."""
    return max(1, round(window / episodes))
