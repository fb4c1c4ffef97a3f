"""Results of ``ollm-rl eval`` on disk: a file for each model and problem set, and a table of all."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ollm_rl.agents.completions import READ, Row
from ollm_rl.agents.evaluation.config import EvalConfig
from ollm_rl.backbones.names import ModelName
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.files.records import Entries, read_object, sealed_json
from ollm_rl.problems.problem import Problem
from ollm_rl.runs import write_atomic

SUMMARY_FILE, TABLE_FILE = "results.json", "results.md"
# Settings that the numbers depend on; slots and device do not matter.
SETTINGS = (
    *("split", "limit", "sample", "temperature", "top_p", "samples", "max_new_tokens", "dtype", "seed"),
    *("system_prompt", "prompt_template", "reward"),
)
DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "samples": 1, "reward": []}  # of results from before there were these
NUMBERS = ("accuracy", "low", "high", "language_switching_rate", "degeneracy_rate", "completion_tokens")
# What readers of results rely on.
RESULT: Entries = {
    **dict.fromkeys(("model", "data", "split", "dtype"), str),
    **dict.fromkeys(("num_problems", "max_new_tokens"), int),
    **dict.fromkeys(NUMBERS, float),
    "completions": [READ],
}
BEGUN: Entries = {
    "eval_seconds": float,
    "completions": [{**READ, "tokens": int, "terminated": bool, "status": str}],
}
HEADINGS = ("model", "problems", "accuracy, %", "language switching, %", "degenerate, %", "tokens")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder that ``ollm-rl eval --out`` wrote, sorted by file name.

    Raises:
        MissingError: If there are none.
        DamagedError: If one is broken or damaged.
    """
    paths = sorted(folder.glob("*--*.json"))
    if not paths:
        raise MissingError(f"{folder} holds no results; give the folder that ollm-rl eval --out wrote")
    return [read_object(path, RESULT, remedy="copy it again, or delete it and evaluate again") for path in paths]


def write_summary(folder: Path) -> None:
    """List all results of a folder in ``results.json``, without completions, and in ``results.md``."""
    results = read_results(folder)
    numbers = [{name: value for name, value in row.items() if name != "completions"} for row in results]
    write_atomic(folder / SUMMARY_FILE, json.dumps(numbers, indent=1))
    write_atomic(folder / TABLE_FILE, format_results(results) + "\n")


def format_results(results: Sequence[dict[str, Any]]) -> str:
    """Results as a Markdown table, without a line break at the end."""
    more = {name: heading for result in results for name in result if (heading := _heading(name))}
    headings = (*HEADINGS, *more.values())
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for result in results:
        accuracy, low, high, switching, degenerate = (f"{100 * result[name]:.1f}" for name in NUMBERS[:5])
        cells = (
            result["model"].replace("|", r"\|"),
            f"{result['num_problems']:,} of {result['data']}".replace("|", r"\|"),
            f"{accuracy} [{low}, {high}]",
            switching,
            degenerate,
            f"{result['completion_tokens']:.1f}",
            *(_cell(name, result.get(name)) for name in more),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _heading(name: str) -> str | None:
    """The heading of a number that only some evaluations have."""
    if name.startswith("reward_"):
        return name.replace("_", " ", 1)
    kind, at, k = name.partition("_at_")
    return f"{kind}@{k}, %" if at else None


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if name.startswith("reward_") else f"{100 * value:.1f}"


class ResultFile:
    """The result of one model on one problem set, saved in the folder ``config.out`` if it is set.

    Args:
        config: Settings of the evaluation.
        model: One of ``config.model``.
        data: One of ``config.data``.
        inputs: Hashes of the weights and the problems.
    """

    def __init__(self, config: EvalConfig, model: str, data: str, inputs: dict[str, str]) -> None:
        self.path: Path | None = None
        if config.out is not None:
            self.path = config.out / f"{_slug(model)}--{_slug(data)}.json"
        self.settings = {"model": model, "data": data, **{name: asdict(config)[name] for name in SETTINGS}}
        self.inputs = inputs

    def read(self) -> dict[str, Any] | None:
        """The saved result, if there is one and its inputs are unchanged.

        Raises:
            UsageError: If the file is broken, damaged, or holds an evaluation with other settings.
        """
        return self._read(self.path, RESULT)

    def begun(self) -> tuple[list[Row], float]:
        """Rows and seconds of an interrupted evaluation."""
        saved = self._read(self._partial, BEGUN)
        return (saved["completions"], saved["eval_seconds"]) if saved else ([], 0.0)

    def keep(self, rows: list[Row], seconds: float) -> None:
        """Save the rows evaluated so far."""
        self._write(self._partial, {"eval_seconds": seconds, "completions": rows})

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Save the result with its settings, and return both in one dictionary."""
        saved = self._write(self.path, result)
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
        return saved

    @property
    def _partial(self) -> Path | None:
        return self.path and self.path.with_suffix(".partial")

    def _read(self, path: Path | None, entries: Entries) -> dict[str, Any] | None:
        if path is None or not path.exists():
            return None
        saved = read_object(path, entries, remedy="delete it to evaluate again")
        differing = [name for name, value in self.settings.items() if saved.get(name, DEFAULTS.get(name)) != value]
        if differing:
            name = differing[0]
            raise UsageError(
                f"{path} holds another evaluation ({name} is {saved.get(name)!r} there, {self.settings[name]!r} here); "
                "give another out folder or delete it"
            )
        return saved if saved.get("inputs") == self.inputs else None  # e.g. the run was trained further: evaluate again

    def _write(self, path: Path | None, content: dict[str, Any]) -> dict[str, Any]:
        result = {**self.settings, "inputs": self.inputs, **content}
        if path is not None:
            write_atomic(path, sealed_json(result))
        return result


def refuse_shared_files(files: Iterable[ResultFile]) -> None:
    """Refuse pairs of model and problem set whose results would replace each other, such as runs/a and runs-a.

    Raises:
        UsageError: It names two of them and their file.
    """
    by_path: dict[Path, str] = {}
    for file in files:
        pair = f"{file.settings['model']} on {file.settings['data']}"
        if file.path is not None and (other := by_path.setdefault(file.path, pair)) != pair:
            raise UsageError(f"{other} and {pair} would both be written to {file.path}; leave one out")


def hash_weights(model: ModelName) -> str:
    """Hash of a model's saved weights and of those below; a plug-in's own weights go with one backbone only."""
    digest = hashlib.sha256()
    for path in model.files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    below = model.below if model.kind in ("run", "lora") else None
    return digest.hexdigest() + (hash_weights(below) if below else "")


def hash_problems(problems: Sequence[Problem]) -> str:
    """Hash of all fields of the problems."""
    return hashlib.sha256(json.dumps([asdict(problem) for problem in problems]).encode()).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
