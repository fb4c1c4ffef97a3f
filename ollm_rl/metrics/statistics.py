"""Statistics of measured values: bootstrap intervals, paired comparisons, learning curves, honest rankings.

Letters: S seeds (runs), P problems.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import integrate, stats

from ollm_rl.streams import Purpose, numpy_generator

NUM_RESAMPLES = 2000
NUM_PERMUTATIONS = 9999
_MAX_VALUES = 1_000_000  # that resampling keeps in memory

Values = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


class Comparison(NamedTuple):
    """Mean of first minus second, its interval, and the p-value: the probability of such a difference by chance."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: Values, *, confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979).

    The values of a single row are resampled with replacement (`scipy.stats.bootstrap`). With one row per seed, seeds
    and problems are both resampled with replacement (the product bootstrap of Owen 2007), so the interval covers other
    seeds and other problems. This needs several seeds: with 2 or 3 the interval is too narrow.

    Values that are all 0 or all 1 would give an interval of width zero. They get the exact binomial interval instead
    (Clopper and Pearson 1934), which is ``[0, 1 - (alpha / 2) ** (1 / n)]`` for no success in n trials, n the problems.

    Args:
        values: (P,), such as one 0 or 1 per completion, or (S, P) with the same problems in the same order in each row.
        confidence: Share of such intervals that contain the mean, between 0 and 1.
        num_resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: If there are no values, one is not finite, or ``confidence`` is not between 0 and 1.
    """
    data = _checked(values, confidence)
    if (data == data.flat[0]).all() and data.flat[0] in (0.0, 1.0):
        num_problems = data.shape[-1]
        exact = stats.binomtest(int(data.flat[0]) * num_problems, num_problems).proportion_ci(confidence)
        return float(exact.low), float(exact.high)
    generator = numpy_generator(seed, Purpose.INTERVALS)
    if len(data) > 1:
        tail = (1 - confidence) / 2
        low, high = np.quantile(_means_over_seeds_and_problems(data, num_resamples, generator), [tail, 1 - tail])
        return float(low), float(high)
    if data.size == 1:
        return float(data[0, 0]), float(data[0, 0])
    interval = stats.bootstrap(
        (data[0],),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, _MAX_VALUES // data.size),
        confidence_level=confidence,
        method="percentile",
        random_state=generator,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def compare_paired(first: Values, second: Values, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare two methods on the same problems, for example by their correct answers.

    The interval is that of the mean difference, by `bootstrap_interval`. The p-value is two-sided, from random sign
    flips of the problems' differences (`scipy.stats.permutation_test`; all flips if there are few). Each difference is
    a mean over seeds, so the p-value is about other problems with these seeds.

    Args:
        first: (P,) or (S, P).
        second: Values on the same problems, of the same shape.
        confidence: Share of such intervals that contain the difference.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the shapes differ, or as for `bootstrap_interval`.
    """
    first_data, second_data = _checked(first, confidence), _checked(second, confidence)
    if first_data.shape != second_data.shape:
        raise ValueError(
            f"first has shape {first_data.shape} and second {second_data.shape} (seeds, problems); a paired comparison "
            "needs both methods on the same problems with the same number of seeds"
        )
    differences = first_data - second_data
    constant = float(differences.flat[0])
    if constant in (-1.0, 0.0, 1.0) and (differences == constant).all():
        # Nothing to resample: the margin is the exact binomial bound for no deviating problem.
        margin = bootstrap_interval(np.zeros(differences.shape[1]), confidence=confidence)[1]
        low, high = max(-1.0, constant - margin), min(1.0, constant + margin)
    else:
        low, high = bootstrap_interval(differences, confidence=confidence, seed=seed)
    by_problem = differences.mean(0)
    p_value = stats.permutation_test(
        (by_problem,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_PERMUTATIONS,
        batch=max(1, _MAX_VALUES // by_problem.size),
        random_state=numpy_generator(seed, Purpose.PERMUTATIONS),
    ).pvalue
    return Comparison(float(differences.mean()), low, high, float(p_value))


def area_under_curve(times: Sequence[float], rewards: Sequence[float], *, until: float | None = None) -> float:
    """Mean height of a learning curve: its area by the trapezoid rule, divided by its duration.

    Compare curves over the same range: give all of them the same ``until``, the end of the shortest.

    Args:
        times: Episodes or seconds, increasing; at least two.
        rewards: Reward, or accuracy, at each time.
        until: Time at which to end, within the curve; the value there is interpolated. None is the end of the curve.

    Returns:
        A mean reward; for a flat curve it is the curve's height.

    Raises:
        ValueError: If the lengths differ, times do not increase, or ``until`` is outside the curve.
    """
    moments, heights = _curve(times, rewards)
    end = moments[-1] if until is None else until
    if not moments[0] < end <= moments[-1]:
        raise ValueError(f"until={end:g} is not within the curve, which goes from {moments[0]:g} to {moments[-1]:g}")
    before_end = moments < end
    heights = np.append(heights[before_end], np.interp(end, moments, heights))
    moments = np.append(moments[before_end], end)
    return float(integrate.trapezoid(heights, moments) / (end - moments[0]))


def time_to_threshold(times: Sequence[float], rewards: Sequence[float], threshold: float) -> float | None:
    """Episodes or seconds until a learning curve first reaches a threshold; None if it never does.

    The time is that of the first measurement at or above the threshold, without interpolation. A noisy curve reaches it
    by chance earlier than its mean does, so average the seeds first, or smooth.

    Args:
        times: Episodes or seconds, increasing; at least one.
        rewards: Reward, or accuracy, at each time; NaN reaches nothing.
        threshold: The reward to reach.

    Raises:
        ValueError: If the lengths differ or times do not increase.
    """
    moments, heights = _curve(times, rewards, at_least=1)
    reached = np.flatnonzero(heights >= threshold)
    return float(moments[reached[0]]) if reached.size else None


def rank(intervals: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """Order methods as far as their intervals allow: groups from the highest to the lowest, unranked within a group.

    Methods whose intervals overlap or touch are in one group, and so are methods that a third interval connects. These
    data state no order between them. (Methods measured on the same problems may still differ significantly:
    `compare_paired` is the sharper test.)

    Args:
        intervals: Lower and upper end by method.

    Returns:
        Groups of names, within a group in the mapping's order. One group if no order can be stated.

    Raises:
        ValueError: If an interval is not finite or its ends are reversed.
    """
    for name, (low, high) in intervals.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"interval of {name!r} is ({low}, {high}); give its lower and upper end, both finite")
    groups: list[list[str]] = []
    lowest = math.inf
    for name in sorted(intervals, key=lambda name: intervals[name][1], reverse=True):
        low, high = intervals[name]
        if high < lowest:
            groups.append([])
        groups[-1].append(name)
        lowest = min(lowest, low)
    order = list(intervals)
    return [sorted(group, key=order.index) for group in groups]


def _checked(values: Values, confidence: float) -> np.ndarray:
    """Finite values as (S, P)."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim not in (1, 2) or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(
            f"values must be finite numbers, one row or one row per seed, but have shape {data.shape}: {data}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, for example 0.95")
    return np.atleast_2d(data)


def _means_over_seeds_and_problems(data: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Means of ``count`` resamples of S seeds and P problems from (S, P) values."""
    num_seeds, num_problems = data.shape
    means = []
    for start in range(0, count, rows := max(1, _MAX_VALUES // num_problems)):
        size = min(rows, count - start)
        seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size)
        problems = generator.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=size)
        means.append(((seeds @ data) * problems).sum(1) / data.size)
    return np.concatenate(means)


def _curve(times: Sequence[float], rewards: Sequence[float], *, at_least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    moments, heights = np.asarray(times, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if (
        moments.shape != heights.shape
        or moments.ndim != 1
        or len(moments) < at_least
        or not (np.diff(moments) > 0).all()
    ):
        raise ValueError(
            f"times ({len(moments)}) and rewards ({len(heights)}) must have one length, "
            f"{'one value' if at_least == 1 else 'two values'} at least, and times must grow"
        )
    return moments, heights
