"""Settings of evaluation, audit and pages. Nothing heavy is imported, so that ``ollm-rl --help`` is fast."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from ollm_rl.errors import UsageError
from ollm_rl.settings import Count, Machine, PromptSettings, Seed, Settings, Temperature, refuse_changed


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Models and problems."""

    model: list[str]
    """Training runs or their checkpoints, option plug-ins, LoRAs or backbones, by folder or hub id; one or several."""
    data: list[str] = field(default_factory=lambda: ["arith"])
    """Problem sets, one or several: arith, rg:TASK, jsonl:PATH, parquet:PATH or hf:ID."""
    split: str = "test"
    """Split of arith, rg: and hf: sources."""
    columns: str | None = None
    """Names of the columns, where they are not known ones: question=NAME,answer=NAME."""
    limit: Count | None = 512
    """Use only N problems of each set; of files and hf: a sample drawn with the seed."""
    out: Path | None = None
    """Folder for a JSON file per model and problem set, and results.json and results.md of all. The same command skips
    pairs already evaluated. If left out, only the table is printed."""
    seed: Seed = 0
    """Seed of the problems and of sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "data"):
            values = getattr(self, name)
            if not values:
                raise UsageError(f"{name} is empty; give at least one")
            if len(set(values)) < len(values):
                raise UsageError(f"{name}={values} names one twice; leave it out")
        if self.out is not None and (self.out.suffix == ".json" or self.out.is_file()):
            raise UsageError(f"out={str(self.out)!r} must be a folder; it gets a file for each model and problem set")


@dataclass(frozen=True, kw_only=True)
class CompletionSettings(Settings):
    """The completions."""

    sample: bool = False
    """Sample instead of decoding greedily."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample only from the most probable tokens that together have this probability."""
    samples: Count = 1
    """Samples per problem. More give pass@k, avg@k and maj@k: the share of problems that one of k samples solves, the
    mean accuracy, and that of the answer that most samples state."""
    max_new_tokens: Count = 96
    """Token limit per completion."""
    num_slots: Count = 256
    """Episodes decoded in parallel."""
    reward: list[str] = field(default_factory=list)
    """Reward functions of your own to measure too, FILE.py:FUNCTION, one or several. The file is run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sample:
            refuse_changed(self, ["temperature", "top_p", "samples"], "in greedy decoding (give sample=true)")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(EvalSettings, PromptSettings, CompletionSettings, Machine):
    """Evaluation of training runs, option models or backbones: completions, their accuracy and rates."""


@dataclass(frozen=True)  # not keyword-only: the run is a positional argument of the command line
class AuditConfig(Settings):
    """A second check of what a run was rewarded for."""

    run: Path
    """Folder of a training run, or a result file of ollm-rl eval."""
    out: Path | None = None
    """JSON file for the whole result; a summary is printed in any case."""
    reward: list[str] = field(default_factory=list)
    """Reward functions of your own to call again on the completions, FILE.py:FUNCTION, one or several. The file is
    run."""


@dataclass(frozen=True)  # the runs are positional arguments of the command line
class ReportConfig(Settings):
    """A static HTML page that compares training runs."""

    runs: list[Path]
    """Folders of training runs; those that differ only in seed and folder are drawn as one method with intervals."""
    out: Path = Path("report.html")
    """The HTML file."""
    results: Path | None = None
    """Folder that ollm-rl eval --out wrote, for the final table. If left out: the last iteration of training."""
    device: str = "auto"
    """cpu, cuda, cuda:1 and so on, or auto: cuda if available. Used for the option explorer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_page(self.out)


@dataclass(frozen=True, kw_only=True)
class ExploreConfig(PromptSettings, Machine):
    """The option explorer of one prompt, as a static HTML page."""

    model: str
    """Option plug-in or training run over options, by folder or hub id."""
    prompt: str
    """The question for the model."""
    out: Path = Path("explorer.html")
    """The HTML file."""
    max_new_tokens: Count = 96
    """Token limit of the completion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise UsageError("prompt is empty; give a question")
        _check_page(self.out)


def _check_page(out: Path) -> None:
    if out.suffix != ".html":
        raise UsageError(f"out={str(out)!r} must be an HTML file, such as report.html")
