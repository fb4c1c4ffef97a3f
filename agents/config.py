"""Settings of reinforcement learning. Nothing heavy is imported, so that ``ollm-rl --help`` is fast."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from ollm_rl.errors import UsageError
from ollm_rl.settings import (
    Coefficient,
    Count,
    CountOrZero,
    Machine,
    Nats,
    Positive,
    PromptSettings,
    ReportSettings,
    Seed,
    Settings,
    Share,
    Temperature,
    Weight,
    Width,
    own_fields,
    refuse_changed,
)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Settings):
    """Weights of the reward's terms.

    `ollm_rl.envs.rewards` defines the terms; with correctness only, no other term is computed.
    """

    correctness: Weight | None = None
    """Weight of correctness, which is 1 for a correct answer. If left out: 1, or 0 with functions of one's own."""
    format: Weight = 0.0
    """Weight of the format, which is 1 for a stated answer: boxed, after ####, or "the answer is"."""
    length: Weight = 0.0
    """Weight of the length, which falls from 0 for an empty completion to -1 for one at the token limit."""
    language: Weight = 0.0
    """Weight of the language, which is 1 for a completion in the language of its question."""
    repetition: Weight = 0.0
    """Weight of the repetition, which is minus the share of repeated sequences of four words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correctness is not None and not any(vars(self).values()):
            raise UsageError(
                "all weights of rewards are 0, so there is nothing to learn; give correctness=1, say, or leave it out "
                "with functions of your own (reward)"
            )

    def weights(self) -> dict[str, float]:
        """The weights by term."""
        return {name: weight or 0.0 for name, weight in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The run."""

    out: Path
    """Folder of the run: checkpoints, metrics, TensorBoard files. The same command resumes the run."""
    model: str
    """Folder or hub id of an option plug-in. Over tokens its backbone is trained; a backbone's name works too."""
    agent: Literal["ollm-rl", "sb3-ppo", "sb3-a2c", "sb3-dqn", "sb3-recurrent-ppo"] = "ollm-rl"
    """Our agent (see algorithm), or an agent of stable-baselines3 or sb3-contrib over options."""
    action_space: Literal["options", "tokens"] = "options"
    """Options: a policy over the K options on frozen hidden states. Tokens: a LoRA on the backbone."""
    algorithm: Literal["ppo", "reinforce"] = "reinforce"
    """PPO: clipped ratio, GAE with a value head. REINFORCE: the whole reward minus a baseline."""
    iterations: Count = 12
    """Number of iterations, each with a rollout and an update. A finished run given more goes on."""
    keep_checkpoints: Count = 2
    """Latest checkpoints to keep, beside the best by evaluated accuracy, or by reward if nothing is evaluated."""
    seed: Seed = 0
    """Seed of all random streams. Runs with equal seeds see the same prompts in the same order."""


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """The problems."""

    data: str = "arith"
    """Problems: arith, rg:TASK, jsonl:PATH, parquet:PATH or hf:ID."""
    split: str | None = None
    """Split of arith, rg: and hf: sources; train if left out."""
    columns: str | None = None
    """Names of the columns, where they are not known ones: question=NAME,answer=NAME."""
    limit: Count | None = None
    """Use only N problems; of files and hf: a sample drawn with the seed. All if left out."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Settings):
    """Rollouts and their rewards."""

    episodes: Count = 256
    """Episodes per iteration."""
    group_size: Count = 8
    """Episodes per prompt; must divide episodes."""
    max_new_tokens: Count = 96
    """Token limit per completion."""
    num_slots: Count = 256
    """Episodes decoded in parallel."""
    compiled: bool = False
    """Compile decoding with torch.compile: takes a minute or two at the start and speeds up rollouts on CUDA."""
    temperature: Temperature = 1.0
    """Sampling temperature. The policy that is trained is the one at this temperature."""
    reward: list[str] = field(default_factory=list)
    """Functions of your own: FILE.py:FUNCTION, or FILE.py:FUNCTION=WEIGHT. The file is run. As in TRL, a function takes
    prompts, completions and the problems' columns, and returns a number for each. In Python also names of functions."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Weights of the reward's terms."""
    failure_reward: Annotated[float, Interval(ge=-1, le=1)] = 0.0
    """Correctness of a completion whose check failed or timed out, and the value of a function of your own that raised.
    These are counted as verifier_failures and reward_failures."""


POLICIES = {"options": ("anchored", "latent"), "tokens": ("lora", "frozen-head", "top-tokens")}  # the default first


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings):
    """The policy."""

    policy: Literal["latent", "anchored", "lora", "frozen-head", "top-tokens"] | None = None
    """Over options: anchored, which starts as the backbone restricted to the offered tokens, or latent, the paper's
    pi(z). Over tokens: lora, or as controls frozen-head (the vocabulary on frozen hidden states) and top-tokens (the
    backbone's ten most probable ones). If left out: anchored, or lora."""
    option_gradient: Literal["token", "option"] = "token"
    """Log-probability of a choice (options). Token: log of the sum of pi(z) over the options that lead to that token.
    Option: log pi(z) of the chosen option."""
    lora_rank: Width = 16
    """Rank of the LoRA (tokens)."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(Settings):
    """The update."""

    learning_rate: Positive = 1e-3
    """Learning rate of Adam, the highest of a schedule."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course after the warm-up. Linear and cosine fall to 0 at the end, so the number of iterations is then fixed."""
    warmup_iterations: CountOrZero = 0
    """The learning rate rises linearly to its highest value over this many iterations."""
    minibatches: Count = 4
    """Optimiser steps per pass over an iteration's episodes."""
    epochs: Count = 1
    """Passes over an iteration's episodes."""
    ent_coef: Coefficient = 0.0
    """Weight of the bonus for entropy over tokens at decisions; its first value if target_entropy is set."""
    target_entropy: Nats | None = None
    """Target of the entropy at decisions, in nats. After an iteration ent_coef grows below it and shrinks above it."""
    kl_coef: Coefficient = 0.0
    """Weight of the KL penalty towards the policy before training; its first value if kl_target is set. That policy is
    the one of SFT, or the backbone (restricted to the offered tokens, or without its LoRA)."""
    kl_target: Nats | None = None
    """Target of this KL, in nats per decision. After an iteration kl_coef grows above it and shrinks below it."""
    max_grad_norm: Positive = 1.0
    """Gradients of a larger norm are scaled down to this norm."""
    pass_tokens: Count | None = None
    """Maximum tokens, padding included, per forward and backward pass. It limits memory and does not change the result.
    If left out: 16,384 on a CPU; on CUDA a whole minibatch, halved whenever memory runs out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_entropy is not None and not self.ent_coef > 0:
            raise UsageError(
                f"target_entropy={self.target_entropy} with ent_coef={self.ent_coef} cannot be steered to; give an "
                "ent_coef to start from, such as 0.01"
            )
        if self.kl_target is not None and not self.kl_coef > 0:
            raise UsageError(
                f"kl_target={self.kl_target} with kl_coef={self.kl_coef} cannot be steered to; give a kl_coef to start "
                "from, such as 0.01"
            )


@dataclass(frozen=True, kw_only=True)
class ReinforceSettings(Settings):
    """REINFORCE."""

    baseline: Literal["none", "mean", "leave-one-out", "group"] = "group"
    """None. Mean: mean of all rewards. Leave-one-out: mean of the group's other rewards (RLOO). Group: rewards are
    normalised within the group of one prompt (GRPO)."""
    ratio: Literal["importance", "topr"] = "importance"
    """Weight of decisions made by an older policy. Importance: their probability ratio. TOPR: 1 where the advantage is
    positive, else the ratio of the whole episode, at most 1."""
    replay: CountOrZero = 0
    """Learn again from the episodes of the last N iterations, this one included; 0 for none."""
    replay_steps: Count = 16
    """Optimiser steps per iteration on episodes of the replay, each on as many as a minibatch has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.replay:
            refuse_changed(self, ["replay_steps"], "without a replay")


@dataclass(frozen=True, kw_only=True)
class PPOSettings(Settings):
    """PPO."""

    clip_range: Annotated[float, Interval(gt=0, le=10)] = 0.2
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range]."""
    gamma: Share = 1.0
    """Discount per decision."""
    gae_lambda: Share = 1.0
    """Lambda of GAE: 0 uses one-step returns, 1 the whole return."""
    vf_coef: Coefficient = 0.5
    """Weight of the value loss."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Evaluation while training."""

    eval_every: Count | None = None
    """Evaluate with greedy decoding every N episodes; never if left out."""
    eval_data: str | None = None
    """Problems to evaluate on, in the format of data; data itself if left out."""
    eval_split: str | None = None
    """Split to evaluate on, of arith, rg: and hf: sources; validation if left out."""
    eval_columns: str | None = None
    """Names of the columns of eval_data, as for data."""
    eval_limit: Count = 256
    """Evaluate on only N problems; of files and hf: a sample drawn with the seed."""
    stop_at: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Stop early once an evaluation reaches this accuracy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_every is None:
            names = [field.name for field in own_fields(EvaluationSettings) if field.name != "eval_every"]
            refuse_changed(self, names, "without evaluations (eval_every)")
        if self.eval_data is None:
            refuse_changed(self, ["eval_columns"], "without eval_data")


