"""What learns: the policy, and how an update changes it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from ollm_rl.errors import UsageError
from ollm_rl.settings import (
    Coefficient,
    Count,
    CountOrZero,
    Nats,
    Positive,
    Settings,
    Share,
    Width,
    refuse_changed,
)

POLICIES = {"options": ("anchored", "latent"), "tokens": ("lora", "frozen-head", "top-tokens")}  # the default first


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings):
    """The policy."""

    policy: Literal["latent", "anchored", "lora", "frozen-head", "top-tokens"] | None = None
    """Over options: anchored, which starts as the backbone restricted to the offered tokens, or latent, the paper's
    pi(z). Over tokens: lora, or as controls frozen-head (the vocabulary on frozen hidden states) and top-tokens (the
    backbone's ten most probable ones). If left out: anchored, or lora."""
    option_gradient: Literal["token", "option"] = "token"
    """Log-probability of a choice (latent). Token: log of the sum of pi(z) over the options that lead to that token.
    Option: log pi(z) of the chosen option."""
    lora_rank: Width = 16
    """Rank of the LoRA (tokens)."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(Settings):
    """The update."""

    learning_rate: Positive = 1e-3
    """Learning rate of Adam, the highest of a schedule."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up. Linear and cosine fall to 0 at the end of the run, whose number of
    iterations is then fixed."""
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
    If left out: 8,192, or a whole minibatch if the update never runs the backbone; halved when CUDA memory runs out. On
    CUDA passes of at most 8,192 tokens of a small model are CUDA graphs, larger ones are slower."""

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
class SB3Settings(Settings):
    """Agents of stable-baselines3."""

    n_steps: Count = 32
    """Steps between two updates, in each of the episodes decoded in parallel."""
