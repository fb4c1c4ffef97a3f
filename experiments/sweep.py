"""Sweeps on Ray Tune over a grid of settings, random draws and seeds, with one table and one report.

Every trial is a separate training run below ``out/trials`` with its own checkpoints. After a failure or a kill, Tune
therefore only has to run the same trial again. The state of Tune is in ``out/tune``.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import torch
from filelock import FileLock, Timeout
from ray import tune
from tqdm import tqdm

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.reporting import report_methods
from ollm_rl.agents.training.run import train_agent
from ollm_rl.errors import UsageError, one_line
from ollm_rl.experiments.config import SweepConfig
from ollm_rl.experiments.trials import Trial, history, plan
from ollm_rl.runs import open_run, write_atomic

OBJECT_STORE = 100 * 2**20  # bytes; trials share files, not objects
SYNC_PERIOD = 10  # seconds between two writes of Tune's state; what a kill loses is restored from the runs' folders
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints at every verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs write their own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops the whole sweep, not one trial after the other
}


def run_sweep(config: SweepConfig) -> Path:
    """Run all trials that are not done, print the settings from best to worst, and return the report's path.

    Raises:
        UsageError: If a setting does not fit, the machine lacks cores or GPUs, the folder holds another or a running
            sweep, or every trial failed.
    """
    trials = plan(config)
    _check_resources(config)
    open_run(config.out, "sweep", config)
    try:
        with FileLock(config.out / "sweep.lock", timeout=0):
            errors = _run_trials(config, trials)
            return _write_results(config, trials, errors)
    except Timeout as error:
        raise UsageError(f"a sweep is running in {config.out}; wait for it or give another out folder") from error


def _check_resources(config: SweepConfig) -> None:
    """Refuse cores or GPUs that the machine lacks, for which Tune would wait forever."""
    for name, requested, available in (
        ("cpus", config.cpus, os.cpu_count() or 1),
        ("gpus", config.gpus, torch.cuda.device_count()),
    ):
        if requested > available:
            raise UsageError(f"{name}={requested:g} for every trial, but this machine has {available}; lower it")


def _run_trials(config: SweepConfig, trials: Mapping[str, Trial]) -> dict[str, str]:
    """Run the trials that have not ended; returns the errors of those that failed permanently."""
    with ray_running():
        grid = _tuner(config, trials).fit()
    return {
        result.config["trial"]: last_line(str(result.error))
        for result in map(grid.__getitem__, range(len(grid)))
        if result.error is not None and result.config is not None
    }


def last_line(traceback: str) -> str:
    """Name and message of the exception at the end of a traceback."""
    lines = traceback.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"[\w.]+(: |$)", line)]
    return one_line(" ".join(lines[starts[-1] if starts else -1 :]))


@contextmanager
def ray_running() -> Iterator[None]:
    """A quiet local Ray: the instance that already runs, or a new one that stops when the block ends."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _tuner(config: SweepConfig, trials: Mapping[str, Trial]) -> tune.Tuner:
    """A new tuner, or the restored tuner of a killed sweep."""
    trainable = tune.with_resources(
        _trainable({name: trial.config for name, trial in trials.items()}, config.metric, config.cpus),
        {"cpu": config.cpus, "gpu": config.gpus},
    )
    state = config.out.absolute() / "tune"
    if any(state.glob("experiment_state-*.json")):
        return tune.Tuner.restore(str(state), trainable, resume_unfinished=True, restart_errored=True)
    scheduler = None
    if config.scheduler == "asha":
        longest = max(trial.config.iterations for trial in trials.values())
        scheduler = tune.schedulers.ASHAScheduler(time_attr="iterations", max_t=longest, reduction_factor=2)
    return tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(
            metric=config.metric,
            mode=config.mode,
            scheduler=scheduler,
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,  # importing torch takes longer than a short trial
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            sync_config=tune.SyncConfig(sync_period=SYNC_PERIOD),
            callbacks=[_Progress()],
            verbose=0,
        ),
    )


def _trainable(configs: dict[str, RLConfig], metric: str, threads: int) -> Callable[[dict[str, Any]], None]:
    """The function that Tune calls to run one trial by its name."""
    working_folder = Path.cwd()

    def run_trial(parameters: dict[str, Any]) -> None:
        os.chdir(working_folder)  # Tune changes the working folder, and settings may contain relative paths
        torch.set_num_threads(threads)
        config = configs[parameters["trial"]]

        def report(row: dict[str, float]) -> None:
            tune.report({"iterations": int(row["iteration"]) + 1, metric: row[metric]})

        for row in history(config):
            report(row)  # iterations before a restart, which the scheduler may not have seen
        train_agent(config, report)

    return run_trial


class _Progress(tune.Callback):
    """A progress bar over the trials that have ended."""

    def setup(self, *arguments: Any, total_num_samples: int | None = None, **info: Any) -> None:
        self.bar = tqdm(total=total_num_samples, desc="trials")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended = {each.trial_id for each in trials if each.is_finished()} | {trial.trial_id}
        self.bar.update(len(ended) - self.bar.n)

    on_trial_error = on_trial_complete

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.bar.close()


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
        iterations = [] if name in errors else history(trial.config)
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
    report_methods(path, methods, [])
    return path
