"""Sweeps on Ray Tune over a grid of settings, random draws and seeds, with one table and one report.

The training runs are below ``out/trials``, the state of Tune is in ``out/tune``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ollm_rl.agents.evaluation.groups import history
from ollm_rl.agents.evaluation.reporting import report_methods
from ollm_rl.errors import UsageError
from ollm_rl.experiments.config import SweepConfig
from ollm_rl.experiments.inputs import check_inputs
from ollm_rl.experiments.ray_tune import check_resources, ray_stopped_after, run_trials
from ollm_rl.experiments.trials import Trial, plan
from ollm_rl.runs import exclusive_run, write_atomic
from ollm_rl.settings import expect


def run_sweep(config: SweepConfig) -> Path:
    """Run all trials that are not done, print the settings from best to worst, and return the report's path.

    Raises:
        UsageError: If a setting, model or data set does not fit, the machine lacks cores or GPUs, the folder holds
            another or a running sweep, or every trial failed.
    """
    expect(config, SweepConfig)
    trials = plan(config)
    check_resources(config)
    check_inputs(config.out, (trial.config for trial in trials.values()))
    with exclusive_run(config.out, "sweep", config), ray_stopped_after():
        configs = {name: trial.config for name, trial in trials.items()}
        errors = run_trials(
            config.out / "tune",
            configs,
            config,
            metric=config.metric,
            mode=config.mode,
            asha=config.scheduler == "asha",
        )
        return _write_results(config, trials, errors)


def _write_results(config: SweepConfig, trials: Mapping[str, Trial], errors: Mapping[str, str]) -> Path:
    """Write table and report, print the settings, and return the report's path."""
    table = trial_table(trials, errors, config.metric)
    if (table["status"] == "failed").all():
        name, message = next(iter(errors.items()))
        raise UsageError(f"all {len(table)} trials failed; {name}: {message}")
    write_atomic(config.out / "table.csv", table.to_csv(index=False))
    write_atomic(config.out / "table.parquet", table.to_parquet(index=False))
    ranked = setting_table(table, config.metric, config.mode)
    print(ranked.to_string(index=False, float_format="{:.4g}".format, na_rep="–"))
    for name, message in errors.items():
        print(f"failed: {name}: {message}")
    return _report(config, trials, table)


def trial_table(trials: Mapping[str, Trial], errors: Mapping[str, str], metric: str) -> pd.DataFrame:
    """One row per trial: varied settings (``train.NAME``), seed, status, last metrics, mean and spread over its seeds.

    Args:
        trials: Trials by name.
        errors: Messages of the failed trials, by name.
        metric: Metric with the columns ``METRIC_mean`` and ``METRIC_std`` (sample standard deviation) over the
            ``num_seeds`` finished trials that differ only in their seed.

    Returns:
        The table. Its ``status`` is ``finished``, ``stopped`` (early, by the scheduler) or ``failed``; failed trials
        have no metrics.
    """
    rows = []
    for name, trial in trials.items():
        varied = {f"train.{key}": _cell(value) for key, value in trial.varied.items()}
        row: dict[str, Any] = {"trial": name, "setting": trial.setting, **varied, "seed": trial.config.seed}
        iterations = [] if name in errors else history(trial.config.out)
        finished = len(iterations) == trial.config.iterations
        row["status"] = "failed" if name in errors else "finished" if finished else "stopped"
        row["error"] = errors.get(name)
        rows.append({**row, **(iterations[-1] if iterations else {})})
    table = pd.DataFrame(rows)
    if metric not in table:
        table[metric] = float("nan")
    groups = table[table["status"] == "finished"].groupby("setting")[metric]
    spread = groups.agg(["mean", "std", "count"]).set_axis([f"{metric}_mean", f"{metric}_std", "num_seeds"], axis=1)
    table = table.join(spread, on="setting")
    table["num_seeds"] = table["num_seeds"].fillna(0).astype(int)
    return table


def _cell(value: Any) -> Any:
    """The value of a setting in a type that a table cell can have."""
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def setting_table(table: pd.DataFrame, metric: str, mode: str) -> pd.DataFrame:
    """One row per setting, from best to worst."""
    columns = ["setting", f"{metric}_mean", f"{metric}_std", "num_seeds"]
    return table[columns].drop_duplicates("setting").sort_values(f"{metric}_mean", ascending=mode == "min")


def _report(config: SweepConfig, trials: Mapping[str, Trial], table: pd.DataFrame) -> Path:
    """Write the report of the finished trials, with settings in place of methods."""
    finished = table[table["status"] == "finished"]
    methods = {
        str(setting): [str(trials[name].config.out) for name in rows["trial"]]
        for setting, rows in finished.groupby("setting", sort=False)
    }
    path = config.out / "report.html"
    report_methods(path, methods, [], metric=config.metric, mode=config.mode)
    return path
