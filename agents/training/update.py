"""One iteration's update: advantages, minibatches, passes that fit into memory, and the logged terms.

Letters: N episodes, T tokens, M decisions.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.training.advantages import episode_advantages, gae, kl_estimate, ppo_loss, reinforce_loss
from ollm_rl.decode.rollout import Rollout
from ollm_rl.options.losses import steered_weight

CPU_PASS_TOKENS = 16_384
ENT_COEF_RATE, ENT_COEF_RANGE = 0.1, (1e-5, 1.0)


@dataclass(frozen=True)
class UpdateBatch:
    """The data of one iteration's update.

    Attributes:
        rollout: N episodes.
        advantages: (N, T).
        returns: Targets of the value head, (N, T).
        lengths: Number of tokens of every completion.
        num_decisions: Number of decisions of every completion.
        ent_coef: Weight of the entropy bonus.
    """

    rollout: Rollout
    advantages: torch.Tensor
    returns: torch.Tensor
    lengths: list[int]
    num_decisions: list[int]
    ent_coef: float

    @classmethod
    def from_rollout(cls, config: RLConfig, rollout: Rollout, rewards: torch.Tensor, ent_coef: float) -> "UpdateBatch":
        """Compute advantages and returns of a rollout from its rewards, (N,)."""
        advantages, returns = advantages_and_returns(config, rollout, rewards)
        lengths, num_decisions = rollout.completion_mask.sum(1).tolist(), rollout.decisions.sum(1).tolist()
        return cls(rollout, advantages, returns, lengths, num_decisions, ent_coef)

    def size(self, row: int) -> int:
        """Number of tokens of an episode's prompt and completion."""
        return len(self.rollout.prompts[row]) + self.lengths[row]


