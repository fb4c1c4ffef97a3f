"""Which columns of a row hold question, solution and answer, in files and data sets alike."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeGuard

from ollm_rl.answers.pool import extract_answer
from ollm_rl.errors import UsageError
from ollm_rl.settings import shown

EXAMPLE = "question=problem,solution=solution,answer=answer"


class Columns(NamedTuple):
    """Names of columns.

    Attributes:
        question: The question, or messages of which the user's is the question.
        solution: The worked solution, or messages of which the assistant's is the solution; may be missing in a row
            that has an answer.
        answer: The answer, or messages of which the assistant's is the answer. None: the solution states it, in its
            last box or after ``####``.
    """

    question: str
    solution: str | None = None
    answer: str | None = None

    def fit(self, present: Collection[str]) -> bool:
        """Whether a row has what is needed."""
        return self.question in present and (self.answer or self.solution) in present


# The schemas that are recognised, the first that fits a row. The comments name public data sets with these columns.
KNOWN = (
    Columns("problem", "generated_solution", "expected_answer"),  # OpenMathReasoning in all its splits
    Columns("problem", "solution", "answer"),  # Omni-MATH, MATH-500, AIME 2024 of HuggingFaceH4, AIMO's AIME
    Columns("question", "solution", "answer"),  # GSM8K, whose column answer holds working and ####; AIME 2025
    Columns("Problem", "Solution", "Answer"),  # AIME 2024 of Maxwell-Jia
    Columns("Question", None, "Answer"),  # AIME 1983 to 2024 of di-zhang-fire
    Columns("problem", "solution"),  # MATH
    Columns("question", "solution"),
    Columns("prompt", "completion", "answer"),  # TRL's, with an answer of its own
    Columns("prompt", "completion"),  # TRL's
    Columns("messages", "messages", "answer"),
    Columns("messages", "messages"),  # TRL's conversational form
)
_HASHES = re.compile(r"^####\s", re.MULTILINE)
_NOT_GIVEN = ("n/a", "N/A")  # how data sets write that a row has none


def read_columns(text: str | None) -> Columns | None:
    """Columns from a setting such as ``question=problem,answer=expected_answer``; None for None.

    Raises:
        UsageError: If it is not of this form, or names no question, or neither solution nor answer.
    """
    if text is None:
        return None
    names: dict[str, str] = {}
    for part in text.split(","):
        name, _, column = (piece.strip() for piece in part.partition("="))
        if name not in Columns._fields or not column or name in names:
            raise UsageError(f"columns={shown(text)} has the part {shown(part)}; give parts as in {EXAMPLE}")
        names[name] = column
    if "question" not in names or len(names) < 2:
        raise UsageError(f"columns={shown(text)} must name the question, and the answer or the solution: {EXAMPLE}")
    return Columns(**names)


def known_columns(present: Collection[str]) -> Columns | None:
    """The first known schema that fits columns with these names; None if none does."""
    return next((columns for columns in KNOWN if columns.fit(present)), None)


def is_conversation(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether a cell holds messages, each with the role of its author."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def message_of(value: Any, role: str) -> Any:
    """The text of the only message of this role; None if there is not exactly one. Other cells stay as they are."""
    if not is_conversation(value):
        return value
    texts = [message.get("content") for message in value if message["role"] == role]
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else None


def has_system_message(row: Mapping[str, Any], columns: Columns) -> bool:
    """Whether the row's messages include one of the system, which no problem holds."""
    value = row.get(columns.question)
    return is_conversation(value) and any(message["role"] == "system" for message in value)


def solution_and_answer(solution: str, answer: str, columns: Columns) -> tuple[str, str]:
    """Solution and answer apart, where one column holds both; an answer that is nowhere stated is empty."""
    solution, answer = ("" if text.strip() in _NOT_GIVEN else text for text in (solution, answer))
    if columns.answer is not None:
        if solution or not _HASHES.search(answer):
            return solution, answer
        solution = answer  # GSM8K's column has the working and then the answer
    extracted = extract_answer(solution)
    if extracted is None or extracted[1] not in ("boxed", "hashes"):
        return solution.strip(), ""
    working = solution.rpartition("####")[0].strip() if extracted[1] == "hashes" else ""
    return working or solution.strip(), extracted[0]
