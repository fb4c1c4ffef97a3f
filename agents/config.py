"""Settings of reinforcement learning. Imports nothing heavy, so that ``ollm-rl --help`` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from ollm_rl.errors import UsageError
from ollm_rl.settings import (
    Count,
    Machine,
    NonNegative,
    Positive,
    Seed,
    Settings,
    Share,
    own_fields,
    refuse_changed,
)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Settings):
    """Weights of the reward's terms.

    `ollm_rl.envs.rewards` defines them; with correctness only, nothing else is computed.
    """

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
class RunSettings(Settings):
    """The run."""

    out: Path
    """Folder of the run: checkpoints, metrics, TensorBoard files. The same command resumes it."""
    model: str
    """Folder or hub id of an option plug-in. Over tokens its backbone is trained; a backbone's name does there, too."""
    agent: Literal["ollm-rl", "sb3-ppo", "sb3-a2c", "sb3-dqn", "sb3-recurrent-ppo"] = "ollm-rl"
    """Ours (algorithm says which), or an agent of stable-baselines3 or sb3-contrib over options."""
    action_space: Literal["options", "tokens"] = "options"
    """Options: a policy over the K options on frozen hidden states. Tokens: a LoRA on the backbone."""
    algorithm: Literal["ppo", "reinforce"] = "reinforce"
    """PPO: clipped ratio, GAE with a value head. REINFORCE: the whole reward less a baseline."""
    iterations: Count = 12
    """Rounds of rollout and update."""
    keep_checkpoints: Count = 2
    """Keep the checkpoints of the last so many iterations, beside the best one: that of the highest evaluated accuracy,
    or of the highest reward where nothing is evaluated."""
    seed: Seed = 0
    """Seed of every random stream; runs of one seed see the same prompts in the same order."""


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """The problems."""

    data: str = "arith"
    """Problems: arith, rg:TASK, jsonl:PATH or hf:ID."""
    limit: Count | None = None
    """Use the first so many problems; all where left out."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Settings):
    """Rollouts and their rewards."""

    episodes: Count = 256
    """Episodes of an iteration."""
    group_size: Count = 8
    """Episodes of one prompt; divides the episodes."""
    max_new_tokens: Count = 96
    """Token limit of a completion."""
    num_slots: Count = 256
    """Episodes decoded side by side."""
    compiled: bool = False
    """Compile decoding with torch.compile: a minute or two when the run starts, then faster rollouts on CUDA."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Weights of the reward's terms."""
    failure_reward: float = 0.0
    """Correctness of a completion whose check broke or ran out of time; such are counted as verifier_failures."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings):
    """The policy."""

    option_gradient: Literal["token", "option"] = "token"
    """What counts as the choice (options): the token, the probabilities of options that lead to it added up, or the
    option itself, plain log pi(z)."""
    lora_rank: Count = 16
    """Rank of the LoRA (tokens)."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(Settings):
    """The update."""

    learning_rate: Positive = 1e-3
    """Step size of Adam."""
    minibatches: Count = 4
    """Optimiser steps of one pass over an iteration's episodes."""
    epochs: Count = 1
    """Passes over an iteration's episodes."""
    ent_coef: NonNegative = 0.0
    """Weight of the bonus for entropy over tokens at decisions; where it begins, if a target is given."""
    target_entropy: Positive | None = None
    """Entropy at decisions, in nats, below which ent_coef grows and above which it shrinks, iteration by iteration."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL penalty to the policy before training: that of SFT, or the LoRA switched off."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    pass_tokens: Count | None = None
    """Tokens, padding counted, of one forward and backward pass; bounds memory, not the result. Left out it is 16,384
    on a CPU, and on CUDA a whole minibatch, halved whenever memory runs out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_entropy is not None and not self.ent_coef > 0:
            raise UsageError(
                f"target_entropy={self.target_entropy} with ent_coef={self.ent_coef} cannot be steered to; give an "
                "ent_coef to start from, such as 0.01"
            )


@dataclass(frozen=True, kw_only=True)
class ReinforceSettings(Settings):
    """REINFORCE."""

    baseline: Literal["none", "mean", "leave-one-out", "group"] = "group"
    """None, the mean of all rewards, the mean of the group's others (RLOO), or rewards normalised within each group of
    one prompt (GRPO)."""