def advantages_and_returns(
    config: RLConfig, rollout: Rollout, rewards: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and targets of the value head, both (N, T), from rewards (N,), by ``config.algorithm``."""
    if config.algorithm == "reinforce":
        advantages = episode_advantages(rewards, config.group_size, config.baseline)
        return advantages[:, None].expand_as(rollout.values), rollout.values
    advantages = gae(rewards, rollout.values, rollout.decisions, gamma=config.gamma, gae_lambda=config.gae_lambda)
    at_decisions = advantages[rollout.decisions]
    return (advantages - at_decisions.mean()) / (at_decisions.std() + 1e-6), advantages + rollout.values


def steer_ent_coef(ent_coef: float, entropy: float, target: float | None) -> float:
    """The entropy bonus's weight for the next iteration; it grows while the entropy is below its target, in nats.

    Without a target it stays the same; see `steered_weight`.
    """
    if target is None:
        return ent_coef
    return steered_weight(ent_coef, (target - entropy) / target, rate=ENT_COEF_RATE, bounds=ENT_COEF_RANGE)


class Updater:
    """Optimises a policy on rollouts.

    Args:
        policy: Its trainable parameters are updated.
        config: Settings of the run.

    Attributes:
        optimizer: Adam.
        pass_tokens: Maximum tokens of one pass, padding included; None for a whole minibatch.
    """

    def __init__(self, policy: Policy, config: RLConfig) -> None:
        self.policy, self.config, self.device = policy, config, policy.backbone.device
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
        self.pass_tokens = config.pass_tokens or (CPU_PASS_TOKENS if self.device.type == "cpu" else None)

    def run(
        self, rollout: Rollout, rewards: torch.Tensor, *, ent_coef: float, shuffler: torch.Generator
    ) -> dict[str, float]:
        """Optimise over all episodes; returns the mean of every term.

        Args:
            rollout: N episodes.
            rewards: (N,).
            ent_coef: Weight of the entropy bonus.
            shuffler: CPU generator that shuffles the episodes.
        """
        batch = UpdateBatch.from_rollout(self.config, rollout, rewards, ent_coef)
        steps = []
        for _ in range(self.config.epochs):
            order = torch.randperm(len(rewards), generator=shuffler)
            steps += [self.step(batch, rows.tolist()) for rows in order.tensor_split(self.config.minibatches)]
        means = torch.stack([torch.stack(list(terms.values())) for terms in steps]).mean(0).tolist()
        return dict(zip(steps[0], means, strict=True))

    def step(self, batch: UpdateBatch, rows: list[int]) -> dict[str, torch.Tensor]:
        """One optimiser step on some episodes; if CUDA memory runs out, it is repeated in smaller passes."""
        while True:
            failed = False
            try:
                terms = self._gradient(batch, rows)
            except torch.cuda.OutOfMemoryError:
                if self.pass_tokens is not None and self.pass_tokens <= max(map(batch.size, rows)):
                    raise  # not even one episode fits
                failed = True
            if not failed:
                break
            self._halve(batch, rows)  # outside the except block, where the error no longer keeps tensors alive
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.config.max_grad_norm)
        self.optimizer.step()
        return terms

    def passes(self, batch: UpdateBatch, rows: list[int]) -> Iterator[list[int]]:
        """Group episodes of similar length into passes of at most ``pass_tokens`` tokens."""
        part: list[int] = []
        longest = 0
        for row in sorted((row for row in rows if batch.num_decisions[row]), key=lambda row: batch.lengths[row]):
            longest = max(longest, batch.size(row))
            if part and self.pass_tokens is not None and longest * (len(part) + 1) > self.pass_tokens:
                yield part
                part, longest = [], batch.size(row)
            part.append(row)
        if part:
            yield part

    def _halve(self, batch: UpdateBatch, rows: list[int]) -> None:
        longest = max(map(batch.size, rows))
        before = min(self.pass_tokens or math.inf, longest * len(rows))
        self.pass_tokens = max(longest, int(before) // 2)
        warnings.warn(
            f"out of memory in a pass of {int(before)} tokens; continuing with pass_tokens={self.pass_tokens}",
            RuntimeWarning,
            stacklevel=3,
        )
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gradient(self, batch: UpdateBatch, rows: list[int]) -> dict[str, torch.Tensor]:
        """Accumulate the gradient of the mean loss over some episodes' decisions; returns the loss terms."""
        total = sum(batch.num_decisions[row] for row in rows)
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "kl")
        terms = {name: torch.zeros((), device=self.device) for name in names}
        self.optimizer.zero_grad()
        for part in self.passes(batch, rows):
            width = max(batch.lengths[row] for row in part)
            index = torch.tensor(part, device=self.device)
            episodes = batch.rollout.select(index, width)
            advantages, returns = (
                values[index, :width][episodes.decisions] for values in (batch.advantages, batch.returns)
            )
            pass_terms, loss = self._loss(episodes, advantages, returns, batch.ent_coef)
            share = sum(batch.num_decisions[row] for row in part) / total
            (share * loss).backward()
            for name, value in pass_terms.items():
                terms[name] += share * value.detach()
        return terms

    def _loss(
        self, episodes: Rollout, advantages: torch.Tensor, returns: torch.Tensor, ent_coef: float
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Loss terms and loss of episodes; advantages and returns are those at their decisions, (M,)."""
        config = self.config
        current = self.policy.evaluate(episodes, reference=config.kl_coef > 0)
        log_ratio = current.log_probs - episodes.log_probs[episodes.decisions]
        terms = {
            "entropy": current.entropies.mean(),
            "approx_kl": kl_estimate(log_ratio).mean(),
            "clip_fraction": ((log_ratio.exp() - 1).abs() > config.clip_range).float().mean(),
        }
        if config.algorithm == "ppo":
            terms["policy_loss"] = ppo_loss(log_ratio, advantages, config.clip_range)
            terms["value_loss"] = (current.values - returns).square().mean()
        else:
            terms["policy_loss"] = reinforce_loss(log_ratio, advantages)
        loss = terms["policy_loss"] - ent_coef * terms["entropy"]
        if "value_loss" in terms:
            loss = loss + config.vf_coef * terms["value_loss"]
        if current.reference is not None:
            terms["kl"] = kl_estimate(current.reference - current.log_probs).mean()
            loss = loss + config.kl_coef * terms["kl"]
        return terms, loss
