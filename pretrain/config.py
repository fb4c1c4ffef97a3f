"""Settings of the supervised stage. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on worked solutions: of the options, of the backbone itself, or of a LoRA on it."""

    out: Path
    """Folder of the run: checkpoints, TensorBoard files and the result. The same command goes on where it stopped."""
    stage: Literal["options", "backbone", "lora"] = "options"
    """What is trained: the option plug-in on the frozen backbone, all weights of the backbone, or a LoRA on it."""
    backbone: str = "tiny-arith"
    """tiny-arith, smollm2-135m, a local folder, or an id on the Hugging Face hub."""
    data: str = "arith"
    """Problems with solutions: arith, rg:TASK, jsonl:PATH or hf:ID."""
    limit: int | None = None
    """Use the first so many problems; all where left out."""
    held_out: str | None = None
    """Problems whose questions are kept out of training: a source as for data, of arith, rg: and hf: its test split."""
    cache: Path | None = None
    """Folder for the frozen backbone's hidden states, which are then computed once for all epochs and runs (stage
    options)."""
    max_steps: int = 300
    """Optimiser steps."""
    batch_size: int = 64
    """Solutions in a step."""
    gradient_accumulation_steps: int = 1
    """Passes over which a step's solutions are spread, which bounds memory (stages backbone and lora; options are read
    in bounded passes anyway)."""
    learning_rate: float = 1e-3
    """Peak learning rate; warms up over 5 % of the steps and falls along a cosine."""
    max_length: int = 512
    """Longest prompt with completion, in tokens; the end of a longer completion is cut."""
    options: OptionConfig = field(default_factory=OptionConfig)
    """The plug-in's shape and loss (stage options)."""
    lora_rank: int = 16
    """Rank of the LoRA (stage lora)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen backbone (stages options and lora) or of its matrix products (stage backbone)."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    save_steps: int = 50
    """Steps between two checkpoints; a multiple of logging_steps, so that a resumed run logs the same means."""
    logging_steps: int = 10
    """Steps between two lines of metrics."""

    def __post_init__(self) -> None:
        counts = ("max_steps", "batch_size", "gradient_accumulation_steps", "max_length", "save_steps", "logging_steps")
        for name in (*counts, "lora_rank"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        passes = self.gradient_accumulation_steps
        if self.batch_size % passes:
            raise UsageError(f"batch_size={self.batch_size} is no multiple of {passes} passes; change one")
        if passes > 1 and self.stage == "options":
            raise UsageError(
                f"gradient_accumulation_steps={passes} serves stages backbone and lora, not options; leave it out"
            )
        if self.save_steps % self.logging_steps:
            raise UsageError(
                f"save_steps={self.save_steps} is no multiple of logging_steps={self.logging_steps}; change one"
            )
        if self.cache is not None and self.stage != "options":
            raise UsageError(f"cache={str(self.cache)!r} serves stage options alone, not {self.stage}; leave it out")
        if not self.learning_rate > 0:
            raise UsageError(f"learning_rate={self.learning_rate} must be positive")
