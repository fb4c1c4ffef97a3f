"""One question with its reference answer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ollm_rl.errors import UsageError
from ollm_rl.settings import shown


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with its reference answer.

    Attributes:
        id: Identifier of the problem within its source.
        question: The question to the model.
        solution: Worked solution to learn from; empty if the source has none.
        answer: Reference answer as text.
        language: ISO 639-1 code of the question; "en" if the source does not state it.
    """

    id: str
    question: str
    solution: str
    answer: str
    language: str


def listed(problems: Any) -> list[Problem]:
    """The problems as a list, if they are some.

    Raises:
        UsageError: If there are none, or one is no `Problem`.
    """
    result = list(problems) if isinstance(problems, Iterable) else [problems]
    if not result:
        raise UsageError("problems is empty; give at least one problem")
    for problem in result:
        if not isinstance(problem, Problem):
            raise UsageError(f"problems holds {shown(problem)}; give a list of Problem, such as load_problems returns")
    return result
