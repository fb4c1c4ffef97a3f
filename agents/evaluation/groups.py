"""Compare training runs: group those that differ only in their seed, and read their metrics."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ollm_rl.agents.completions import Row
from ollm_rl.backbones.names import ModelName
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.files.records import Entries, read_rows, require
from ollm_rl.runs import METRICS_FILE, places_in, read_record, read_run
from ollm_rl.safekeeping.places import located

# Metrics that every agent logs in every iteration and that are read here and in reports.
METRICS: Entries = dict.fromkeys(
    (
        "iteration",
        "episodes",
        "seconds",
        "reward",
        "reward_correctness",
        "completion_tokens",
        "language_switching_rate",
        "degeneracy_rate",
    ),
    float,
)


def group_runs(runs: Sequence[Path]) -> dict[str, list[str]]:
    """Group training runs that differ only in seed and folder; returns the folders by name of the group.

    Raises:
        MissingError: If a folder holds no training run, or one that has no metrics yet.
        UsageError: If two runs have the same settings and the same seed.
    """
    groups: dict[str, dict[str, Path]] = {}
    for run in runs:
        read_run(run, "train")
        setting, seeds = setting_of(run)
        if not history(run):
            raise MissingError(f"{run} has no metrics yet; let ollm-rl train finish an iteration")
        group = groups.setdefault(json.dumps(setting, sort_keys=True), {})
        if str(seeds) in group:
            raise UsageError(f"{run} and {group[str(seeds)]} have the same settings and the same seed; leave one out")
        group[str(seeds)] = run
    named: dict[str, list[str]] = {}
    for group in groups.values():
        folders = list(group.values())
        name = _common_name([folder.resolve().name for folder in folders])
        named[f"{name} ({folders[0]})" if name in named else name] = [str(folder) for folder in folders]
    return named


def history(run: Path) -> list[Row]:
    """A training run's metrics, one row per iteration, with the ``tokens`` generated so far; empty if it has none.

    Raises:
        DamagedError: If the file is broken.
    """
    path = run / METRICS_FILE
    rows = read_rows(path, METRICS) if path.exists() else []
    tokens, episodes = 0.0, 0.0
    for row in rows:
        tokens += row["completion_tokens"] * (row["episodes"] - episodes)
        episodes, row["tokens"] = row["episodes"], tokens
    return rows


def histories(models: Sequence[ModelName]) -> list[list[Row]]:
    """Metrics of those models that are training runs."""
    runs = [model.folder for model in models if model.kind == "run" and model.folder]
    return [rows for run in runs if (rows := history(run))]


def setting_of(folder: Path) -> tuple[Row, list[int]]:
    """A run's settings without seeds, and the seeds; the folder of a run it builds on is replaced by its settings."""
    path = folder / "run.json"
    run = read_record(path)
    require(path, run["config"], {"seed": int})
    setting = dict(run["config"])
    seeds, places = [setting.pop("seed")], places_in(run)
    for name in ("model", "backbone"):
        try:
            base = Path(located(str(setting.get(name)), name, folder, places.get(name)))
        except MissingError:
            continue  # the curves need no model
        if (base / "run.json").exists():
            setting[name], base_seeds = setting_of(base)
            seeds += base_seeds
    return setting, seeds


def _common_name(names: Sequence[str]) -> str:
    """Common part of the folder names of a group: latent for latent-seed0 and latent-seed1."""
    if len(names) == 1:
        return names[0]
    common = re.sub(r"[-_.=]*(seed|s)?[-_.=]*\d*$", "", os.path.commonprefix(names))
    return common or names[0]
