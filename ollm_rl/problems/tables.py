"""Problems from Hugging Face data sets (hub, folders of files, folders of ``save_to_disk``) and from Parquet files.

Users cannot fix a public data set, so rows that are no problem are left out and counted.
"""

import glob
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError, UsageError, one_line
from ollm_rl.problems.columns import (
    EXAMPLE,
    Columns,
    has_system_message,
    known_columns,
    message_of,
    solution_and_answer,
)
from ollm_rl.problems.problem import Problem
from ollm_rl.problems.sampling import seeded_sample
from ollm_rl.services.network import hub_answers
from ollm_rl.settings import is_text, shown
from ollm_rl.streams import Purpose, integer_seed

BUFFER = 10_000  # rows of a hub's stream that are shuffled at a time
SAVED = ("dataset_dict.json", "state.json")  # in folders that ``save_to_disk`` wrote

logger = logging.getLogger(__name__)


def read_hub(name: str, split: str, columns: Columns | None, limit: int | None, seed: int) -> list[Problem]:
    """Problems of a data set.

    A local folder is streamed: nothing is copied into a cache, and a sample holds no more rows than ``limit``. With a
    limit a data set on the hub is streamed too, its files in random order and shuffled ``BUFFER`` rows at a time. So it
    downloads about what it reads. A slice such as ``train[:10%]`` is always loaded.

    Args:
        name: ``ID`` or ``ID:CONFIG``; the id may be a local folder.
        split: Any split of the data set; not used for a folder of ``Dataset.save_to_disk``, which is one.
        columns: Names of the columns; None recognises known ones.
        limit: Size of the sample; None for all rows.
        seed: Seed of the sample.

    Raises:
        UsageError: If it cannot be loaded, or the columns are missing or hold no text.
    """
    dataset_id, _, config = name.partition(":")
    table = _Table(f"hf:{name}", f"{dataset_id}-{split}", columns)
    is_local = Path(dataset_id).exists()
    is_slice = "[" in split  # datasets refuses to stream one
    if any((Path(dataset_id) / file).is_file() for file in SAVED):
        problems = seeded_sample(table.problems(_saved_rows(dataset_id, split)), limit, seed)
    elif is_local or is_slice or limit is None:
        rows = _rows(table.spec, dataset_id, config, split, stream=is_local and not is_slice)
        problems = seeded_sample(table.problems(rows), limit, seed)
    else:
        rows = _rows(table.spec, dataset_id, config, split, stream=True, seed=seed)
        problems = list(islice(table.problems(rows), limit))  # reading to the end would download everything
    table.say_left_out()
    return problems


def read_parquet(pattern: str, columns: Columns | None, limit: int | None, seed: int) -> list[Problem]:
    """Problems of a Parquet file, or of all files that a pattern such as ``data/cot-*.parquet`` names.

    Args:
        pattern: Path of the file, or a pattern.
        columns: As in `read_hub`.
        limit: As in `read_hub`; every row is read, and no more than these are held.
        seed: As in `read_hub`.

    Raises:
        MissingError: If there is no such file.
        UsageError: If a file cannot be read, or the columns are missing or hold no text.
    """
    files = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))
    if not files:
        raise MissingError(f"no file {pattern}; give parquet:PATH with the path of a Parquet file, or a pattern")
    if folders := [file for file in files if Path(file).is_dir()]:
        raise UsageError(f"parquet:{pattern} names the folder {folders[0]}; give hf:{folders[0]} with a split")
    table = _Table(f"parquet:{pattern}", Path(files[0]).stem, columns)
    rows = _rows(table.spec, "parquet", "", "train", stream=True, data_files=files)
    problems = seeded_sample(table.problems(rows), limit, seed)
    table.say_left_out()
    return problems


