"""Rates that every run reports with its accuracy: language switching and degeneracy.

Language switching is defined in `language`, degeneracy in `degenerate`; ``docs/metrics.md`` gives
examples.
"""

import math
from collections.abc import Sequence

from ollm_rl.metrics.degenerate import degeneracy
from ollm_rl.metrics.language import detect_language, measure_switching, switches_language

__all__ = [
    "degeneracy",
    "degeneracy_rate",
    "detect_language",
    "language_switching_rate",
    "switches_language",
    "switches_per_1000_words",
    "unknown_language_rate",
]


def language_switching_rate(prompts: Sequence[str], completions: Sequence[str]) -> float:
    """Share of completions with at least 5 % of their words in another language than the prompt's.

    Completions that cannot be judged, because the prompt's language is unknown, do not count (see
    `unknown_language_rate`). NaN if none can be judged.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    _check_pairs(prompts, completions, "prompts", "completions")
    verdicts = [switches_language(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return share_switched(verdicts)


def share_switched(verdicts: Sequence[bool | None]) -> float:
    """Share of true verdicts among those that are not None; NaN if all are None."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else math.nan


def unknown_language_rate(prompts: Sequence[str], completions: Sequence[str]) -> float:
    """Share of completions that `switches_language` cannot judge, because the prompt's language is unknown.

    Raises:
        ValueError: If the two differ in length or are empty.
    """
    _check_pairs(prompts, completions, "prompts", "completions")
    verdicts = [switches_language(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return verdicts.count(None) / len(verdicts)


def switches_per_1000_words(prompts: Sequence[str], completions: Sequence[str]) -> float:
    """Number of switches between the prompt's language and others per 1,000 words, over all completions together.

    `ollm_rl.metrics.language.measure_switching` defines words and switches. The result is 0 without words.

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


def _check_pairs(first: Sequence[object], second: Sequence[object], first_name: str, second_name: str) -> None:
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{first_name} ({len(first)}) and {second_name} ({len(second)}) must be of one length and not empty: "
            "give one of each per completion"
        )
