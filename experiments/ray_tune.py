"""Training runs as trials of Ray Tune.

Every trial is a separate training run with its own folder and checkpoints. After a failure or a kill, Tune therefore
only has to run the same trial again. Tune's own state is pickled, so it is kept in a temporary folder and
never read. Which trials have ended is kept in ``ended.json``.
"""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.evaluation.groups import history
from ollm_rl.agents.training.run import train_agent
from ollm_rl.errors import UsageError, extra, one_line
from ollm_rl.experiments.config import ResourceSettings
from ollm_rl.files.records import read_object
from ollm_rl.runs import write_atomic

with extra("ray"):
    import ray
    from ray import tune

OBJECT_STORE = 100 * 2**20  # bytes; trials share files, not objects
ENDED_FILE = "ended.json"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints at every verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs write their own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops all trials, not one after the other
}


def run_trials(
    state: Path,
    configs: Mapping[str, RLConfig],
    resources: ResourceSettings,
    *,
    metric: str = "reward",
    mode: Literal["max", "min"] = "max",
    asha: bool = False,
    finish: Callable[[RLConfig], object] | None = None,
) -> dict[str, str]:
    """Run the trials that have not ended; returns the errors of those that failed permanently, by name.

    Args:
        state: Folder of the list of trials that have ended, finished or stopped by ASHA. They are not run again.
        configs: Settings of the runs by name.
        resources: Cores and GPUs of a run, and how many run at the same time.
        metric: What is reported to Tune after every iteration.
        mode: Whether higher or lower values of the metric are better.
        asha: Whether ASHA stops the worse runs early.
        finish: Called in a trial's process with its settings, once its training has ended.
    """
    progress = _Progress(state, len(configs))
    remaining = {name: config for name, config in configs.items() if name not in progress.ended}
    if not remaining:
        return {}
    start_ray()
    with tempfile.TemporaryDirectory(prefix="ollm-rl-tune-") as storage:
        trainable = tune.with_resources(
            _trainable(remaining, metric, resources.cpus, finish), {"cpu": resources.cpus, "gpu": resources.gpus}
        )
        grid = _tuner(Path(storage), trainable, remaining, resources, progress, metric, mode, asha).fit()
    return {
        result.config["trial"]: last_line(str(result.error))
        for result in map(grid.__getitem__, range(len(grid)))
        if result.error is not None and result.config is not None
    }


def check_resources(resources: ResourceSettings) -> None:
    """Refuse cores or GPUs that the machine lacks, for which Tune would wait forever."""
    for name, requested, available in (
        ("cpus", resources.cpus, os.cpu_count() or 1),
        ("gpus", resources.gpus, torch.cuda.device_count()),
    ):
        if requested > available:
            raise UsageError(f"{name}={requested:g} for every trial, but this machine has {available}; lower it")


def last_line(traceback: str) -> str:
    """Name and message of the exception at the end of a traceback."""
    lines = traceback.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"[\w.]+(: |$)", line)]
    return one_line(" ".join(lines[starts[-1] if starts else -1 :]))


def start_ray() -> None:
    """Start a quiet local Ray, unless one runs already; `ray_stopped_after` stops it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


@contextmanager
def ray_stopped_after() -> Iterator[None]:
    """All `run_trials` within the block share one Ray. It starts with the first trials and stops with the block."""
    if ray.is_initialized():
        yield
        return
    try:
        yield
    finally:
        ray.shutdown()


def _tuner(
    storage: Path,
    trainable: Any,
    configs: Mapping[str, RLConfig],
    resources: ResourceSettings,
    progress: "_Progress",
    metric: str,
    mode: Literal["max", "min"],
    asha: bool,
) -> tune.Tuner:
    """A tuner of trials, whether they begin or resume."""
    scheduler = None
    if asha:
        longest = max(config.iterations for config in configs.values())
        scheduler = tune.schedulers.ASHAScheduler(time_attr="iterations", max_t=longest, reduction_factor=2)
    return tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(configs))},
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode,
            scheduler=scheduler,
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=True,  # importing torch takes longer than a short trial
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=str(storage.parent),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            callbacks=[progress],
            verbose=0,
        ),
    )


def _trainable(
    configs: dict[str, RLConfig], metric: str, threads: int, finish: Callable[[RLConfig], object] | None
) -> Callable[[dict[str, Any]], None]:
    """The function that Tune calls to run one trial by its name."""
    working_folder, command = Path.cwd(), list(sys.argv)

    def run_trial(parameters: dict[str, Any]) -> None:
        os.chdir(working_folder)  # Tune changes the working folder, and settings may contain relative paths
        sys.argv[:] = command  # the one that a run records, in place of the worker's
        torch.set_num_threads(threads)
        config = configs[parameters["trial"]]

        def report(row: dict[str, float]) -> None:
            tune.report({"iterations": int(row["iteration"]) + 1, metric: row[metric]})

        for row in history(config.out):
            report(row)  # iterations before a restart, which the scheduler may not have seen
        train_agent(config, report)
        if finish is not None:
            finish(config)

    return run_trial


class _Progress(tune.Callback):
    """Keeps which trials have ended, on disk and as a progress bar.

    Args:
        state: Folder of the list.
        total: Number of all trials.

    Attributes:
        ended: Names of those that ended without an error.
    """

    def __init__(self, state: Path, total: int) -> None:
        self.path, self.total = state.absolute() / ENDED_FILE, total
        self.ended: list[str] = []
        if self.path.exists():
            remedy = "delete it, then every trial is looked at again"
            self.ended = read_object(self.path, {"ended": list}, remedy=remedy)["ended"]

    def setup(self, *arguments: Any, **info: Any) -> None:
        self.bar = tqdm(total=self.total, initial=len(self.ended), desc=self.path.parent.name)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(trial.config["trial"])
        write_atomic(self.path, json.dumps({"ended": self.ended}, indent=1))
        self.bar.update()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.bar.update()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.bar.close()
