"""Tables of estimates with intervals, for pages, Markdown and JSON."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A number with its interval; infinite means never."""

    value: float
    low: float
    high: float
    digits: int = 3

    def __str__(self) -> str:
        return " ".join(self.parts())

    def parts(self) -> tuple[str, str]:
        """Value and interval as text."""
        value, low, high = (
            "never" if math.isinf(number) else f"{number:,.{self.digits}f}"
            for number in (self.value, self.low, self.high)
        )
        return value, f"[{low}, {high}]"


Cell = str | Estimate


class Table(NamedTuple):
    """A table with a title and a note that says what its numbers are."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def text_rows(self) -> list[list[str]]:
        """The cells as text."""
        return [[str(cell) for cell in row] for row in self.rows]

    def markdown(self) -> str:
        """The table as Markdown, without a line break at the end."""
        return f"### {self.title}\n\n{self.note}\n\n{markdown(self.columns, self.text_rows())}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, without a line break at the end."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])
