"""One iteration's update: advantages, minibatches, passes that fit into memory, and the logged terms.

Letters: N episodes, T tokens, M decisions.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.policies.recorded_passes import padded_length
from ollm_rl.agents.policies.token import TokenPolicy
from ollm_rl.agents.training.advantages import kl_estimate, ppo_loss, reinforce_loss, topr_loss
from ollm_rl.agents.training.batches import UpdateBatch
from ollm_rl.agents.training.passes import PASS_TOKENS, grouped, starting_tokens, time_of
from ollm_rl.agents.training.replay import Replay
from ollm_rl.decode.rollout import Rollout
from ollm_rl.errors import RunWarning
from ollm_rl.options.losses import steered_weight
from ollm_rl.processes import rank, sum_gradients, sum_over_processes, world_size

Pass = tuple[list[int], bool]  # its episodes, and whether it has a gradient
COEF_RATE, COEF_RANGE = 0.1, (1e-5, 1.0)


class Penalties(NamedTuple):
    """Weights of an iteration's entropy bonus and of its KL penalty towards the policy before training."""

    ent_coef: float
    kl_coef: float

    @classmethod
    def of_iteration(cls, config: RLConfig, previous: Mapping[str, float]) -> "Penalties":
        """Those of the first iteration, or moved from the previous one's by what it measured.

        With a target, ``ent_coef`` grows while the entropy is below it, and ``kl_coef`` while the KL is above; see
        `steered_weight`.
        """
        ent_coef, kl_coef = previous.get("ent_coef", config.ent_coef), previous.get("kl_coef", config.kl_coef)
        if config.target_entropy is not None and "entropy" in previous:
            error = (config.target_entropy - previous["entropy"]) / config.target_entropy
            ent_coef = steered_weight(ent_coef, error, rate=COEF_RATE, bounds=COEF_RANGE)
        if config.kl_target is not None and "kl" in previous:
            error = (previous["kl"] - config.kl_target) / config.kl_target
            kl_coef = steered_weight(kl_coef, error, rate=COEF_RATE, bounds=COEF_RANGE)
        return cls(ent_coef, kl_coef)


def learning_rate(config: RLConfig, iteration: int) -> float:
    """The learning rate of an iteration: it rises over the warm-up, then stays or falls to 0 at the end of the run."""
    if iteration < config.warmup_iterations:
        return config.learning_rate * (iteration + 1) / config.warmup_iterations
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (iteration - config.warmup_iterations) / (config.iterations - config.warmup_iterations)
    share = 1 - done if config.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * share


