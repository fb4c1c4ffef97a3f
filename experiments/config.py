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
    """Folder of the report and of every stage. The same command goes on where it stopped."""
    iterations: Count = 7
    """Rounds of reinforcement learning of every method; 256 episodes each."""
    sft_steps: Count = 150
    """Optimiser steps of the option stage."""
    problems: Count = 512
    """Held-out problems of the evaluation."""
    seed: Seed = 0
    """Seed of every random stream."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Training runs over a grid of settings, random draws and seeds."""

    out: Path
    """Folder of the table, the report and every run. The same command goes on where it stopped."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of ollm-rl train that all runs share; model is needed."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Settings of ollm-rl train, each with its values; every combination runs."""
    random: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Settings of ollm-rl train, each as uniform: [low, high], loguniform: [low, high] or choice: [value, ...]."""
    num_samples: Count = 1
    """Draws of the random settings; each meets every combination of the grid."""
    sample_seed: Seed = 0
    """Seed of these draws."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Every setting runs once with each of these seeds."""
    metric: Literal[
        "reward", "reward_correctness", "completion_tokens", "language_switching_rate", "degeneracy_rate"
    ] = "reward"
    """What ranks the settings, and what ASHA compares."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better, or less."""
    scheduler: Literal["none", "asha"] = "none"
    """ASHA ends a run early whose metric is among the worse half of those that came as far."""
    cpus: Count = 1
    """Cores, and threads, of a run."""
    gpus: NonNegative = 0.0
    """GPUs of a run; a fraction lets runs share one."""
    max_concurrent: Count | None = None
    """Most runs side by side; as many as cores and GPUs allow where left out."""
    max_failures: Annotated[int, Ge(0)] = 1
    """A run that fails is started again so many times; it goes on from its checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds={self.seeds} must be at least one, and each of them once")
