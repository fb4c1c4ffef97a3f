"""Training runs side by side: which are of one setting and differ only in their seed, and what they have logged."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ollm_rl.agents.completions import Row
from ollm_rl.backbones.names import ModelName
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.runs import read_run


def group_runs(runs: Sequence[Path]) -> dict[str, list[str]]:
    """Training runs by name of their setting: those that differ only in seed and folder stand together.

    Raises:
        MissingError: If a folder holds no training run, or one without metrics yet.
        UsageError: If two runs are of one setting and one seed.
    """
    groups: dict[str, dict[str, Path]] = {}
    for run in runs:
        setting, seeds = _setting(read_run(run, "train"))
        if not (run / "metrics.json").exists():
            raise MissingError(f"{run} has no metrics yet; let ollm-rl train finish an iteration")
        group = groups.setdefault(json.dumps(setting, sort_keys=True), {})
        if str(seeds) in group:
            raise UsageError(f"{run} and {group[str(seeds)]} are of one setting and one seed; leave one out")
        group[str(seeds)] = run
    named: dict[str, list[str]] = {}
    for group in groups.values():
        folders = list(group.values())
        name = _common_name([folder.resolve().name for folder in folders])
        if len(folders) > 1:
            name += f" ({len(folders)} seeds)"
        named[f"{name} ({folders[0]})" if name in named else name] = [str(folder) for folder in folders]
    return named


def history(model: ModelName) -> list[Row]:
    """A training run's metrics; empty for anything else, and for a run that has none yet."""
    path = model.folder / "metrics.json" if model.kind == "run" and model.folder else None
    rows: list[Row] = json.loads(path.read_text()) if path is not None and path.exists() else []
    return rows


def histories(models: Sequence[ModelName]) -> list[list[Row]]:
    """Metrics of those that are training runs."""
    return [rows for model in models if (rows := history(model))]


def _setting(config: Row) -> tuple[Row, list[int]]:
    """A run's settings without seeds, those of the run that it builds on in place of its folder; and the seeds."""
    setting = dict(config)
    seeds = [setting.pop("seed")]
    for name in ("model", "backbone"):
        path = Path(str(config.get(name))) / "run.json"
        if path.exists():
            setting[name], below = _setting(json.loads(path.read_text())["config"])
            seeds += below
    return setting, seeds


def _common_name(names: Sequence[str]) -> str:
    """What the folders of one setting have in common: latent of latent-seed0 and latent-seed1."""
    if len(names) == 1:
        return names[0]
    common = re.sub(r"[-_.=]*(seed|s)?[-_.=]*\d*$", "", os.path.commonprefix(names))
    return common or names[0]
