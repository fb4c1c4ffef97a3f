"""Problems with a checkable answer, from four kinds of source named by one string.

``arith`` generates them, ``rg:TASK`` asks reasoning-gym, ``jsonl:PATH`` reads a file, and ``hf:ID`` or
``hf:ID:CONFIG`` loads a Hugging Face dataset from the hub or from a local folder.
"""

import difflib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ollm_rl import arith

FORMS = "arith, rg:TASK, jsonl:PATH, or hf:ID (hf:ID:CONFIG)"
STREAMS = {"train": 0, "validation": 1, "test": 2}
DEFAULT_ARITH = 10_000  # problems
DEFAULT_RG = 1_000  # problems

# Column names of (question, solution, answer), by dataset id; None: one column holds both, split at "####".
HF_COLUMNS: dict[str, tuple[str, str | None, str]] = {
    "openai/gsm8k": ("question", None, "answer"),
    "nvidia/OpenMathReasoning": ("problem", "generated_solution", "expected_answer"),
    "KbsdJames/Omni-MATH": ("problem", "solution", "answer"),
}
# Tried in this order on any other dataset: MATH and its relatives, then the plain names.
USUAL_COLUMNS = (("problem", "solution", "answer"), ("question", "solution", "answer"))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with its reference answer.

    Attributes:
        id: Names the problem within its source.
        question: The text put to the model.
        solution: Worked solution to learn from; empty where the source has none.
        answer: Reference answer as text.
        language: ISO 639-1 code of the question; "en" unless the source says otherwise.
    """

    id: str
    question: str
    solution: str
    answer: str
    language: str


def load_problems(spec: str, *, split: str = "train", limit: int | None = None, seed: int = 0) -> list[Problem]:
    """Load the problems that ``spec`` names; equal arguments give equal problems.

    Args:
        spec: ``arith``, ``rg:TASK``, ``jsonl:PATH``, ``hf:ID`` or ``hf:ID:CONFIG``.
        split: ``train``, ``validation`` or ``test`` for generated problems, where each is a random stream of its own;
            any split the dataset has for ``hf``. A ``jsonl`` file is one split, so there it is not used.
        limit: At most this many problems, the first ones of ``jsonl`` and ``hf``. None means all of them there,
            10,000 for ``arith`` and 1,000 for ``rg``.
        seed: Seed of the generated problems. It shuffles nothing.

    Raises:
        ValueError: If ``spec``, ``split`` or ``limit`` is not one of the above, if the source is malformed or unknown,
            if it holds no problems, or if ``rg:`` is asked for without reasoning-gym installed.
        FileNotFoundError: If a ``jsonl`` file does not exist.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no problems; give at least 1, or none for all")
    kind, _, rest = spec.partition(":")
    if spec == "arith":
        return _from_arith(split, limit or DEFAULT_ARITH, seed)
    readers: dict[str, Callable[[], list[Problem]]] = {
        "rg": lambda: _from_reasoning_gym(rest, split, limit or DEFAULT_RG, seed),
        "jsonl": lambda: _from_jsonl(Path(rest), limit),
        "hf": lambda: _from_hub(rest, split, limit),
    }
    if kind not in readers or not rest:
        raise ValueError(f"problems={spec!r} names no source of problems; give {FORMS}")
    problems = readers[kind]()
    if not problems:
        raise ValueError(f"{spec} holds no problems; give a source that has at least one")
    return problems


def _stream(split: str) -> int:
    if split not in STREAMS:
        raise ValueError(f"split={split!r} is unknown for generated problems; give one of {', '.join(STREAMS)}")
    return STREAMS[split]


def _from_arith(split: str, count: int, seed: int) -> list[Problem]:
    return [
        Problem(
            id=f"arith-{split}-{seed}-{index}",
            question=item.question,
            solution=item.solution,
            answer=str(item.answer),
            language=item.language,
        )
        for index, item in enumerate(arith.generate(count, seed=seed, stream=_stream(split)))
    ]


