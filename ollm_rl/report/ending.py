"""The last line that a command prints: its result, where it lies, and the command that comes next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

NOT_WRITTEN = "not written to a file (give --out)"


def ending(result: str, written: Path | None, following: Sequence[object] = ()) -> str:
    """The line.

    Args:
        result: What came out, in a few words.
        written: Where it lies; None if it was only printed.
        following: Words of the command that comes next; none if there is no obvious one.
    """
    where = f"written to {written}" if written is not None else NOT_WRITTEN
    return "; ".join([result, where, *([f"next: {shlex.join(map(str, following))}"] if following else [])])


def opening(page: Path) -> list[str]:
    """Words of a command that shows a page in the browser."""
    return ["python", "-m", "webbrowser", page.resolve().as_uri()]


def problems_of(data: str) -> list[str]:
    """Words that name the problems, unless they are the default of all commands."""
    return [] if data == "arith" else ["--data", data]


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as 1 run or 2 runs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
