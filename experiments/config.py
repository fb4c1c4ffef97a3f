"""Settings of the demo. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ollm_rl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole pipeline on the embedded default."""

    out: Path = Path("runs/demo")
    """Folder of the report and of every stage. The same command goes on where it stopped."""
    iterations: int = 7
    """Rounds of reinforcement learning of every method; 256 episodes each."""
    sft_steps: int = 150
    """Optimiser steps of the option stage."""
    problems: int = 512
    """Held-out problems of the evaluation."""
    seed: int = 0
    """Seed of every random stream."""

    def __post_init__(self) -> None:
        for name in ("iterations", "sft_steps", "problems"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Training runs over a grid of settings, random draws and seeds."""

    out: Path
    """Folder of the table, the report and every run. The same command goes on where it stopped."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of ollm-rl train that all runs share; model is needed."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Settings of ollm-rl train, each with its values; every combination runs."""
    random: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Settings of ollm-rl train, each as uniform: [low, high], loguniform: [low, high] or choice: [value, ...]."""
    num_samples: int = 1
    """Draws of the random settings; each meets every combination of the grid."""
    sample_seed: int = 0
    """Seed of these draws."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Every setting runs once with each of these seeds."""
    metric: Literal[
        "reward", "reward_correctness", "completion_tokens", "language_switching_rate", "degeneracy_rate"
    ] = "reward"
    """What ranks the settings, and what ASHA compares."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better, or less."""
    scheduler: Literal["none", "asha"] = "none"
    """ASHA ends a run early whose metric is among the worse half of those that came as far."""
    cpus: int = 1
    """Cores, and threads, of a run."""
    gpus: float = 0.0
    """GPUs of a run; a fraction lets runs share one."""
    max_concurrent: int | None = None
    """Most runs side by side; as many as cores and GPUs allow where left out."""
    max_failures: int = 1
    """A run that fails is started again so many times; it goes on from its checkpoint."""

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise UsageError("a sweep needs Ray: pip install 'ollm-rl[ray]'")
        for name in ("num_samples", "cpus"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise UsageError(f"max_concurrent={self.max_concurrent} must be at least 1")
        if self.gpus < 0 or self.max_failures < 0:
            raise UsageError(f"gpus={self.gpus} and max_failures={self.max_failures} must be at least 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds={self.seeds} must be at least one, and each of them once")