def _from_reasoning_gym(task: str, split: str, count: int, seed: int) -> list[Problem]:
    # reasoning-gym seeds entry i with seed + i: neighbouring seeds would share all but one of their problems.
    # Halved, since some tasks hand seed + i to numpy, which ends at 2**32.
    task_seed = int(np.random.SeedSequence([seed, _stream(split)]).generate_state(1)[0]) // 2
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(f"rg:{task} needs reasoning-gym: pip install 'ollm-rl[rg]'") from error
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "reasoning_gym.factory.DATASETS lists them"
        raise ValueError(f"rg:{task} is not a task of reasoning-gym; {hint}")
    try:
        entries = list(reasoning_gym.create_dataset(task, size=count, seed=task_seed))
    except (AssertionError, TypeError) as error:
        raise ValueError(f"rg:{task} needs settings of its own ({_one_line(error)}); choose another task") from error
    if any(entry["answer"] is None for entry in entries):
        raise ValueError(f"rg:{task} has problems without a reference answer; choose a task that states one")
    return [
        Problem(
            id=f"{task}-{split}-{seed}-{index}",
            question=entry["question"],
            solution="",
            answer=str(entry["answer"]),
            language="en",
        )
        for index, entry in enumerate(entries)
    ]


def _from_jsonl(path: Path, limit: int | None) -> list[Problem]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give jsonl:PATH with the path of a JSON Lines file")
    try:
        with path.open(encoding="utf-8-sig") as file:
            filled = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            return [_jsonl_problem(line, path, number) for number, line in islice(filled, limit)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _jsonl_problem(line: str, path: Path, number: int) -> Problem:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: malformed JSON ({error.msg} at column {error.colno}); mend the line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}, not an object; write {{'question': ..., 'answer': ...}}")
    return Problem(
        id=_field(row, "id", where, default=f"{path.stem}-{number}"),
        question=_field(row, "question", where),
        solution=_field(row, "solution", where, default=""),
        answer=_field(row, "answer", where),
        language=_field(row, "language" if "language" in row else "lang", where, default="en"),
    )


def _field(row: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    """Text of one field, numbers written out; without a ``default`` the field must be there and not be blank."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if name not in row:
        raise ValueError(f"{where}: field {name!r} is missing; every line needs a question and an answer")
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number or isinstance(value, str)):
        raise ValueError(f"{where}: field {name!r} is {value!r}; give a string or a finite number")
    if default is None and not str(value).strip():
        raise ValueError(f"{where}: field {name!r} is blank; every line needs a question and an answer")
    return str(value)


def _from_hub(name: str, split: str, limit: int | None) -> list[Problem]:
    import datasets  # heavy, and needed for this source alone

    dataset_id, _, config = name.partition(":")
    try:
        table = datasets.load_dataset(dataset_id, config or None, split=split)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"hf:{name} with split={split!r} cannot be loaded: {_one_line(error)}; check the id, config and split"
        ) from error
    question, solution, answer = _columns(dataset_id, table.column_names)
    problems = []
    rows = table if limit is None else table.select(range(min(limit, len(table))))
    for index, row in enumerate(rows):
        worked, reference = _text(row, solution), _text(row, answer)
        if solution is None:
            worked, _, reference = (part.strip() for part in reference.partition("####"))
        problem = Problem(
            id=f"{dataset_id}-{split}-{index}",
            question=_text(row, question),
            solution=worked,
            answer=reference,
            language="en",
        )
        if problem.question.strip() and problem.answer.strip():
            problems.append(problem)
    if len(problems) < len(rows):
        # A dataset of others cannot be mended by its user, so such rows are dropped, but never in silence.
        missing = len(rows) - len(problems)
        logger.warning("hf:%s: %d of %d rows lack a question or an answer; left out", name, missing, len(rows))
    return problems


def _columns(dataset_id: str, present: list[str]) -> tuple[str, str | None, str]:
    """Names of the question, solution and answer columns; the solution is optional in datasets we do not know."""
    if dataset_id in HF_COLUMNS:
        known = HF_COLUMNS[dataset_id]
        if {column for column in known if column} <= set(present):
            return known
    for question, solution, answer in USUAL_COLUMNS:
        if question in present and answer in present:
            return question, solution, answer
    raise ValueError(
        f"hf:{dataset_id} has the columns {', '.join(present)}; needed are question (or problem), answer and, "
        "if there is one, solution: rename them"
    )


def _text(row: Mapping[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return "" if value is None else str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
