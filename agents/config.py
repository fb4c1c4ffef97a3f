"""Settings of training and evaluation. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the reward's terms (`ollm_rl.envs.rewards`). With correctness alone nothing else is computed."""

    correctness: float = 1.0
    """Of 1 for a right answer."""
    format: float = 0.0
    """Of 1 for an answer that is stated: boxed, after ####, or "the answer is"."""
    length: float = 0.0
    """Of 0 for an empty completion down to -1 for one at the token limit."""
    language: float = 0.0
    """Of 1 for a completion in the language of its question."""
    repetition: float = 0.0
    """Of minus the share of repeated sequences of four words."""


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Reinforcement learning from answer correctness, over options or over tokens."""

    out: Path
    """Folder of the run: checkpoint, metrics, TensorBoard files. The same command goes on where it stopped."""
    model: str
    """Folder of an option SFT run. Over tokens its backbone is trained; a backbone's name does there, too."""
    action_space: Literal["options", "tokens"] = "options"
    """Options: a policy over the K options on frozen hidden states. Tokens: a LoRA on the backbone."""
    algorithm: Literal["ppo", "reinforce"] = "reinforce"
    """PPO: clipped ratio, GAE with a value head. REINFORCE: rewards normalised within each group of one prompt."""
    data: str = "arith"
    """Problems: arith, rg:TASK, jsonl:PATH or hf:ID."""
    limit: int | None = None
    """Use the first so many problems; all where left out."""
    iterations: int = 12
    """Rounds of rollout and update."""
    episodes: int = 256
    """Episodes of an iteration."""
    group_size: int = 8
    """Episodes of one prompt; divides the episodes."""
    max_new_tokens: int = 96
    """Token limit of a completion."""
    num_slots: int = 256
    """Episodes decoded side by side."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    minibatches: int = 4
    """Optimiser steps of one pass over an iteration's episodes."""
    epochs: int = 1
    """Passes over an iteration's episodes."""
    clip_range: float = 0.2
    """PPO's bound on the probability ratio."""
    gamma: float = 1.0
    """Discount a decision."""
    gae_lambda: float = 1.0
    """Weight of GAE's longer returns."""
    vf_coef: float = 0.5
    """Weight of the value loss (PPO)."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    lora_rank: int = 16
    """Rank of the LoRA (tokens)."""
    micro_batch: int = 64
    """Sequences in one forward and backward pass (tokens); bounds memory, not the result."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Weights of the reward's terms."""
    failure_reward: float = 0.0
    """Correctness of a completion whose check broke or ran out of time; such are counted as verifier_failures."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    seed: int = 0
    """Seed of every random stream; runs of one seed see the same prompts in the same order."""

    def __post_init__(self) -> None:
        for name in ("iterations", "episodes", "group_size", "max_new_tokens", "num_slots", "minibatches", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.episodes % self.group_size:
            raise ValueError(f"episodes={self.episodes} is no multiple of group_size={self.group_size}; change one")
        if self.algorithm == "reinforce" and self.group_size < 2:
            raise ValueError("group_size=1 leaves REINFORCE no baseline; give at least 2, or use algorithm ppo")
        if self.minibatches > self.episodes:
            raise ValueError(f"minibatches={self.minibatches} is more than episodes={self.episodes}; lower it")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation of trained runs, option models or backbones."""

    model: list[str]
    """Folders of training runs or of option SFT runs, or backbones' names; one or several."""
    data: list[str] = field(default_factory=lambda: ["arith"])
    """Problem sets, one or several: arith, rg:TASK, jsonl:PATH or hf:ID."""
    mode: Literal["free-running", "teacher-forced"] = "free-running"
    """Free-running: completions, their accuracy and rates. Teacher-forced: what backbone, LoRA, oracle over options,
    encoder, policy and mixture say of each token of given solutions (one option SFT run on one problem set)."""
    lora: str | None = None
    """Folder of a LoRA of peft on the same backbone, compared with the options (teacher-forced)."""
    out: Path | None = None
    """Free-running: folder for a JSON file of each model and problem set, and results.json and results.md of all; the
    same command goes on where it stopped. Teacher-forced: JSON file, beside it an HTML report of the same stem. Where
    left out, the table is printed alone."""
    split: str = "test"
    """Split of arith, rg: and hf: sources."""
    limit: int | None = 512
    """Use the first so many problems of each set."""
    sample: bool = False
    """Sample at temperature 1 instead of decoding greedily."""
    max_new_tokens: int = 96
    """Token limit of a completion."""
    num_slots: int = 256
    """Episodes decoded side by side."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    seed: int = 0
    """Seed of the problems (arith, rg:) and of sampling."""

    def __post_init__(self) -> None:
        if self.lora is not None and self.mode != "teacher-forced":
            raise ValueError(f"lora={self.lora!r} is compared under teacher forcing alone; add --mode teacher-forced")
        for name in ("model", "data"):
            values = getattr(self, name)
            if isinstance(values, str):
                raise ValueError(f"{name}={values!r} must be a list, such as {[values]}")
            if self.mode == "teacher-forced" and len(values) > 1:
                raise ValueError(f"{name}={values} are several, and teacher forcing takes one; give one")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values} names one twice; leave it out")
        if self.mode == "free-running" and self.out is not None and (self.out.suffix == ".json" or self.out.is_file()):
            raise ValueError(f"out={str(self.out)!r} must be a folder; it gets a file for each model and problem set")


@dataclass(frozen=True)  # not by keyword alone: the run is a positional argument of the command line
class AuditConfig:
    """A second look at what a run was rewarded for."""

    run: Path
    """Folder of a training run, or a result file of ollm-rl eval."""
    out: Path | None = None
    """JSON file for everything found; a summary is printed in any case."""


@dataclass(frozen=True)  # the runs are positional arguments of the command line
class ReportConfig:
    """A static HTML page that compares training runs."""

    runs: list[Path]
    """Folders of training runs; those that differ in seed and folder alone are drawn as one method with intervals."""
    out: Path = Path("report.html")
    """The HTML file."""
    results: Path | None = None
    """Folder that ollm-rl eval --out wrote: the final table. The last iteration of training where left out."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one. For the option explorer."""

    def __post_init__(self) -> None:
        _check_page(self.out)


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """The option explorer of one prompt, as a static HTML page."""

    model: str
    """Folder of an option SFT run or of a training run over options."""
    prompt: str
    """The question put to the model."""
    out: Path = Path("explorer.html")
    """The HTML file."""
    max_new_tokens: int = 96
    """Token limit of the completion."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.prompt.strip():
            raise ValueError("prompt is empty; give a question")
        _check_page(self.out)


def _check_page(out: Path) -> None:
    if out.suffix != ".html":
        raise ValueError(f"out={str(out)!r} must be an HTML file, such as report.html")