class _Table:
    """Problems of rows that share their columns, and the number of rows that are none.

    Args:
        spec: The source, for messages.
        prefix: Begins the ids.
        columns: Names of the columns; None recognises them at the first row.
    """

    def __init__(self, spec: str, prefix: str, columns: Columns | None) -> None:
        self.spec, self.prefix, self.columns = spec, prefix, columns
        self.rows = self.left_out = self.with_system_message = 0

    def problems(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Problem]:
        """The problems, one by one."""
        columns: Columns | None = None
        for index, row in enumerate(rows):
            columns = columns or self._fitting(row)
            cells = (columns.question, "user"), (columns.solution, "assistant"), (columns.answer, "assistant")
            question, solution, answer = (self._text(row, name, role) for name, role in cells)
            solution, answer = solution_and_answer(solution, answer, columns)
            self.rows += 1
            self.with_system_message += has_system_message(row, columns)
            if question.strip() and answer.strip() and is_text(question + solution + answer):
                yield Problem(
                    id=f"{self.prefix}-{index}", question=question, solution=solution, answer=answer, language="en"
                )
            else:
                self.left_out += 1

    def _text(self, row: Mapping[str, Any], name: str | None, role: str) -> str:
        """A cell, or the message of this role in it, as text; empty if there is none."""
        value = message_of(row.get(name), role) if name else None
        if isinstance(value, list | Mapping):
            raise UsageError(
                f"{self.spec} has {shown(value)} in the column {name!r}, which is no text and no number; name another "
                f"column, as in --columns {EXAMPLE}"
            )
        return "" if value is None else str(value)

    def _fitting(self, row: Mapping[str, Any]) -> Columns:
        if self.columns is None:
            if (columns := known_columns(row)) is not None:
                return columns
            fault = "which are not known ones"
        else:
            missing = [name for name in self.columns if name is not None and name not in row]
            if not missing:
                return self.columns
            fault = f"and no {missing[0]!r}"
        raise UsageError(
            f"{self.spec} has the columns {', '.join(row)}, {fault}; name those of question, and of answer "
            f"or solution, as in --columns {EXAMPLE}"
        )

    def say_left_out(self) -> None:
        """Warn of rows that are no problems: left out, but never silently."""
        if self.left_out:
            logger.warning(
                "%s: %d of %d rows lack a question or an answer, or have a lone surrogate; left out",
                self.spec,
                self.left_out,
                self.rows,
            )
        if self.with_system_message:
            logger.warning(
                "%s: system messages of %d rows are not used; give --system_prompt", self.spec, self.with_system_message
            )


def _rows(
    spec: str,
    path: str,
    config: str,
    split: str,
    *,
    stream: bool,
    seed: int | None = None,
    data_files: list[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a data set, in random order if there is a seed."""
    import datasets  # slow to import, and only needed for these sources

    # An empty file makes datasets leak StopIteration. Errors of a stream are raised while it is read.
    errors = (ValueError, OSError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError)
    unreachable = data_files is None and not Path(path).exists() and not hub_answers()
    try:
        with _cache_only() if unreachable else nullcontext():
            rows = datasets.load_dataset(path, config or None, split=split, streaming=stream, data_files=data_files)
        if seed is not None:
            rows = rows.shuffle(seed=integer_seed(seed, Purpose.PROBLEM_SAMPLE), buffer_size=BUFFER)
        yield from rows
    except errors as error:
        named, remedy = ("", "the file") if data_files else (f" with split={split!r}", "the id, config and split")
        reason = one_line(error)
        if unreachable:
            reason, remedy = "the hub is out of reach and it is not in the cache", "the network, or give a local folder"
        raise UsageError(f"{spec}{named} cannot be loaded: {reason}; check {remedy}") from error


@contextmanager
def _cache_only() -> Iterator[None]:
    """Let ``datasets`` look into its cache at once; without a network it would first retry for half a minute."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _saved_rows(folder: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a folder that ``save_to_disk`` wrote, memory-mapped."""
    import datasets

    try:
        loaded = datasets.load_from_disk(folder)
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise UsageError(f"hf:{folder} has no split {split!r}; give --split, one of {', '.join(loaded)}")
            loaded = loaded[split]
        yield from loaded
    except UsageError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(f"hf:{folder} cannot be loaded: {one_line(error)}; copy it again") from error
