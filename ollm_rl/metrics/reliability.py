"""Statistics over a few runs per method, as Agarwal et al. 2021 (rliable) define them.

Letters: R runs (seeds), M tasks. Scores are (R, M), or (R,) for one task.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from ollm_rl.streams import Purpose, numpy_generator

NUM_RESAMPLES = 2_000

Scores = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores, (R, M) or (R,): a quarter is dropped at either end."""
    return float(stats.trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=None))


def probability_of_improvement(first: Scores, second: Scores) -> float:
    """Probability that a run of the first method scores more than one of the second, ties counted half.

    The mean over tasks of the Mann-Whitney statistic divided by the number of pairs. Scores may be infinite.

    Args:
        first: (R1, M) or (R1,).
        second: (R2, M) or (R2,).
    """
    per_task = []
    for ours, theirs in zip(_by_task(first), _by_task(second), strict=True):
        pairs = ours[:, None], theirs[None]
        per_task.append(np.greater(*pairs).mean() + np.equal(*pairs).mean() / 2)
    return float(np.mean(per_task))


def stratified_interval(
    statistic: Callable[..., float],
    *samples: Scores,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of one or more methods, by the stratified bootstrap.

    Every resample draws the runs of each method with replacement, separately for each task.

    Args:
        statistic: Function of as many score arrays as there are samples.
        samples: Scores of every method, (R, M) or (R,); values may be infinite.
        confidence: Share of such intervals that contain the statistic.
        num_resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        Lower and upper end.
    """
    generator = numpy_generator(seed, Purpose.STRATIFIED)
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    values = []
    for _ in range(num_resamples):
        drawn = [np.take_along_axis(array, generator.integers(len(array), size=array.shape), 0) for array in arrays]
        values.append(statistic(*drawn))
    tail = (1 - confidence) / 2
    # Without interpolation, which has no meaning between a number and infinity.
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _by_task(scores: Scores) -> np.ndarray:
    """(M, R)."""
    array = np.asarray(scores, dtype=np.float64)
    return array[None] if array.ndim == 1 else array.T
