"""Problems with a checkable answer from four kinds of sources, each named by a string.

``arith`` generates problems, ``rg:TASK`` gets them from reasoning-gym, ``jsonl:PATH`` reads a file, and ``hf:ID`` or
``hf:ID:CONFIG`` loads a Hugging Face dataset from the hub or a local folder. ``exclude_questions`` keeps the questions
of an evaluation out of training.
"""

import difflib
import json
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ollm_rl.answers.pool import extract_answer
from ollm_rl.errors import MissingError, UsageError, one_line
from ollm_rl.problems import arith
from ollm_rl.settings import Count, Seed, checked, shown
from ollm_rl.streams import Purpose, integer_seed, numpy_generator

FORMS = "arith, rg:TASK, jsonl:PATH, or hf:ID (hf:ID:CONFIG)"
GENERATED_SPLITS = ("train", "validation", "test")
GZIP = b"\x1f\x8b"  # how compressed files begin
DEFAULT_ARITH = 10_000  # problems
DEFAULT_RG = 1_000  # problems

# Names of the columns with question, solution and answer. None: the solution contains the answer, after "####" as in
# GSM8K or in the last box as in MATH.
Columns = tuple[str, str, str | None]
HF_COLUMNS: dict[str, Columns] = {
    "openai/gsm8k": ("question", "answer", None),
    "nvidia/OpenMathReasoning": ("problem", "generated_solution", "expected_answer"),
}
# Tried in this order on any other dataset: Omni-MATH and similar ones, plain names, and MATH under its many ids.
USUAL_COLUMNS: tuple[Columns, ...] = (
    ("problem", "solution", "answer"),
    ("question", "solution", "answer"),
    ("problem", "solution", None),
)

# Differences that are ignored when questions are compared. "-", "!", "'" and brackets are kept, because they are also
# mathematical signs; a point or comma before a digit belongs to a number or a pair.
_STRAIGHT = str.maketrans("‘’“”‐–—−", "''\"\"----")
_SPARE = re.compile(r'(?:[\s"?¿¡:;]|[.,](?!\d))+')

logger = logging.getLogger(__name__)


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


def load_problems(spec: str, *, split: str = "train", limit: int | None = None, seed: int = 0) -> list[Problem]:
    """Load the problems that ``spec`` names; equal arguments give equal problems.

    Args:
        spec: ``arith``, ``rg:TASK``, ``jsonl:PATH``, ``hf:ID`` or ``hf:ID:CONFIG``.
        split: ``train``, ``validation`` or ``test`` for ``arith`` and ``rg``, each an independent random stream. Any
            split of the dataset for ``hf``. Not used for ``jsonl``, where the file is one split.
        limit: Maximum number of problems. ``jsonl`` and ``hf`` take the first ones, and ``hf`` is then streamed, so it
            downloads only what it reads (except for a slice such as ``train[:10%]``). None means all problems for
            ``jsonl`` and ``hf``, 10,000 for ``arith`` and 1,000 for ``rg``.
        seed: Seed of the generated problems. It does not shuffle the others.

    Raises:
        UsageError: If ``spec``, ``split`` or ``limit`` is not one of the above, if the source is malformed or unknown,
            if it holds no problems, or if ``rg:`` is requested without reasoning-gym installed.
        MissingError: If a ``jsonl`` file does not exist.
    """
    limit, seed = checked("limit", limit, Count | None), checked("seed", seed, Seed)
    kind, _, rest = checked("problems", spec, str).partition(":")
    if spec == "arith":
        return _from_arith(split, limit or DEFAULT_ARITH, seed)
    readers: dict[str, Callable[[], list[Problem]]] = {
        "rg": lambda: _from_reasoning_gym(rest, split, limit or DEFAULT_RG, seed),
        "jsonl": lambda: _from_jsonl(Path(rest), limit),
        "hf": lambda: _from_hub(rest, split, limit),
    }
    if kind not in readers or not rest:
        raise UsageError(f"problems={shown(spec)} names no source of problems; give {FORMS}")
    problems = readers[kind]()
    if not problems:
        raise UsageError(f"{spec} holds no problems; give a source that has at least one")
    return problems