class Updater:
    """Optimises a policy on rollouts.

    Args:
        policy: Its trainable parameters are updated.
        config: Settings of the run.

    Attributes:
        optimizer: Adam.
        overhead: Tokens that take as long as starting a pass.
        pass_tokens: Maximum tokens of one pass, padding included; None for a whole minibatch, if the policy reads only
            decisions, which have no padding.
    """

    def __init__(self, policy: Policy, config: RLConfig) -> None:
        self.policy, self.config, self.device = policy, config, policy.backbone.device
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
        self.overhead = starting_tokens(policy.backbone.num_parameters(), self.device.type)
        self.pass_tokens = config.pass_tokens or (PASS_TOKENS if policy.reads_sequences else None)
        self.replay = Replay(config.replay)
        self._record_passes(self.pass_tokens)

    def run(
        self,
        rollout: Rollout,
        rewards: torch.Tensor,
        *,
        iteration: int,
        penalties: Penalties,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Optimise over all episodes and then over some of the replay; returns the mean of every term.

        Args:
            rollout: N episodes.
            rewards: (N,).
            iteration: Number of the iteration, from 0.
            penalties: Weights of this iteration.
            generator: CPU generator that shuffles and samples the episodes.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, iteration)
        batch = UpdateBatch.from_rollout(config, rollout, rewards, whole=self.policy.reads_sequences)
        steps = []
        for _ in range(config.epochs):
            order = torch.randperm(len(rewards), generator=generator)
            for rows in order.tensor_split(config.minibatches):
                steps.append(self.step(batch, rows.tolist(), penalties))
        if config.replay:
            self.replay.add(iteration, batch)
            for _ in range(config.replay_steps):
                sample = self.replay.sample(len(rewards) // config.minibatches, generator)
                steps.append(self.step(sample, range(len(sample.lengths)), penalties))
        means = torch.stack([torch.stack(list(terms.values())) for terms in steps]).mean(0).tolist()
        return dict(zip(steps[0], means, strict=True))

    def step(self, batch: UpdateBatch, rows: Sequence[int], penalties: Penalties) -> dict[str, torch.Tensor]:
        """One optimiser step on some episodes of a batch; if CUDA memory runs out, it is repeated in smaller passes."""
        while True:
            failed = False
            try:
                terms = self._gradient(batch, rows, penalties)
            except torch.cuda.OutOfMemoryError:
                at_least = self.pass_tokens is not None and self.pass_tokens <= max(map(batch.size, rows))
                if at_least and not self._recorded:
                    raise  # not even one episode fits
                failed = True
            if not failed:
                break
            # Outside the except block, where the error no longer keeps tensors alive.
            self._make_room(list(map(batch.size, rows)))
        weights = self.optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.clip_grad_norm_(weights, self.config.max_grad_norm)
        self.optimizer.step()
        # Without any decision there is no gradient, and its norm is a 0 on the CPU.
        return terms | {"grad_norm": norm.to(self.device)}

    def passes(self, batch: UpdateBatch, rows: Sequence[int]) -> list[list[int]]:
        """Group the episodes that have decisions into passes of at most ``pass_tokens`` tokens."""
        rows = sorted((row for row in rows if batch.num_decisions[row]), key=batch.size)
        if self.pass_tokens is None:
            return [rows] if rows else []
        sizes = list(map(batch.size, rows))
        if self._recorded:
            sizes = list(map(padded_length, sizes))
        groups = grouped(sizes, limit=self.pass_tokens, overhead=self.overhead)
        return [[rows[index] for index in group] for group in groups]

    def _record_passes(self, tokens: int | None) -> None:
        """Let a policy record its passes if to start them takes longer than to compute them; None records no more.

        Recorded passes all take as long as the largest, so large ones would be mostly padding.
        """
        self._recorded = False
        if self.device.type != "cuda" or not isinstance(self.policy, TokenPolicy):
            return
        self._recorded = tokens is not None and tokens <= min(PASS_TOKENS, self.overhead)
        self.policy.record_passes(tokens if self._recorded else None)

    def _make_room(self, sizes: list[int]) -> None:
        """Halve the passes; if they can be no smaller, record them no more, which takes memory too."""
        longest, before = max(sizes), self.pass_tokens or math.inf
        if not self._recorded:  # a recorded pass holds all tokens whatever its episodes
            before = min(before, longest * len(sizes))
        remedy = "passes that are not recorded as CUDA graphs"
        records = before > longest
        if records:
            self.pass_tokens = max(longest, int(before) // 2)
            remedy = f"pass_tokens={self.pass_tokens}"
        message = f"out of memory in a pass of {int(before)} tokens; continuing with {remedy}"
        warnings.warn(message, RunWarning, stacklevel=3)
        self.optimizer.zero_grad()
        self._record_passes(self.pass_tokens if records else None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gradient(self, batch: UpdateBatch, rows: Sequence[int], penalties: Penalties) -> dict[str, torch.Tensor]:
        """Accumulate the gradient of the mean loss over some episodes' decisions; returns the loss terms."""
        total = sum(batch.num_decisions[row] for row in rows)
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "kl")
        terms = {name: torch.zeros((), device=self.device) for name in names}
        self.optimizer.zero_grad()
        for group, teaches in self._passes_to_take(batch, rows, penalties):
            taken = batch.select(group)
            taken.know_places()
            advantages, returns = map(taken.rollout.at_places, (taken.advantages, taken.returns))
            with torch.set_grad_enabled(teaches):
                pass_terms, loss = self._loss(taken.rollout, advantages, returns, penalties)
            share = sum(taken.num_decisions) / total
            if teaches:
                (share * loss).backward()
            for name, value in pass_terms.items():
                terms[name] += share * value.detach()
        sum_gradients(self.optimizer.param_groups[0]["params"])
        return dict(zip(terms, sum_over_processes(torch.stack(list(terms.values()))), strict=True))

    def _passes_to_take(self, batch: UpdateBatch, selected: Sequence[int], penalties: Penalties) -> list[Pass]:
        """Passes over some episodes.

        In REINFORCE without penalties an episode without an advantage, as in a group of equal rewards, has no gradient.
        Such episodes have passes of their own, without the backward pass, if that takes less time than joint passes.
        """
        may_teach_nothing = self.policy.reads_sequences and self.config.algorithm == "reinforce" and not any(penalties)
        rows = _share(batch, selected)
        teaching = [row for row in rows if batch.advantaged[row]] if may_teach_nothing else rows
        others = [row for row in rows if not batch.advantaged[row]] if may_teach_nothing else []

        def planned(*parts: tuple[Sequence[int], bool]) -> list[Pass]:
            return [(group, teaches) for rows, teaches in parts for group in self.passes(batch, rows)]

        def time(passes: list[Pass]) -> int:
            return sum(
                time_of(list(map(batch.size, group)), overhead=self.overhead, gradient=teaches)
                for group, teaches in passes
            )

        passes = min(planned((teaching, True), (others, False)), planned((rows, True)), key=time)
        # Without any gradient Adam would not move by its momentum either.
        return passes if any(teaches for _, teaches in passes) else [(group, True) for group, _ in passes]

    def _loss(
        self, episodes: Rollout, advantages: torch.Tensor, returns: torch.Tensor, penalties: Penalties
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Loss terms and loss of episodes; advantages and returns are those at their decisions, (M,)."""
        config = self.config
        current = self.policy.evaluate(episodes, reference=penalties.kl_coef > 0)
        log_ratio = current.log_probs - episodes.at_places(episodes.log_probs)
        terms = {
            "entropy": current.entropies.mean(),
            "approx_kl": kl_estimate(log_ratio).mean(),
            "clip_fraction": ((log_ratio.exp() - 1).abs() > config.clip_range).float().mean(),
        }
        if config.algorithm == "ppo":
            terms["value_loss"] = (current.values - returns).square().mean()
            terms["policy_loss"] = ppo_loss(log_ratio, advantages, config.clip_range)
        elif config.ratio == "topr":
            terms["policy_loss"] = topr_loss(current.log_probs, log_ratio, advantages, episodes.places[0])
        else:
            terms["policy_loss"] = reinforce_loss(log_ratio, advantages)
        loss = terms["policy_loss"] - penalties.ent_coef * terms["entropy"]
        if "value_loss" in terms:
            loss = loss + config.vf_coef * terms["value_loss"]
        if current.reference is not None:
            terms["kl"] = kl_estimate(current.reference - current.log_probs).mean()
            loss = loss + penalties.kl_coef * terms["kl"]
        return terms, loss


def _share(batch: UpdateBatch, rows: Sequence[int]) -> Sequence[int]:
    """The episodes that this process learns from: all, or a share with about as many tokens as that of each other."""
    return sorted(rows, key=batch.size)[rank() :: world_size()] if world_size() > 1 else rows
