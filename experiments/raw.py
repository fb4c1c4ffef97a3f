"""A comparison in one Parquet file, from which its tables can be made again.

A row is an iteration of a run: its metrics, ``method`` and ``seed``. The file's metadata holds the rest under
``comparison``: the settings of the comparison, those that tuning chose, and the evaluations after training.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ollm_rl.errors import UsageError
from ollm_rl.experiments.comparison import comparison_tables
from ollm_rl.experiments.config import CompareConfig
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.tuning import Tuned
from ollm_rl.report.tables import Table

KEY = b"comparison"
Runs = dict[str, dict[int, list[dict[str, Any]]]]


def pack(
    config: CompareConfig,
    tuned: Mapping[str, Tuned],
    curves: Mapping[str, Mapping[int, Curve]],
    results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    origin: Mapping[str, Any],
) -> bytes:
    """The contents of the file.

    Args:
        config: Settings of the comparison.
        tuned: What tuning found, by method.
        curves: Curves by method and seed.
        results: Results by method and evaluation, seeds in order; their numbers are kept.
        origin: Commit, versions and machine.
    """
    rows = [
        {"method": method, "seed": seed, **row}
        for method, of_method in curves.items()
        for seed, curve in of_method.items()
        for row in curve.rows
    ]
    table = pa.Table.from_pylist(_all_columns(rows))
    data = {
        "config": {name: value for name, value in dataclasses.asdict(config).items() if name != "out"},
        "tuned": {method: found._asdict() for method, found in tuned.items()},
        "results": {
            method: {name: [_numbers(result) for result in of_name] for name, of_name in by_name.items()}
            for method, by_name in results.items()
        },
        **origin,
    }
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(data).encode()}), sink, compression="zstd")
    contents: bytes = sink.getvalue().to_pybytes()
    return contents


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a comparison, and the rest that its file holds.

    Raises:
        UsageError: If it is no such file.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _no_comparison(path, error) from error
    metadata = table.schema.metadata or {}
    if KEY not in metadata:
        raise _no_comparison(path, "it is another table")
    return table.to_pylist(), json.loads(metadata[KEY])


def by_method(rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> Runs:
    """The metrics of every run by method and seed, from what ``read`` gives."""
    runs: Runs = {method: {} for method in data["tuned"]}
    for row in rows:
        values = {name: value for name, value in row.items() if value is not None and name not in ("method", "seed")}
        runs[row["method"]].setdefault(row["seed"], []).append(values)
    return runs


class Comparison(NamedTuple):
    """The runs of one comparison or of several.

    Attributes:
        config: Settings of the first.
        tuned: What tuning found, by method.
        curves: By method, one for each run.
        results: By method and evaluation, one for each run that was evaluated.
    """

    config: CompareConfig
    tuned: dict[str, Tuned]
    curves: dict[str, list[Curve]]
    results: dict[str, dict[str, list[Any]]]


def read_all(paths: Sequence[Path], seeds: Collection[int] = ()) -> Comparison:
    """The runs of some files as if they were one comparison.

    Args:
        paths: The files, at least one.
        seeds: Only the curves of runs with these seeds, and no results; all there is if empty.

    Raises:
        UsageError: If one is no such file or is given twice, their runs are not alike in length and window, or a seed
            is lacking.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"a file is given twice among {', '.join(map(str, paths))}; leave one out")
    whole: Comparison | None = None
    found: set[int] = set()
    for path in paths:
        rows, data = read(path)
        try:
            config = CompareConfig(**data["config"], out=path.parent)
        except (KeyError, TypeError) as error:
            raise _no_comparison(path, error) from error
        whole = whole or Comparison(config, {}, {}, {})
        for name in ("window", "max_episodes"):
            here, there = getattr(config, name), getattr(whole.config, name)
            if here != there:
                raise UsageError(f"{path} has {name}={here}, {paths[0]} has {there}; give files that have the same")
        found |= {row["seed"] for row in rows}
        for method, by_seed in by_method(rows, data).items():
            whole.tuned.setdefault(method, Tuned(**data["tuned"][method]))
            runs = [run for seed, run in by_seed.items() if not seeds or seed in seeds]
            whole.curves.setdefault(method, []).extend(Curve(run, config.window) for run in runs)
        for method, of_method in {} if seeds else data["results"].items():
            for name, of_name in of_method.items():
                whole.results.setdefault(method, {}).setdefault(name, []).extend(of_name)
    if whole is None:
        raise UsageError("no file is given; give a comparison.parquet of ollm-rl compare")
    if missing := set(seeds).difference(found):
        raise UsageError(f"seeds={sorted(missing)}: {paths[0]} has no such runs; leave them out")
    return whole


def tables_of(*paths: Path, seeds: Collection[int] = ()) -> list[Table]:
    """The tables of a comparison from its file, or of several, with the baseline and thresholds of the first.

    Arguments and errors are those of `read_all`.
    """
    return comparison_tables(*read_all(paths, seeds))


def _no_comparison(path: Path, error: Exception | str) -> UsageError:
    return UsageError(f"{path} holds no comparison ({error}); give the comparison.parquet of ollm-rl compare")


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if type(value) in (int, float)}


def _all_columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that all have the same names; Arrow takes the names of the first."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]
