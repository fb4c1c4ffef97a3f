"""Metrics in the services that ``report_to`` names: Weights & Biases, Trackio and MLflow, by their own packages.

TensorBoard files are written by the trainers themselves. A service that fails later costs no run: it is left out.
"""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ollm_rl.errors import MissingError, UsageError, one_line
from ollm_rl.files.records import read_object
from ollm_rl.processes import rank
from ollm_rl.runs import write_atomic

PROJECT = "huggingface"  # as in transformers and TRL, whose environment variables hold here too
IDS_FILE = "trackers.json"  # in the folder of a run: by which name or id each service knows it


class Tracked(NamedTuple):
    """A run in a service: the id that finds it again, and what logs values at a step and ends it."""

    id: str
    log: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def _wandb(name: str, known: str | None, settings: dict[str, Any]) -> Tracked:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    run = wandb.init(project=project, name=name, id=known, resume="allow", config=settings)
    run.define_metric("*", step_metric="step")
    return Tracked(run.id, lambda values, step: run.log(values | {"step": step}), run.finish)


def _trackio(name: str, known: str | None, settings: dict[str, Any]) -> Tracked:
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    run = trackio.init(project, name=known or name, resume="allow" if known else "never", config=settings)
    return Tracked(run.name, lambda values, step: trackio.log(values, step=step), trackio.finish)


def _mlflow(name: str, known: str | None, settings: dict[str, Any]) -> Tracked:
    import mlflow

    run = mlflow.start_run(run_id=known, run_name=name)
    if known is None:  # parameters of a run cannot change
        mlflow.log_params(settings)
    return Tracked(run.info.run_id, lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run)


SERVICES: dict[str, Callable[[str, str | None, dict[str, Any]], Tracked]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def require_packages(report_to: Sequence[str]) -> None:
    """Refuse services whose packages are missing, before anything is done.

    Raises:
        MissingError: It says what to install.
    """
    for name in report_to:
        # A folder ``wandb``, into which that service writes, is found too, but has no origin.
        if name in SERVICES and getattr(importlib.util.find_spec(name), "origin", None) is None:
            raise MissingError(f"report_to={name!r} needs the package {name}; run: pip install {name}")


class Trackers:
    """A run in the services of ``report_to``, a context; of several processes the first one reports.

    Args:
        report_to: Names; those that are no services are ignored.
        out: Folder of the run. A run that is resumed there continues in each service.
        settings: Settings of the run, as the services show them.
    """

    def __init__(self, report_to: Sequence[str], out: Path, settings: Mapping[str, Any]) -> None:
        self._names = [name for name in report_to if name in SERVICES and rank() == 0]
        self._out = out
        self._settings: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        self._runs: dict[str, Tracked] = {}

    def __enter__(self) -> "Trackers":
        """Begin or find the runs.

        Raises:
            UsageError: If a service refuses.
        """
        path = self._out / IDS_FILE
        ids = read_object(path) if self._names and path.exists() else {}
        for name in self._names:
            try:
                self._runs[name] = SERVICES[name](str(self._out), ids.get(name), self._settings)
            except Exception as error:  # each service has its own
                self.__exit__()
                raise UsageError(
                    f"report_to={name!r} does not work ({one_line(error)}); log in there, or leave it out"
                ) from error
        if self._runs:
            write_atomic(path, json.dumps(ids | {name: run.id for name, run in self._runs.items()}))
        return self

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Report the finite numbers among values."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name in list(self._runs):
            self._try(name, lambda name=name: self._runs[name].log(numbers, step))  # type: ignore[misc]

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """End the runs in the services."""
        for name in list(self._runs):
            self._try(name, self._runs[name].close)
        self._runs.clear()

    def _try(self, name: str, call: Callable[[], None]) -> None:
        """Call a service; one that fails is left out from here on, since metrics.json has everything."""
        try:
            call()
        except Exception as error:
            self._runs.pop(name, None)
            print(f"{self._out.name}: {name} has failed and gets no more metrics ({one_line(error)})", file=sys.stderr)
