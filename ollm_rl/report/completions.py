"""Completions to read, grouped by problem, so that methods stand side by side."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ollm_rl.report.plots import Row

KINDS = ("wrong", "switched", "degenerate")  # by which problems can be filtered
HEAD, TAIL = 1200, 800  # characters kept of a longer text


def by_problem(samples: Sequence[Row]) -> list[dict[str, Any]]:
    """The problems, each with ``question``, ``answer``, its ``samples`` and the ``kinds`` that any of these is of."""
    problems: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in samples:
        shown = {**row, "completion": shorten(row["completion"]), "kinds": _kinds(row)}
        problems.setdefault((row["question"], row["answer"]), []).append(shown)
    return [
        {
            "question": shorten(question),
            "answer": answer,
            "samples": rows,
            "kinds": [kind for kind in KINDS if any(kind in row["kinds"] for row in rows)],
        }
        for (question, answer), rows in problems.items()
    ]


def most_answered(samples: Sequence[Row], limit: int) -> list[Row]:
    """The completions of at most ``limit`` problems: those that the most methods answered, and of equals the first."""
    pairs = dict.fromkeys((row["question"], row["method"]) for row in samples)  # a method may have several samples
    answers = Counter(question for question, _ in pairs)
    kept = {question for question, _ in answers.most_common(limit)}
    return [row for row in samples if row["question"] in kept]


def counted_kinds(problems: Sequence[Row]) -> list[tuple[str, int]]:
    """Every kind with the number of problems of it."""
    return [(kind, sum(kind in problem["kinds"] for problem in problems)) for kind in KINDS]


def _kinds(row: Row) -> list[str]:
    found = (not row["correct"], bool(row["switched"]), bool(row["flags"]))
    return [kind for kind, is_so in zip(KINDS, found, strict=True) if is_so]


def shorten(text: str) -> str:
    """The head and the tail of a long text, and how much was left out."""
    num_left_out = len(text) - HEAD - TAIL
    if num_left_out <= 0:
        return text
    return f"{text[:HEAD]}\n[… {num_left_out:,} characters left out …]\n{text[-TAIL:]}"
