"""Which learning rate of a method was chosen, where several were tried."""

import json
from collections.abc import Mapping, Sequence

from ollm_rl.agents.completions import Row
from ollm_rl.agents.evaluation.groups import setting_of
from ollm_rl.backbones.names import ModelName

VALIDATION = "eval_accuracy"  # logged with eval_every, of the split validation unless a run names another


def unchosen(
    methods: Mapping[str, Sequence[ModelName]], curves: Mapping[str, Sequence[Sequence[Row]]], metric: str, mode: str
) -> dict[str, str]:
    """Methods that differ from a better one only in their learning rate, each with what was chosen and how.

    Args:
        methods: By name, the models of its seeds; only training runs can be chosen.
        curves: By method, ``histories`` of its models.
        metric: One of ``METRICS`` that decides, by its last value, where a run has no validation accuracy.
        mode: "max" or "min", whether higher or lower values of ``metric`` are better.
    """
    variants: dict[str, list[str]] = {}
    for method, models in methods.items():
        folder = models[0].folder
        if models[0].kind == "run" and folder is not None:
            setting, _ = setting_of(folder)
            setting.pop("learning_rate", None)
            variants.setdefault(json.dumps(setting, sort_keys=True), []).append(method)
    found: dict[str, str] = {}
    for names in variants.values():
        rows = {name: curves[name] for name in names}
        if len(names) < 2 or not all(rows.values()):
            continue
        validated = all(any(VALIDATION in row for row in run) for runs in rows.values() for run in runs)
        column, sign = (VALIDATION, 1) if validated else (metric, 1 if mode == "max" else -1)
        best = max(names, key=lambda name: sign * _last_mean(rows[name], column))
        by = "validation accuracy" if validated else f"the last {metric.replace('_', ' ')} of training"
        found |= {name: f"{best} was chosen by {by}" for name in names if name != best}
    return found


def _last_mean(runs: Sequence[Sequence[Row]], column: str) -> float:
    """Mean over the seeds of the last value of a column."""
    return sum(next(row[column] for row in reversed(run) if column in row) for run in runs) / len(runs)