@dataclass(frozen=True, kw_only=True)
class PPOSettings(Settings):
    """PPO."""

    clip_range: Positive = 0.2
    """Bound on the probability ratio."""
    gamma: Share = 1.0
    """Discount per decision."""
    gae_lambda: Share = 1.0
    """Weight of GAE's longer returns."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Evaluation while training."""

    eval_every: Count | None = None
    """Evaluate greedily after every so many episodes; never where left out."""
    eval_data: str | None = None
    """Problems to evaluate on, the validation split of arith, rg: and hf: sources; a source as data, which it is where
    left out."""
    eval_limit: Count = 256
    """Evaluate on the first so many problems."""
    stop_at: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Stop early once an evaluation reaches this accuracy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_every is None:
            refuse_changed(self, ["eval_data", "eval_limit", "stop_at"], "without evaluations (eval_every)")


@dataclass(frozen=True, kw_only=True)
class RaySettings(Settings):
    """Ray workers."""

    workers: Annotated[int, Ge(0)] = 0
    """Ray workers that make the rollouts, each with an engine and a processor core; 0 makes them in this process."""
    gpus_per_worker: Share = 0.0
    """Share of a GPU that each worker gets, such as 0.5; with 0 they decode on the CPU."""
    ray_address: str | None = None
    """Ray cluster that holds the workers, host:port or auto; left out, one is started on this machine."""
    async_staleness: Annotated[int, Ge(0)] = 0
    """0: workers wait for the update. N: they go on, and rollouts come from weights up to N updates old."""
    worker_timeout: Annotated[float, Gt(0)] = 600.0
    """Seconds that the learner waits for a worker, its start included, before it takes it to hang and replaces it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.workers:
            names = [field.name for field in own_fields(RaySettings) if field.name != "workers"]
            refuse_changed(self, names, "without workers")


@dataclass(frozen=True, kw_only=True)
class SB3Settings(Settings):
    """Agents of stable-baselines3."""

    n_steps: Count = 32
    """Steps of each of the episodes decoded side by side between two updates."""


# What each agent of SB3 reads, besides what describes the run, its problems and its episodes.
SB3_READS = {
    "sb3-dqn": ("learning_rate", "max_grad_norm", "gamma", "n_steps"),
    "sb3-a2c": ("learning_rate", "max_grad_norm", "gamma", "n_steps", "gae_lambda", "vf_coef", "ent_coef"),
}
SB3_READS["sb3-ppo"] = (*SB3_READS["sb3-a2c"], "minibatches", "epochs", "clip_range")
SB3_READS["sb3-recurrent-ppo"] = SB3_READS["sb3-ppo"]


@dataclass(frozen=True, kw_only=True)
class RLConfig(
    RunSettings,
    DataSettings,
    RolloutSettings,
    PolicySettings,
    UpdateSettings,
    ReinforceSettings,
    PPOSettings,
    EvaluationSettings,
    RaySettings,
    SB3Settings,
    Machine,
):
    """Reinforcement learning from answer correctness, over options or over tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.agent != "ollm-rl":
            self._check_sb3()
            return
        if self.episodes % self.group_size:
            raise UsageError(f"episodes={self.episodes} is no multiple of group_size={self.group_size}; change one")
        refuse_changed(self, ["n_steps"], f"by agent={self.agent}")
        refuse_changed(
            self, ["lora_rank" if self.action_space == "options" else "option_gradient"], f"over {self.action_space}"
        )
        unused = ReinforceSettings if self.algorithm == "ppo" else PPOSettings
        refuse_changed(self, [field.name for field in own_fields(unused)], f"by algorithm={self.algorithm}")
        if self.algorithm == "reinforce" and self.baseline in ("leave-one-out", "group") and self.group_size < 2:
            raise UsageError(
                f"group_size=1 leaves nothing for baseline={self.baseline!r}; give at least 2, or another baseline"
            )
        if self.workers > self.episodes // self.group_size:
            raise UsageError(
                f"workers={self.workers} are more than the {self.episodes // self.group_size} groups of an iteration's "
                "episodes; lower it"
            )
        if self.minibatches > self.episodes:
            raise UsageError(f"minibatches={self.minibatches} is more than episodes={self.episodes}; lower it")

    def _check_sb3(self) -> None:
        if self.action_space != "options":
            raise UsageError(f"agent={self.agent!r} acts over options; leave action_space={self.action_space!r} out")
        ours = (PolicySettings, UpdateSettings, ReinforceSettings, PPOSettings, EvaluationSettings, RaySettings)
        names = [field.name for section in ours for field in own_fields(section)]
        names += ["algorithm", "keep_checkpoints", "group_size", "failure_reward"]
        refuse_changed(self, [name for name in names if name not in SB3_READS[self.agent]], f"by agent={self.agent}")
