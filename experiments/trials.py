"""The trials of a sweep: settings of a run for every combination of grid, random draw and seed."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ollm_rl.agents.config import RLConfig
from ollm_rl.errors import UsageError, extra
from ollm_rl.experiments.config import SweepConfig
from ollm_rl.settings.base import checked, from_text, read_settings
from ollm_rl.streams import Purpose, numpy_generator

with extra("ray"):
    from ray import tune

DISTRIBUTIONS = ("uniform", "loguniform", "choice")
NAME_LENGTH = 120  # most characters of the name of a trial's folder


class Trial(NamedTuple):
    """One run: its settings, those that vary within the sweep, and the latter as text, which all its seeds share."""

    config: RLConfig
    varied: dict[str, Any]
    setting: str


def plan(config: SweepConfig) -> dict[str, Trial]:
    """All trials by name, with the seeds of a setting next to each other. Equal sweeps give equal trials.

    Raises:
        UsageError: If a setting is unknown, given twice, or has a value that ``ollm-rl train`` would refuse.
    """
    _check_names(config)
    out = config.out.absolute() / "trials"
    # A trial without a GPU may still see the GPUs, so its device is set.
    shared = {"device": "auto" if config.gpus else "cpu", **config.train}
    trials: dict[str, Trial] = {}
    for varied in _settings(config):
        setting = setting_text(varied) or "all settings fixed"
        for seed in config.seeds:
            label = re.sub(r"[^\w=.,+-]", "_", f"{setting}, seed={seed}".replace(", ", ","))
            name = f"{len(trials):03d}-{label}"[:NAME_LENGTH]
            trials[name] = Trial(
                parse_settings({**shared, **varied, "seed": seed, "out": str(out / name)}), varied, setting
            )
    return trials


def _check_names(config: SweepConfig) -> None:
    known = {field.name for field in dataclasses.fields(RLConfig)}
    names = [*config.train, *config.grid, *config.random]
    for name in names:
        if name in ("seed", "out"):
            raise UsageError(f"{name!r} cannot be a setting of the sweep's runs; give seeds and out of the sweep")
        if name not in known:
            raise UsageError(f"setting {name!r} is unknown; ollm-rl train --help lists all settings")
        if names.count(name) > 1:
            raise UsageError(f"setting {name!r} is given twice; leave it in one of train, grid and random")
    if "model" not in names:
        raise UsageError("model is missing among the settings in train; give the folder of an ollm-rl sft")
    for name, values in config.grid.items():
        if not isinstance(values, list):
            raise UsageError(f"grid has {values!r} for {name!r}; give a list, such as [{values!r}]")
        if not values:
            raise UsageError(f"grid has no values for {name!r}; give at least one")
        if len(set(map(repr, values))) < len(values):
            raise UsageError(f"grid has one value of {name!r} twice: {values}; leave it out")


def _settings(config: SweepConfig) -> Iterator[dict[str, Any]]:
    """The varied settings: each random draw that differs with each combination of the grid."""
    domains = {name: domain(name, specification) for name, specification in config.random.items()}
    generator = numpy_generator(config.sample_seed, Purpose.SWEEP)
    every: list[dict[str, Any]] = []
    for _ in range(config.num_samples if domains else 1):
        drawn = draw(domains, generator)
        # A choice may be drawn again. Its runs would be the same, and count twice in means and spreads.
        every += [drawn] if drawn not in every else []
    for drawn in every:
        for values in itertools.product(*config.grid.values()):
            yield {**dict(zip(config.grid, values, strict=True)), **drawn}


def domain(name: str, specification: dict[str, list[Any]]) -> Any:
    """Tune's sampling domain of a random setting."""
    kind, values = kind_and_values(name, specification)
    distributions = {"uniform": tune.uniform, "loguniform": tune.loguniform}
    return tune.choice(values) if kind == "choice" else distributions[kind](*values)


def kind_and_values(name: str, specification: dict[str, list[Any]]) -> tuple[str, list[Any]]:
    """The distribution of a random setting, and the values of a choice or the ends of a range as numbers.

    Raises:
        UsageError: If there is no such distribution, or its values do not fit it.
    """
    (kind, values), *others = [*specification.items()] or [("nothing", [])]
    if others or kind not in DISTRIBUTIONS or not isinstance(values, list):
        raise UsageError(
            f"random setting {name!r} is {specification}; give one of {', '.join(DISTRIBUTIONS)} with a list"
        )
    if kind == "choice":
        if not values:
            raise UsageError(f"random setting {name!r} has nothing to choose from; give at least one value")
        return kind, values
    ends = [checked(f"random setting {name!r}", from_text(value, float), float) for value in values]
    if len(ends) != 2 or not ends[0] < ends[1] or (kind == "loguniform" and not ends[0] > 0):
        raise UsageError(f"random setting {name!r} is {kind}: {values}; give [low, high], above 0 for loguniform")
    return kind, ends


def draw(domains: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """One random value of every setting."""
    values = {name: domain.sample(random_state=generator) for name, domain in domains.items()}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def setting_text(varied: dict[str, Any]) -> str:
    """Varied settings as text, such as ``learning_rate=0.003, episodes=16``."""
    return ", ".join(f"{name}={_text(value)}" for name, value in varied.items())


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def parse_settings(settings: dict[str, Any]) -> RLConfig:
    """Settings of a run, read as the command line reads them."""
    return read_settings(RLConfig, settings)
