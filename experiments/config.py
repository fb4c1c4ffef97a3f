"""Settings of the demo. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass
from pathlib import Path


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
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
