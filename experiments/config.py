"""Settings of the demo and of sweeps. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from ollm_rl.errors import UsageError
from ollm_rl.settings import Count, NonNegative, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """The whole pipeline on the embedded default."""

    out: Path = Path("runs/demo")
    """Folder of the report and of every stage. The same command resumes where it stopped."""
    iterations: Count = 7
    """Iterations of reinforcement learning for each method, with 256 episodes each."""
    sft_steps: Count = 150
    """Optimiser steps of the option stage."""
    problems: Count = 512
    """Number of held-out problems in the evaluation."""
    seed: Seed = 0
    """Seed of every random stream."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Training runs over a grid of settings, random draws and seeds."""

    out: Path
    """Folder of the table, the report and every run. The same command resumes where it stopped."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of ollm-rl train that all runs share; model is required."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Settings of ollm-rl train, each with a list of values; every combination runs."""
    random: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Settings of ollm-rl train, each as uniform: [low, high], loguniform: [low, high] or choice: [value, ...]."""
    num_samples: Count = 1
    """Draws of the random settings; each is combined with every combination of the grid."""
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
    cpus: Count = 1
    """Cores, and threads, per run."""
    gpus: NonNegative = 0.0
    """GPUs per run; with a fraction, runs share a GPU."""
    max_concurrent: Count | None = None
    """Most runs at the same time; as many as cores and GPUs allow where left out."""
    max_failures: Annotated[int, Ge(0)] = 1
    """How many times a failed run is restarted; it resumes from its checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds={self.seeds} must be at least one, and each of them once")
