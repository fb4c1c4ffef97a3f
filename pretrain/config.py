"""Settings of the supervised stage. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from ollm_rl.errors import UsageError
from ollm_rl.options.config import OptionConfig
from ollm_rl.settings import (
    Count,
    Machine,
    Positive,
    PromptSettings,
    ReportSettings,
    Seed,
    Settings,
    Width,
    refuse_changed,
)


@dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """The run."""

    out: Path
    """Folder of the run: checkpoints, TensorBoard files and the result. The same command resumes it."""
    stage: Literal["options", "backbone", "lora"] = "options"
    """What is trained: the option plug-in on the frozen backbone, all weights of the backbone, or a LoRA on it."""
    backbone: str = "tiny-arith"
    """tiny-arith, smollm2-135m, a local folder, or an id on the Hugging Face hub."""
    seed: Seed = 0
    """Seed of the initial weights, of the problems (limit) and of their order."""
    save_steps: Count = 50
    """Steps between two checkpoints; a multiple of logging_steps, so that a resumed run logs the same means."""
    logging_steps: Count = 10
    """Steps between two lines of metrics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.save_steps % self.logging_steps:
            raise UsageError(
                f"save_steps={self.save_steps} is no multiple of logging_steps={self.logging_steps}; change one"
            )


@dataclass(frozen=True, kw_only=True)
class SolutionSettings(Settings):
    """The worked solutions."""

    data: str = "arith"
    """Problems with solutions: arith, jsonl:PATH, parquet:PATH or hf:ID."""
    split: str | None = None
    """Split of arith and hf: sources; train if left out."""
    columns: str | None = None
    """Names of the columns, where they are not known ones: question=NAME,solution=NAME,answer=NAME. Without an answer
    it is what the solution states in its last box or after ####."""
    limit: Count | None = None
    """Use only N problems; of files and hf: a sample drawn with the seed. All if left out."""
    held_out: str | None = None
    """Source like data, whose questions are kept out of training."""
    held_out_split: str | None = None
    """Split of held_out; test if left out."""
    held_out_columns: str | None = None
    """Names of the columns of held_out, as for data."""
    max_length: Count = 512
    """Maximum tokens of prompt and completion together; a longer completion is cut at its end."""
    cache: Path | None = None
    """Folder for the frozen backbone's hidden states, which are then computed once for all epochs and runs (stage
    options)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out is None:
            refuse_changed(self, ["held_out_split", "held_out_columns"], "without held_out")


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings(Settings):
    """The optimiser."""

    max_steps: Count = 300
    """Optimiser steps."""
    epochs: Annotated[float, Interval(gt=0, le=10**6)] | None = None
    """Passes over the solutions, in place of max_steps; may be a fraction."""
    batch_size: Count = 64
    """Solutions per optimiser step."""
    gradient_accumulation_steps: Count = 1
    """Passes into which a step's solutions are split to bound memory (stages backbone and lora; the options are always
    trained in bounded passes)."""
    learning_rate: Positive = 1e-3
    """Peak learning rate, after a warm-up over 5 % of the steps; then it decays along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None:
            refuse_changed(self, ["max_steps"], f"with epochs={self.epochs:g}")
        passes = self.gradient_accumulation_steps
        if self.batch_size % passes:
            raise UsageError(f"batch_size={self.batch_size} is no multiple of {passes} passes; change one")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(Settings):
    """The plug-in or LoRA."""

    options: OptionConfig = field(default_factory=OptionConfig)
    """The plug-in's shape and loss (stage options)."""
    lora_rank: Width = 16
    """Rank of the LoRA (stage lora)."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig(
    StageSettings, SolutionSettings, PromptSettings, OptimiserSettings, AdapterSettings, ReportSettings, Machine
):
    """Supervised fine-tuning of the options, the backbone itself or a LoRA on it, on worked solutions.

    ``dtype`` is the precision of the frozen backbone (stages options and lora) or of its matrix products (stage
    backbone).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        by_stage = {"options": ["cache", "options"], "lora": ["lora_rank", "gradient_accumulation_steps"]}
        by_stage["backbone"] = ["gradient_accumulation_steps"]
        unused = {name for names in by_stage.values() for name in names} - set(by_stage[self.stage])
        refuse_changed(self, sorted(unused), f"in stage {self.stage}")
        if self.options.estimator == "exact":  # not in OptionConfig, since saved plug-ins may have it
            refuse_changed(self.options, ["gumbel_temperature"], "by estimator=exact")


@dataclass(frozen=True, kw_only=True)
class TeacherForcedConfig(PromptSettings, Machine):
    """Teacher-forced scores of backbone, LoRA, oracle over options, encoder, policy and mixture on worked solutions."""

    model: str
    """Folder or hub id of an option plug-in."""
    lora: str | None = None
    """Folder of a peft LoRA on the same backbone, which is compared with the options."""
    data: str = "arith"
    """Problems with solutions: arith, jsonl:PATH, parquet:PATH or hf:ID."""
    split: str = "test"
    """Split of arith and hf: sources."""
    columns: str | None = None
    """Names of the columns, where they are not known ones: question=NAME,solution=NAME,answer=NAME."""
    limit: Count | None = 512
    """Use only N problems; of files and hf: a sample drawn with the seed."""
    out: Path | None = None
    """JSON file of the result; an HTML report of the same stem is written beside it. If left out, only the table is
    printed."""
    seed: Seed = 0
    """Seed of the problems and of the bootstrap."""
