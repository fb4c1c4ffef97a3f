"""Advantages and losses of the policy gradient, as pure functions.

Letters: N episodes, T tokens, M decisions (positions where the choice matters, in row order).
"""

from typing import Literal

import torch
from torch.nn import functional as F

from ollm_rl.errors import UsageError
from ollm_rl.settings import Count, checked

Baseline = Literal["none", "mean", "leave-one-out", "group"]


def episode_advantages(rewards: torch.Tensor, group_size: int, baseline: Baseline) -> torch.Tensor:
    """Rewards minus a baseline, one per episode, for REINFORCE (Williams 1992).

    Args:
        rewards: (N,), with the episodes of a group adjacent.
        group_size: Divides N; at least 2 for ``leave-one-out`` and ``group``.
        baseline: ``none``; ``mean`` of all rewards; ``leave-one-out``, the mean of the group's other rewards (RLOO;
            Kool et al. 2019); ``group``, the group's mean, with the difference divided by the group's standard
            deviation (GRPO; Shao et al. 2024, Sec. 4.1.2), and 0 where all rewards of a group are equal.

    Returns:
        (N,).

    Raises:
        UsageError: If the baseline is unknown, or the groups do not divide the episodes or are too small for it.
    """
    checked("baseline", baseline, Baseline)
    if len(rewards) % checked("group_size", group_size, Count):
        raise UsageError(f"group_size={group_size} does not divide {len(rewards)} episodes; change one")
    if group_size < 2 and baseline in ("leave-one-out", "group"):
        raise UsageError(f"group_size={group_size} leaves nothing for baseline={baseline!r}; give at least 2")
    if baseline == "none":
        return rewards
    if baseline == "mean":
        return rewards - rewards.mean()
    groups = rewards.view(-1, group_size)
    if baseline == "group":
        scaled = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
        mixed = groups.amax(1, keepdim=True) > groups.amin(1, keepdim=True)  # the mean of equal rewards may be rounded
        return scaled.where(mixed, 0).flatten()
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def gae(
    rewards: torch.Tensor, values: torch.Tensor, decisions: torch.Tensor, *, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Generalised advantage estimation over an episode's decisions (Schulman et al. 2016, eq. 16).

    Positions without a choice are part of the environment's step, so time is counted in decisions. The reward comes
    after the last token, and nothing follows it: the token limit is part of the task.

    Args:
        rewards: Reward of each whole episode, (N,).
        values: Value estimates, (N, T); only those at decisions are used.
        decisions: True where the policy had a choice, (N, T).
        gamma: Discount per decision.
        gae_lambda: Between 0 (one-step) and 1 (the whole return).

    Returns:
        Advantages, (N, T); 0 where there was no decision.
    """
    order = decisions.int().argsort(stable=True, dim=1, descending=True)  # moves an episode's decisions to the front
    is_decision = decisions.gather(1, order)
    values = values.gather(1, order).where(is_decision, 0)
    last = torch.arange(values.shape[1], device=values.device) == is_decision.sum(1, keepdim=True) - 1
    advantages = (rewards[:, None] * last + gamma * F.pad(values[:, 1:], (0, 1)) - values).where(is_decision, 0)
    # A_t = delta_t + gamma lambda A_{t+1}, over spans that double: on a GPU a loop over T would wait T times.
    span, weight = 1, gamma * gae_lambda
    while span < values.shape[1]:
        advantages[:, :-span] += weight * advantages[:, span:]
        span, weight = 2 * span, weight * weight
    return torch.zeros_like(advantages).scatter(1, order, advantages)


def reinforce_loss(log_ratio: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """REINFORCE (Williams 1992) with importance weights: -mean(ratio * advantage) over (M,) decisions.

    At a ratio of 1 the gradient is that of -log pi * advantage. The weight keeps it unbiased in later minibatches of
    an iteration, when the policy has changed since the rollout.
    """
    return -(log_ratio.exp() * advantages).mean()


def topr_loss(
    log_probs: torch.Tensor, log_ratio: torch.Tensor, advantages: torch.Tensor, episodes: torch.Tensor
) -> torch.Tensor:
    """Tapered off-policy REINFORCE (TOPR; Le Roux et al. 2025, eq. 7), mean over (M,) decisions.

    -mean(w * advantage * log pi), where w is 1 for a positive advantage and otherwise the probability ratio of the
    whole episode, at most 1. So right episodes of an old policy count fully, and wrong ones that the policy no longer
    writes do not push it further.

    Args:
        log_probs: Log-probabilities under the policy, (M,), with gradient.
        log_ratio: These less the log-probabilities when the decisions were made, (M,).
        advantages: (M,).
        episodes: Number of the episode of each decision, (M,), from 0.
    """
    # As many places as decisions are enough for the episodes, and their number is known without asking the device.
    total = torch.zeros_like(log_ratio).index_add(0, episodes, log_ratio.detach())
    weights = total.clamp(max=0).exp()[episodes].where(advantages < 0, 1.0)
    return -(weights * advantages * log_probs).mean()


def kl_estimate(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp(r) - 1 - r of (M,) log-ratios r = log q - log p of actions drawn from p; at least 0, with mean KL(p || q).

    The estimator "k3" (Schulman 2020), in nats. With r = log pi - log pi_old it measures how far the policy has changed
    since the rollout. With r = log reference - log pi it is GRPO's penalty (Shao et al. 2024, eq. 4); its gradient is
    the one that GRPO takes, not that of the KL.
    """
    return log_ratio.exp() - 1 - log_ratio


def ppo_loss(log_ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float) -> torch.Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), mean over (M,) decisions."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()