def exclude_questions(problems: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """The problems whose questions are not among the held-out questions, in their order.

    Questions are compared after normalization:

    - Unicode's NFKC form (full-width digits become plain ones) and case folding;
    - straight quotes for ``‘’“”``, and ``-`` for the dashes ``‐–—−``;
    - one space for every run of white space, ``"``, ``?``, ``¿``, ``¡``, ``:``, ``;``, and full stops and commas that
      no digit follows; no spaces at the ends.

    All other characters count.
    """
    excluded = {_normalized(problem.question) for problem in held_out}
    return [problem for problem in problems if _normalized(problem.question) not in excluded]


def _normalized(question: str) -> str:
    text = unicodedata.normalize("NFKC", question).casefold().translate(_STRAIGHT)
    return _SPARE.sub(" ", text).strip()


def _split_index(split: str) -> int:
    if split not in GENERATED_SPLITS:
        raise UsageError(
            f"split={split!r} is unknown for generated problems; give one of {', '.join(GENERATED_SPLITS)}"
        )
    return GENERATED_SPLITS.index(split)


def _from_arith(split: str, count: int, seed: int) -> list[Problem]:
    generator = numpy_generator(seed, Purpose.PROBLEMS, _split_index(split))
    return [
        Problem(
            id=f"arith-{split}-{seed}-{index}",
            question=item.question,
            solution=item.solution,
            answer=str(item.answer),
            language=item.language,
        )
        for index, item in enumerate(arith.generate(count, generator))
    ]


def _from_reasoning_gym(task: str, split: str, count: int, seed: int) -> list[Problem]:
    # reasoning-gym seeds entry i with seed + i, so neighbouring seeds would share all but one of their problems.
    task_seed = integer_seed(seed, Purpose.PROBLEMS, _split_index(split))
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UsageError(f"rg:{task} needs reasoning-gym: pip install 'ollm-rl[rg]'") from error
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "reasoning_gym.factory.DATASETS lists them"
        raise UsageError(f"rg:{task} is not a task of reasoning-gym; {hint}")
    try:
        entries = list(reasoning_gym.create_dataset(task, size=count, seed=task_seed))
    except (AssertionError, TypeError) as error:
        raise UsageError(f"rg:{task} needs settings of its own ({one_line(error)}); choose another task") from error
    if any(entry["answer"] is None for entry in entries):
        raise UsageError(f"rg:{task} has problems without a reference answer; choose a task that states one")
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
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = islice(((number, line) for number, line in enumerate(file, start=1) if line.strip()), limit)
            problems = {number: _jsonl_problem(line, path, number) for number, line in lines}
    except UnicodeDecodeError as error:
        remedy = "it is compressed by gzip: unpack it" if error.object.startswith(GZIP) else "convert it"
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); {remedy}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingError(f"no file {path}; give jsonl:PATH with the path of a JSON Lines file") from error
    except OSError as error:
        raise UsageError(f"{shown(str(path))} cannot be read ({error.strerror}); give another file") from error
    first: dict[str, int] = {}
    for number, problem in problems.items():
        if (earlier := first.setdefault(problem.id, number)) != number:
            raise UsageError(f"{path}, lines {earlier} and {number}: both have the id {problem.id!r}; change one")
    return list(problems.values())


def _jsonl_problem(line: str, path: Path, line_number: int) -> Problem:
    location = f"{path}, line {line_number}"
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
    return Problem(
        id=_field(row, "id", location, default=f"{path.stem}-{line_number}"),
        question=_field(row, "question", location),
        solution=_field(row, "solution", location, default=""),
        answer=_field(row, "answer", location),
        language=_field(row, "language" if "language" in row else "lang", location, default="en"),
    )


def _field(row: Mapping[str, Any], name: str, location: str, default: str | None = None) -> str:
    """One field as text. Numbers become text; without a ``default`` the field must be present and not blank."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if name not in row:
        raise UsageError(f"{location}: field {name!r} is missing; every line needs a question and an answer")
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


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: one with a lone surrogate, half a character, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _from_hub(name: str, split: str, limit: int | None) -> list[Problem]:
    dataset_id = name.partition(":")[0]
    columns: Columns | None = None
    problems: list[Problem] = []
    missing = 0
    for index, row in enumerate(_hub_rows(name, split, stream=limit is not None)):
        columns = columns or _columns(dataset_id, list(row))
        question, solution, answer = _hub_texts(row, columns)
        if question.strip() and answer.strip() and is_text(question + solution + answer):
            problem = Problem(
                id=f"{dataset_id}-{split}-{index}", question=question, solution=solution, answer=answer, language="en"
            )
            problems.append(problem)
        else:
            missing += 1
        if len(problems) == limit:
            break
    if missing:
        # Users cannot fix a public dataset, so such rows are dropped, but never silently.
        num_rows = len(problems) + missing
        logger.warning(
            "hf:%s: %d of %d rows lack a question or an answer, or have a lone surrogate; left out",
            name,
            missing,
            num_rows,
        )
    return problems


def _hub_rows(name: str, split: str, *, stream: bool) -> Iterator[dict[str, Any]]:
    import datasets  # slow to import, and only needed for this source

    dataset_id, _, config = name.partition(":")
    streaming = stream and "[" not in split  # datasets refuses to stream a slice such as train[:10%]
    # An empty file makes datasets leak StopIteration. Errors of a stream are raised while it is read.
    errors = (ValueError, OSError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError)
    try:
        yield from datasets.load_dataset(dataset_id, config or None, split=split, streaming=streaming)
    except errors as error:
        raise UsageError(
            f"hf:{name} with split={split!r} cannot be loaded: {one_line(error)}; check the id, config and split"
        ) from error


def _columns(dataset_id: str, present: list[str]) -> Columns:
    """Names of the columns to read. The solution's column may be missing if the answer has its own."""
    for columns in (HF_COLUMNS.get(dataset_id), *USUAL_COLUMNS):
        if columns and {columns[0], columns[2] or columns[1]} <= set(present):
            return columns
    raise UsageError(
        f"hf:{dataset_id} has the columns {', '.join(present)}; needed are question (or problem) and answer, "
        "with solution if there is one, or problem and a solution that boxes its answer: rename them"
    )


def _hub_texts(row: Mapping[str, Any], columns: Columns) -> tuple[str, str, str]:
    """Question, solution and answer of a row; missing ones are empty."""
    question, solution, answer = ("" if not name or row.get(name) is None else str(row[name]) for name in columns)
    if columns[2] is None:
        extracted = extract_answer(solution)
        answer = extracted[0] if extracted and extracted[1] in ("boxed", "hashes") else ""
        by_hashes = extracted is not None and extracted[1] == "hashes"
        solution = (solution.rpartition("####")[0] if by_hashes else solution).strip()
    return question, solution, answer
