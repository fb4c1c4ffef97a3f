"""Rates that every run reports beside its accuracy: language switching and degeneracy, with intervals.

Language switching is defined in `ollm_rl.language`, degeneracy in `ollm_rl.degeneracy`; ``docs/metrics.md`` gives
examples.
"""

from collections.abc import Sequence

import numpy as np

from ollm_rl.degeneracy import degeneracy
from ollm_rl.language import detect_language, measure_switching, switches_language

__all__ = [
    "bootstrap_interval",
    "degeneracy",
    "degeneracy_rate",
    "detect_language",
    "language_switching_rate",
    "switches_language",
    "switches_per_1000_words",
]

_RESAMPLED_VALUES_AT_ONCE = 1_000_000


def language_switching_rate(prompts: Sequence[str], completions: Sequence[str]) -> float:
    """Share of completions of which at least 5 % of the words are in another language than the prompt's.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    _check_pairs(prompts, completions, "prompts", "completions")
    switched = [switches_language(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return sum(switched) / len(switched)


def switches_per_1000_words(prompts: Sequence[str], completions: Sequence[str]) -> float:
    """Number of switches between the prompt's language and others, per 1,000 words of all completions together.

    `ollm_rl.language.measure_switching` says what words and switches are. 0 where there are no words.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    _check_pairs(prompts, completions, "prompts", "completions")
    counts = [measure_switching(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return 1000 * sum(count.switches for count in counts) / max(1, sum(count.words for count in counts))


def degeneracy_rate(completions: Sequence[str], finished: Sequence[bool]) -> float:
    """Share of completions with at least one flag of `degeneracy`.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    _check_pairs(completions, finished, "completions", "finished")
    flagged = [bool(degeneracy(text, finished=ended)) for text, ended in zip(completions, finished, strict=True)]
    return sum(flagged) / len(flagged)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979).

    Data that are all 0 or all 1 would give an interval of width zero; they get the exact binomial interval instead
    (Clopper and Pearson 1934), which for no success in n trials is ``[0, 1 - (alpha / 2) ** (1 / n)]``.

    Args:
        values: The n values, such as one 0 or 1 per completion.
        confidence: Share of such intervals that hold the mean, between 0 and 1.
        num_resamples: Number of times that n values are drawn with replacement.
        seed: Seed of the draws.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: If there are no values, one is not finite, or ``confidence`` is not between 0 and 1.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"values must be a non-empty row of finite numbers, but has shape {data.shape}: {data}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, for example 0.95")
    tail = (1 - confidence) / 2
    if (data == 0).all():
        return 0.0, float(1 - tail ** (1 / data.size))
    if (data == 1).all():
        return float(tail ** (1 / data.size)), 1.0
    generator = np.random.default_rng(np.random.SeedSequence([seed]))
    means = np.empty(num_resamples)
    rows = max(1, _RESAMPLED_VALUES_AT_ONCE // data.size)
    for start in range(0, num_resamples, rows):
        block = means[start : start + rows]
        block[:] = data[generator.integers(data.size, size=(block.size, data.size))].mean(axis=1)
    lower, upper = np.quantile(means, [tail, 1 - tail])
    return float(lower), float(upper)


def _check_pairs(first: Sequence[object], second: Sequence[object], first_name: str, second_name: str) -> None:
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{first_name} ({len(first)}) and {second_name} ({len(second)}) must be of one length and not empty: "
            "give one of each per completion"
        )
