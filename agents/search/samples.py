"""Independent samples at a token budget: what best-of-N chooses from, over options and over the vocabulary alike."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ollm_rl.agents.policies.base import Policy, draw
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.turns import Action


class Sample(NamedTuple):
    """A finished completion.

    Attributes:
        tokens: Its ids.
        log_prob: Its log-probability in nats at temperature 1, options added up by token.
        value: The value head's estimate at its last h_t.
        spent: Tokens generated for its prompt until it was finished, its own included.
    """

    tokens: list[int]
    log_prob: float
    value: float
    spent: int


class Tempered:
    """A policy sampled at a temperature: token probabilities to the power of 1 / temperature, scaled to sum to 1."""

    def __init__(self, policy: Policy, temperature: float) -> None:
        self.policy, self.temperature = policy, temperature

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """As ``OptionPolicy.act``; log-probabilities are those at temperature 1."""
        tokens, log_probs = self.policy.choices(hidden_states)
        if uniforms is None:
            chosen = log_probs.argmax(-1)
        else:
            chosen = draw((log_probs / self.temperature).softmax(-1), uniforms)
        return Action(
            tokens=tokens.gather(1, chosen[:, None])[:, 0],
            log_probs=log_probs.gather(1, chosen[:, None])[:, 0],
            values=self.policy.value_head(hidden_states.float())[:, 0],
            decisions=(log_probs > -torch.inf).sum(-1) > 1,
        )


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is right, without bias (Chen et al. 2021, eq. 1).

    Args:
        samples: n independent samples.
        correct: c of them are right.
        k: At most n.

    Raises:
        ValueError: If k is not within 1 to n, or c not within 0 to n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"k={k} and correct={correct} must fit samples={samples}; take more samples or lower k")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def draw_samples(
    actor: Tempered,
    engine: DecodeEngine,
    prompts: Sequence[list[int]],
    *,
    budget_tokens: int,
    max_new_tokens: int,
    end_token: int,
    generator: torch.Generator,
) -> tuple[list[list[Sample]], list[int]]:
    """Sample completions of every prompt until its budget is spent.

    As many are drawn at once as are sure to fit, and again for what these have left over. The last one of a prompt may
    only be as long as the budget still allows; cut by the budget rather than by the token limit it is no completion,
    but its tokens count.

    Returns:
        For each prompt its completions, as if they had been drawn one after the other, and the tokens generated.
    """
    found: list[list[Sample]] = [[] for _ in prompts]
    spent = [0] * len(prompts)
    while any(tokens < budget_tokens for tokens in spent):
        limits = [
            (index, min(max_new_tokens, budget_tokens - tokens))
            for index, tokens in enumerate(spent)
            for _ in range(max(1, (budget_tokens - tokens) // max_new_tokens))
            if tokens < budget_tokens
        ]
        rollout = collect(
            actor,
            engine,
            [prompts[index] for index, _ in limits],
            max_new_tokens=[limit for _, limit in limits],
            end_token=end_token,
            generator=generator,
        )
        lengths = rollout.completion_mask.sum(1).tolist()
        totals = rollout.log_probs.where(rollout.completion_mask, 0).sum(1).tolist()
        rows = zip(limits, rollout.tokens.tolist(), lengths, totals, rollout.terminated.tolist(), strict=True)
        for row, ((index, limit), tokens, length, total, ended) in enumerate(rows):
            spent[index] += length
            if ended or limit == max_new_tokens:
                value = float(rollout.values[row, length - 1])
                found[index].append(Sample(tokens[:length], total, value, spent[index]))
    return found, spent
