"""One question with its reference answer."""

from dataclasses import dataclass


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


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: one with a lone surrogate, half a character, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
