"""Settings of demo, sweeps and comparisons. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ollm_rl.errors import UsageError
from ollm_rl.settings import Coefficient, Count, CountOrZero, Seed, Settings, Weight


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """The whole pipeline on the embedded default."""

    out: Path = Path("runs/demo")
    """Folder of the report and of every stage. The same command resumes where it stopped."""
    episodes: Count = 1024
    """Episodes of reinforcement learning for each method."""
    sft_steps: Count = 300
    """Optimiser steps of the option stage."""
    problems: Count = 512
    """Number of held-out problems in the evaluation."""
    seed: Seed = 0
    """Seed of every random stream."""


@dataclass(frozen=True, kw_only=True)
class ResourceSettings(Settings):
    """Resources."""

    cpus: Count = 1
    """Cores, and threads, per run."""
    gpus: Coefficient = 0.0
    """GPUs per run; with a fraction, runs share a GPU."""
    max_concurrent: Count | None = None
    """Most runs at the same time; if left out, as many as cores and GPUs allow."""
    max_failures: CountOrZero = 1
    """How many times a failed run is restarted; it resumes from its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan(Settings):
    """The sweep."""

    out: Path
    """Folder of the table, the report and every run. The same command resumes where it stopped."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of ollm-rl train that all runs share; model is required."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Settings of ollm-rl train, each with a list of values; every combination runs."""
    random: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Settings of ollm-rl train, each as uniform: [low, high], loguniform: [low, high] or choice: [value, ...]."""
    num_samples: Count = 1
    """Draws of the random settings, each with every combination of the grid. One that is drawn again runs once."""
    sample_seed: Seed = 0
    """Seed of these draws."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Every setting runs once with each of these seeds."""
    metric: Literal[
        "reward", "reward_correctness", "completion_tokens", "language_switching_rate", "degeneracy_rate"
    ] = "reward"
    """Metric that ranks the settings and that ASHA compares."""
    mode: Literal["max", "min"] = "max"
    """Whether higher or lower values of the metric are better."""
    scheduler: Literal["none", "asha"] = "none"
    """ASHA stops a run early if its metric is in the worse half of the runs that reached the same iteration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds={self.seeds} must be at least one, and each of them once")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SweepPlan, ResourceSettings):
    """Training runs over a grid of settings, random draws and seeds."""


@dataclass(frozen=True, kw_only=True)
class ComparePlan(Settings):
    """The comparison."""

    out: Path
    """Folder of the table, the report and every run. The same command resumes where it stopped."""
    methods: dict[str, dict[str, dict[str, Any]]]
    """Methods by name. Each may have train (settings of ollm-rl train) and random (settings to tune, as below)."""
    baseline: str
    """Name of the method with which the others are compared."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of ollm-rl train that all methods share."""
    random: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Settings that all methods tune, each as uniform: [low, high], loguniform: [low, high] or choice: [value, ...]."""
    max_episodes: Count = 1024
    """Episodes of every run; the number of iterations follows."""
    num_trials: Count = 16
    """Random settings that every method tries, each with all tuning seeds."""
    max_widenings: CountOrZero = 2
    """How often ranges are widened while a best setting is at an edge. Every method then tries half as many again."""
    tuning_seeds: list[Seed] = field(default_factory=lambda: [1000, 1001])
    """Seeds of the trials."""
    seeds: list[Seed] = field(default_factory=lambda: list(range(10)))
    """Fresh seeds, with which the chosen settings run."""
    sample_seed: Seed = 0
    """Seed of the random settings."""
    thresholds: list[Weight] = field(default_factory=lambda: [0.9, 0.95])
    """Mean rewards to reach."""
    window: Count = 96
    """Number of last episodes that a mean reward is taken over."""
    eval_data: str | None = None
    """Problems of the final evaluation, in the format of data. If left out: data of the runs, if that has splits."""
    eval_split: str | None = None
    """Split of the final evaluation; test if left out."""
    eval_columns: str | None = None
    """Names of the columns of eval_data, as for data."""
    eval_limit: Count = 512
    """Evaluate on only N problems; of files and hf: a sample, the same for all runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in self.methods:
            raise UsageError(f"baseline={self.baseline!r} is no method; give one of {', '.join(self.methods)}")
        if self.window > self.max_episodes:
            raise UsageError(f"window={self.window} is more than max_episodes={self.max_episodes}; lower it")
        for name, method in self.methods.items():
            if not re.fullmatch(r"[\w .+-]+", name):
                raise UsageError(f"method {name!r} becomes a folder; name it with letters, digits, spaces and _ . + -")
            if unknown := set(method) - {"train", "random"}:
                raise UsageError(f"method {name!r} has {', '.join(sorted(unknown))}; give train and random")
        for name in ("seeds", "tuning_seeds"):
            seeds = getattr(self, name)
            if not seeds or len(set(seeds)) < len(seeds):
                raise UsageError(f"{name}={seeds} must be at least one, and each of them once")
        if both := set(self.seeds) & set(self.tuning_seeds):
            raise UsageError(f"seeds and tuning_seeds share {min(both)}; the final runs need fresh seeds")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ComparePlan, ResourceSettings):
    """Methods tuned alike and then compared on fresh seeds."""
