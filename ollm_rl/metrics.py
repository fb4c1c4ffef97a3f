"""Rates that every run reports beside its accuracy: language switching and degeneracy, with intervals.

Language switching is defined in `ollm_rl.language`, degeneracy in `degeneracy`; a rate is the share of completions.
"""

import re
from collections.abc import Sequence

import numpy as np

from ollm_rl.language import detect_language, switches_language
from ollm_rl.verify import extract_answer

__all__ = [
    "bootstrap_interval",
    "degeneracy",
    "degeneracy_rate",
    "detect_language",
    "language_switching_rate",
    "switches_language",
]

LOOP_REPEATS = 4
LOOP_SHARE = 0.5
LOOP_TOKENS = 12
_RESAMPLED_VALUES_AT_ONCE = 1_000_000

# Cut at 20 characters: a run such as "hahaha..." has no spaces, and its equal cuts show its period all the same.
_TOKEN = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{1,20}|\d{1,20}|[^\w\s]|_")


def degeneracy(text: str, *, finished: bool = True) -> frozenset[str]:
    """Name what is degenerate about a completion.

    - ``loop``: some sequence of tokens stands at least 4 times in a row, and this run covers at least half of the
      text and 12 tokens; a token is a word, a whole number, a sign, or a character of a script without spaces.
    - ``no_end``: generation reached its token limit.
    - ``empty``: nothing but white space.
    - ``no_answer``: not empty, and neither a box, ``####`` or answer phrase nor any number.

    Args:
        text: The completion.
        finished: Whether it ended by itself, not at the token limit.

    Returns:
        The flags that hold; empty for a sound completion.
    """
    flags = set()
    if not finished:
        flags.add("no_end")
    if not text.strip():
        flags.add("empty")
    elif extract_answer(text) is None:
        flags.add("no_answer")
    if _is_loop(text):
        flags.add("loop")
    return frozenset(flags)


def language_switching_rate(prompts: Sequence[str], completions: Sequence[str]) -> float:
    """Share of completions of which at least 20 % of the words are in another language than the prompt's.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    _check_pairs(prompts, completions, "prompts", "completions")
    switched = [switches_language(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return sum(switched) / len(switched)


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


def _is_loop(text: str) -> bool:
    """Search every period p for a run of tokens that equal the token p places before them."""
    codes: dict[str, int] = {}
    tokens = np.array([codes.setdefault(token, len(codes)) for token in _TOKEN.findall(text)])
    needed = max(LOOP_TOKENS, LOOP_SHARE * len(tokens))
    for period in range(1, len(tokens) // LOOP_REPEATS + 1):
        equal = tokens[period:] == tokens[:-period]
        needed_matches = max(needed - period, (LOOP_REPEATS - 1) * period)
        if np.count_nonzero(equal) >= needed_matches and _longest_run(equal) >= needed_matches:
            return True
    return False


def _longest_run(mask: np.ndarray) -> int:
    """Length of the longest stretch of true values in a row, mask: (T,)."""
    breaks = np.flatnonzero(~mask)
    edges = np.concatenate(([-1], breaks, [mask.size]))
    return int(np.diff(edges).max()) - 1


def _check_pairs(first: Sequence[object], second: Sequence[object], first_name: str, second_name: str) -> None:
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{first_name} ({len(first)}) and {second_name} ({len(second)}) must be of one length and not empty: "
            "give one of each per completion"
        )
