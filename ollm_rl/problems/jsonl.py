"""Problems from a JSON Lines file of one's own: every line must be right, and a fault is named with its line."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError, UsageError
from ollm_rl.problems.columns import (
    Columns,
    has_system_message,
    is_conversation,
    known_columns,
    message_of,
    solution_and_answer,
)
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sampling import seeded_sample
from ollm_rl.settings import is_text, shown

GZIP = b"\x1f\x8b"  # how compressed files begin
PLAIN = Columns("question", "solution", "answer")

logger = logging.getLogger(__name__)


def read_jsonl(path: Path, columns: Columns | None, limit: int | None, seed: int) -> list[Problem]:
    """Problems of a file's lines, or of a sample of them; only the sampled lines are parsed and held in memory.

    Args:
        path: The file.
        columns: Names of the columns; None recognises known ones, line by line.
        limit: Size of the sample; None for all lines.
        seed: Seed of the sample.

    Raises:
        UsageError: If the file is no UTF-8 text, or a line is malformed or lacks a field.
        MissingError: If there is no file.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            rows = {number: _row(line, f"{path}, line {number}") for number, line in _sample(lines, limit, seed)}
    except UnicodeDecodeError as error:
        remedy = "it is compressed by gzip: unpack it" if error.object.startswith(GZIP) else "convert it"
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); {remedy}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingError(f"no file {path}; give jsonl:PATH with the path of a JSON Lines file") from error
    except OSError as error:
        raise UsageError(f"{shown(str(path))} cannot be read ({error.strerror}); give another file") from error
    named = None if columns is None else columns.solution
    if named is not None and rows and not any(named in row for row in rows.values()):
        raise UsageError(f"{path}: no line has the field {named!r} that columns names; correct the name")
    fitting = {number: columns or known_columns(row) or PLAIN for number, row in rows.items()}
    problems = {number: _problem(row, fitting[number], path, number) for number, row in rows.items()}
    first: dict[str, int] = {}
    for number, problem in problems.items():
        if (earlier := first.setdefault(problem.id, number)) != number:
            raise UsageError(f"{path}, lines {earlier} and {number}: both have the id {problem.id!r}; change one")
    if systems := sum(has_system_message(row, fitting[number]) for number, row in rows.items()):
        logger.warning("%s: system messages of %d lines are not used; give --system_prompt", path, systems)
    return list(problems.values())


def _sample(lines: Iterator[tuple[int, str]], limit: int | None, seed: int) -> Iterator[tuple[int, str]]:
    """The sampled lines; without a limit one by one, so that a fault is found before the rest is read."""
    yield from lines if limit is None else seeded_sample(lines, limit, seed)


def _row(line: str, location: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{location}: malformed JSON ({error.msg} at column {error.colno}); fix the line") from error
    except RecursionError as error:
        raise UsageError(f"{location}: nested too deeply; write {{'question': ..., 'answer': ...}}") from error
    except ValueError as error:  # Python reads no whole numbers of more than 4,300 digits
        raise UsageError(f"{location}: a number has too many digits; write it as a string") from error
    if not isinstance(row, dict):
        raise UsageError(f"{location}: a {type(row).__name__}, not an object; write {{'question': ..., 'answer': ...}}")
    return row


def _problem(row: Mapping[str, Any], columns: Columns, path: Path, number: int) -> Problem:
    location = f"{path}, line {number}"
    question = _field(row, columns.question, location, role="user")
    solution, answer = "", ""
    if columns.solution is not None:
        default = None if columns.answer is None else ""
        solution = _field(row, columns.solution, location, role="assistant", default=default)
    if columns.answer is not None:
        answer = _field(row, columns.answer, location, role="assistant")
    solution, answer = solution_and_answer(solution, answer, columns)
    if not answer.strip():
        stated = columns.answer or columns.solution
        raise UsageError(f"{location}: field {stated!r} states no answer, in a box or after ####; add a field 'answer'")
    return Problem(
        id=_field(row, "id", location, default=f"{path.stem}-{number}"),
        question=question,
        solution=solution,
        answer=answer,
        language=_field(row, "language" if "language" in row else "lang", location, default="en"),
    )


def _field(row: Mapping[str, Any], name: str, location: str, role: str = "", default: str | None = None) -> str:
    """One field as text. Numbers become text; without a ``default`` the field must be present and not blank.

    Args:
        row: The line's fields.
        name: Name of the field.
        location: File and line, for errors.
        role: Of messages, whose text is taken.
        default: What stands for a missing field.
    """
    value = row.get(name)
    if value is None and default is not None:
        return default
    if name not in row:
        remedy = "every line needs a question and an answer; --columns names other fields"
        raise UsageError(f"{location}: field {name!r} is missing; {remedy}")
    if is_conversation(value) and (value := message_of(value, role)) is None:
        raise UsageError(f"{location}: field {name!r} holds not one text of the {role}; give rows of one question")
    is_number = (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )
    if not (is_number or isinstance(value, str)):
        raise UsageError(f"{location}: field {name!r} is {shown(value)}; give a string or a finite number")
    if default is None and not str(value).strip():
        raise UsageError(f"{location}: field {name!r} is blank; every line needs a question and an answer")
    if not is_text(str(value)):
        raise UsageError(f"{location}: field {name!r} has a lone surrogate ({value!a}), half a character; correct it")
    return str(value)
