"""Independent samples at a token budget: what best-of-N chooses from, over options and over the vocabulary alike."""

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Completion
from ollm_rl.agents.policies.base import Policy, draw
from ollm_rl.agents.search.choosing import Written, judge
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.turns import Action, Turns
from ollm_rl.problems.sources import Problem


class Tempered:
    """A policy sampled at a temperature: token probabilities to the power of 1 / temperature, scaled to sum to 1."""

    def __init__(self, policy: Policy, temperature: float) -> None:
        self.policy, self.temperature = policy, temperature

    @torch.no_grad()
    def act(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Action:
        """As ``Policy.act``; log-probabilities are those at temperature 1."""
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


def shares_at_k(completions: list[list[Completion]], latest: int) -> dict[int, float]:
    """pass@k for k = 1, 2, 4, ... from the same number of samples of every problem.

    Those count that began within ``latest`` tokens, where the whole token limit still fitted the budget: one that
    began later is known only if it is short.
    """
    begun = [[(one.tokens_spent or 0) - one.tokens <= latest for one in row] for row in completions]
    count = min(map(sum, begun))
    correct = [sum(one.verdict.correct for one in row[:count]) for row in completions]
    return {
        2**power: sum(pass_at_k(count, right, 2**power) for right in correct) / len(correct)
        for power in range(count.bit_length())
    }


def draw_samples(
    turns: Turns,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    budget_tokens: int,
    max_new_tokens: int,
    generator: torch.Generator,
) -> tuple[list[list[Completion]], list[int]]:
    """Sample completions of every problem until its budget is spent.

    As many are drawn at once as are sure to fit, and again for what these have left over. The last one of a problem may
    only be as long as the budget still allows; cut by the budget rather than by the token limit it is no completion,
    but its tokens count.

    Returns:
        For each problem its completions, as if they had been drawn one after the other, and the tokens generated.
    """
    found: list[list[Written]] = [[] for _ in prompts]
    spent = [0] * len(prompts)
    while any(tokens < budget_tokens for tokens in spent):
        limits = [
            (index, min(max_new_tokens, budget_tokens - tokens))
            for index, tokens in enumerate(spent)
            for _ in range(max(1, (budget_tokens - tokens) // max_new_tokens))
            if tokens < budget_tokens
        ]
        rollout = collect(
            turns,
            [prompts[index] for index, _ in limits],
            max_new_tokens=[limit for _, limit in limits],
            end_token=int(tokenizer.eos_token_id),
            generator=generator,
        )
        lengths = rollout.completion_mask.sum(1).tolist()
        totals = rollout.log_probs.where(rollout.completion_mask, 0).sum(1).tolist()
        rows = zip(limits, rollout.tokens.tolist(), lengths, totals, rollout.terminated.tolist(), strict=True)
        for row, ((index, limit), tokens, length, total, ended) in enumerate(rows):
            spent[index] += length
            if ended or limit == max_new_tokens:
                value = float(rollout.values[row, length - 1])
                found[index].append(Written(tokens[:length], total, value, spent[index]))
    return [judge(*case, tokenizer) for case in zip(problems, found, strict=True)], spent
