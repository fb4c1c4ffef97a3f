"""Settings of training and evaluation. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ollm_rl.errors import UsageError

SearchMethod = Literal["best-of-n", "beam", "mcts"]
LeafValue = Literal["likelihood", "value_head", "verifier"]


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
    agent: Literal["ollm-rl", "sb3-ppo", "sb3-a2c", "sb3-dqn", "sb3-recurrent-ppo"] = "ollm-rl"
    """Ours (algorithm says which), or an agent of stable-baselines3 or sb3-contrib over options."""
    action_space: Literal["options", "tokens"] = "options"
    """Options: a policy over the K options on frozen hidden states. Tokens: a LoRA on the backbone."""
    algorithm: Literal["ppo", "reinforce"] = "reinforce"
    """PPO: clipped ratio, GAE with a value head. REINFORCE: the whole reward less a baseline."""
    baseline: Literal["none", "mean", "leave-one-out", "group"] = "group"
    """Of REINFORCE: none, the mean of all rewards, the mean of the group's others (RLOO), or rewards normalised within
    each group of one prompt (GRPO)."""
    option_gradient: Literal["token", "option"] = "token"
    """What counts as the choice (options): the token, the probabilities of options that lead to it added up, or the
    option itself, plain log pi(z)."""
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
    n_steps: int = 32
    """Steps of each of these episodes between two updates (SB3's agents)."""
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
    """Weight of the bonus for entropy over tokens at decisions; where it begins, if a target is given."""
    target_entropy: float | None = None
    """Entropy at decisions, in nats, below which ent_coef grows and above which it shrinks, iteration by iteration."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the policy before training: that of SFT, or the LoRA switched off."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    lora_rank: int = 16
    """Rank of the LoRA (tokens)."""
    pass_tokens: int | None = None
    """Tokens, padding counted, of one forward and backward pass; bounds memory, not the result. Left out it is 16,384
    on a CPU, and on CUDA a whole minibatch, halved whenever memory runs out."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Weights of the reward's terms."""
    failure_reward: float = 0.0
    """Correctness of a completion whose check broke or ran out of time; such are counted as verifier_failures."""
    eval_every: int | None = None
    """Evaluate greedily after every so many episodes; never where left out."""
    eval_data: str | None = None
    """Problems to evaluate on, the validation split of arith, rg: and hf: sources; a source as data, which it is where
    left out."""
    eval_limit: int = 256
    """Evaluate on the first so many problems."""
    stop_at: float | None = None
    """Stop early once an evaluation reaches this accuracy."""
    keep_checkpoints: int = 2
    """Keep the checkpoints of the last so many iterations, beside the best one: that of the highest evaluated accuracy,
    or of the highest reward where nothing is evaluated."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone."""
    compiled: bool = False
    """Compile decoding with torch.compile: a minute or two when the run starts, then faster rollouts on CUDA."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    workers: int = 0
    """Ray workers that make the rollouts, each with an engine and a processor core; 0 makes them in this process."""
    gpus_per_worker: float = 0.0
    """Share of a GPU that each worker gets, such as 0.5; with 0 they decode on the CPU."""
    ray_address: str | None = None
    """Ray cluster that holds the workers, host:port or auto; left out, one is started on this machine."""
    async_staleness: int = 0
    """0: workers wait for the update. N: they go on, and rollouts come from weights up to N updates old."""
    worker_timeout: float = 600.0
    """Seconds that the learner waits for a worker, its start included, before it takes it to hang and replaces it."""
    seed: int = 0
    """Seed of every random stream; runs of one seed see the same prompts in the same order."""

    def __post_init__(self) -> None:
        counts = ("iterations", "episodes", "group_size", "max_new_tokens", "num_slots", "minibatches", "epochs")
        for name in (*counts, "eval_limit", "keep_checkpoints", "pass_tokens", "eval_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if self.episodes % self.group_size:
            raise UsageError(f"episodes={self.episodes} is no multiple of group_size={self.group_size}; change one")
        if self.algorithm == "reinforce" and self.baseline in ("leave-one-out", "group") and self.group_size < 2:
            raise UsageError(
                f"group_size=1 leaves nothing for baseline={self.baseline!r}; give at least 2, or another baseline"
            )
        groups = self.episodes // self.group_size
        if not 0 <= self.workers <= groups:
            raise UsageError(
                f"workers={self.workers} must be between 0 and the {groups} groups of an iteration's episodes"
            )
        if not 0 <= self.gpus_per_worker <= 1:
            raise UsageError(f"gpus_per_worker={self.gpus_per_worker} must be between 0 and 1; a worker uses one GPU")
        if self.async_staleness < 0 or (self.async_staleness and not self.workers):
            raise UsageError(
                f"async_staleness={self.async_staleness} must be 0, or positive with workers that go on by themselves; "
                "set workers too"
            )
        if not self.worker_timeout > 0:
            raise UsageError(f"worker_timeout={self.worker_timeout} must be positive, in seconds")
        if self.minibatches > self.episodes:
            raise UsageError(f"minibatches={self.minibatches} is more than episodes={self.episodes}; lower it")
        if not self.learning_rate > 0:
            raise UsageError(f"learning_rate={self.learning_rate} must be positive")
        if self.target_entropy is not None and not (self.target_entropy > 0 and self.ent_coef > 0):
            raise UsageError(
                f"target_entropy={self.target_entropy} with ent_coef={self.ent_coef} cannot be steered to; both must "
                "be positive"
            )
        if self.stop_at is not None and self.eval_every is None:
            raise UsageError(f"stop_at={self.stop_at} needs evaluations; give eval_every, too")
        if self.n_steps < 1:
            raise UsageError(f"n_steps={self.n_steps} must be at least 1")
        if self.agent != "ollm-rl" and self.action_space != "options":
            raise UsageError(f"agent={self.agent!r} acts over options; leave action_space={self.action_space!r} out")
        ours = ("failure_reward", "kl_coef", "target_entropy", "eval_every", "stop_at", "workers")
        for name in ours if self.agent != "ollm-rl" else ():
            if value := getattr(self, name):
                raise UsageError(f"agent={self.agent!r} knows no {name}={value}; leave it out")


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
            raise UsageError(f"lora={self.lora!r} is compared under teacher forcing alone; add --mode teacher-forced")
        for name in ("model", "data"):
            values = getattr(self, name)
            if isinstance(values, str):
                raise UsageError(f"{name}={values!r} must be a list, such as {[values]}")
            if self.mode == "teacher-forced" and len(values) > 1:
                raise UsageError(f"{name}={values} are several, and teacher forcing takes one; give one")
            if len(set(values)) < len(values):
                raise UsageError(f"{name}={values} names one twice; leave it out")
        if self.mode == "free-running" and self.out is not None and (self.out.suffix == ".json" or self.out.is_file()):
            raise UsageError(f"out={str(self.out)!r} must be a folder; it gets a file for each model and problem set")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search over options or tokens at a stated number of generated tokens a problem."""

    model: str
    """Folder of a training run or of an option SFT run, or a backbone's name."""
    method: SearchMethod = "mcts"
    """Best-of-n: independent samples. Beam: beams of 1, 2, 4, ... completions. Mcts: tree search with PUCT."""
    budget_tokens: int = 768
    """Tokens that may be generated for a problem, ends of text included; at least max_new_tokens."""
    max_new_tokens: int = 96
    """Token limit of a completion."""
    leaf_value: LeafValue = "likelihood"
    """What a leaf of mcts is worth. Likelihood: of a rollout under the policy. Value_head: no rollout (PPO runs alone).
    Verifier: whether a rollout is right, so that the search knows the reference answer and reports an oracle alone."""
    exploration: float = 1.0
    """Weight of the policy's probabilities in mcts (c of PUCT)."""
    temperature: float = 1.0
    """Sampling temperature of best-of-n."""
    leaves: int = 1
    """Branches of a tree that are decoded side by side. More are faster with few problems, but share a small budget
    out."""
    num_slots: int = 256
    """Sequences decoded side by side, of all problems together."""
    out: Path | None = None
    """JSON file for the result with all completions; a summary is printed in any case."""
    data: str = "arith"
    """Problems: arith, rg:TASK, jsonl:PATH or hf:ID."""
    split: str = "test"
    """Split of arith, rg: and hf: sources."""
    limit: int | None = 128
    """Use the first so many problems."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    seed: int = 0
    """Seed of the problems (arith, rg:) and of samples; beam and mcts draw nothing."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.is_dir():
            raise UsageError(f"out={self.out} is a folder; give a file")


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
            raise UsageError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.prompt.strip():
            raise UsageError("prompt is empty; give a question")
        _check_page(self.out)


def _check_page(out: Path) -> None:
    if out.suffix != ".html":
        raise UsageError(f"out={str(out)!r} must be an HTML file, such as report.html")