@dataclass(frozen=True, kw_only=True)
class RaySettings(Settings):
    """Ray workers."""

    workers: CountOrZero = 0
    """Ray workers that generate the rollouts, each with an engine and a CPU core. 0: this process generates them."""
    gpus_per_worker: Share = 0.0
    """Share of a GPU for each worker, such as 0.5. 0: decode on the CPU."""
    ray_address: str | None = None
    """Ray cluster for the workers, host:port or auto. If left out, one is started on this machine."""
    async_staleness: CountOrZero = 0
    """0: workers wait for the update. N: they do not wait, and rollouts come from weights up to N updates old."""
    worker_timeout: Annotated[float, Interval(gt=0, le=10**6)] = 600.0
    """Seconds that the learner waits for a worker, its start included, before it replaces the worker."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.workers:
            names = [field.name for field in own_fields(RaySettings) if field.name != "workers"]
            refuse_changed(self, names, "without workers")


@dataclass(frozen=True, kw_only=True)
class SB3Settings(Settings):
    """Agents of stable-baselines3."""

    n_steps: Count = 32
    """Steps between two updates, in each of the episodes decoded in parallel."""


# Settings that each SB3 agent uses, besides those of the run, its problems and its episodes.
SB3_READS = {
    "sb3-dqn": ("learning_rate", "max_grad_norm", "gamma", "n_steps"),
    "sb3-a2c": ("learning_rate", "max_grad_norm", "gamma", "n_steps", "gae_lambda", "vf_coef", "ent_coef"),
}
SB3_READS["sb3-ppo"] = SB3_READS["sb3-recurrent-ppo"] = (*SB3_READS["sb3-a2c"], "minibatches", "epochs", "clip_range")


@dataclass(frozen=True, kw_only=True)
class RLConfig(
    RunSettings,
    DataSettings,
    PromptSettings,
    RolloutSettings,
    PolicySettings,
    UpdateSettings,
    ReinforceSettings,
    PPOSettings,
    EvaluationSettings,
    RaySettings,
    SB3Settings,
    ReportSettings,
    Machine,
):
    """Reinforcement learning from answer correctness, over options or over tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewards.correctness is None and not self.reward:
            object.__setattr__(self, "rewards", replace(self.rewards, correctness=1.0))  # so that run.json says so
        if self.agent != "ollm-rl":
            self._check_sb3()
            return
        if self.episodes % self.group_size:
            raise UsageError(f"episodes={self.episodes} is no multiple of group_size={self.group_size}; change one")
        refuse_changed(self, ["n_steps"], f"by agent={self.agent}")
        unused = ReinforceSettings if self.algorithm == "ppo" else PPOSettings
        refuse_changed(self, [field.name for field in own_fields(unused)], f"by algorithm={self.algorithm}")
        policies = POLICIES[self.action_space]
        policy = self.policy or policies[0]
        object.__setattr__(self, "policy", policy)  # so that run.json says which
        if policy not in policies:
            raise UsageError(
                f"policy={policy!r} does not act over {self.action_space}; give one of {', '.join(policies)}, or "
                "another action_space"
            )
        used = {"latent": "option_gradient", "lora": "lora_rank"}
        refuse_changed(self, [name for kind, name in used.items() if kind != policy], f"by policy={policy}")
        if self.algorithm == "reinforce" and self.baseline in ("leave-one-out", "group") and self.group_size < 2:
            raise UsageError(
                f"group_size=1 leaves nothing for baseline={self.baseline!r}; give at least 2, or another baseline"
            )
        if self.workers > self.episodes // self.group_size:
            raise UsageError(
                f"workers={self.workers} are more than the {self.episodes // self.group_size} groups of an iteration's "
                "episodes; lower it"
            )
        if self.temperature != 1 and self.option_gradient == "option":
            raise UsageError(
                f"temperature={self.temperature:g} is that of tokens, and option_gradient='option' learns from the "
                "probabilities of options; leave one out"
            )
        if self.warmup_iterations > self.iterations:
            raise UsageError(
                f"warmup_iterations={self.warmup_iterations} is more than iterations={self.iterations}; lower it"
            )
        if self.minibatches > self.episodes:
            raise UsageError(f"minibatches={self.minibatches} is more than episodes={self.episodes}; lower it")

    def _check_sb3(self) -> None:
        if self.action_space != "options":
            raise UsageError(f"agent={self.agent!r} acts over options; leave action_space={self.action_space!r} out")
        ours = (PolicySettings, UpdateSettings, ReinforceSettings, PPOSettings, EvaluationSettings, RaySettings)
        names = [field.name for section in (PromptSettings, *ours) for field in own_fields(section)]
        names += ["algorithm", "keep_checkpoints", "group_size", "temperature", "failure_reward"]
        refuse_changed(self, [name for name in names if name not in SB3_READS[self.agent]], f"by agent={self.agent}")
