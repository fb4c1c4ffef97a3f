"""Independent samples within a token budget, for best-of-N, over options or over the vocabulary."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Completion
from ollm_rl.agents.search.choosing import Unverified, verify_completions
from ollm_rl.backbones.vocabulary import end_tokens
from ollm_rl.decode.rollout import collect
from ollm_rl.decode.turns import Turns
from ollm_rl.metrics.samples import pass_at_k
from ollm_rl.problems.problem import Problem


def shares_at_k(completions: list[list[Completion]], latest: int) -> dict[int, float]:
    """pass@k for k = 1, 2, 4, ... from the same number of samples of every problem.

    Only samples that began within ``latest`` tokens count, where the whole token limit still fitted the budget. One
    that began later is known only if it is short.
    """
    counted = [[(sample.tokens_spent or 0) - sample.tokens <= latest for sample in row] for row in completions]
    num_samples = min(map(sum, counted))
    correct = [sum(sample.verdict.correct for sample in row[:num_samples]) for row in completions]
    return {
        2**power: sum(pass_at_k(num_samples, num_correct, 2**power) for num_correct in correct) / len(correct)
        for power in range(num_samples.bit_length())
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

    Each round draws as many as are sure to fit the remaining budget. The last one of a problem may be only as long as
    the budget still allows. If the budget cuts it, it is no completion, but its tokens count.

    Returns:
        For each problem its completions, as if they had been drawn one after the other, and the tokens generated.
    """
    ends = end_tokens(turns.engine.backbone, tokenizer)
    unverified: list[list[Unverified]] = [[] for _ in prompts]
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
            end_tokens=ends,
            generator=generator,
        )
        lengths = rollout.completion_mask.sum(1).tolist()
        totals = rollout.log_probs.where(rollout.completion_mask, 0).sum(1).tolist()
        rows = zip(limits, rollout.tokens.tolist(), lengths, totals, rollout.terminated.tolist(), strict=True)
        for row, ((index, limit), tokens, length, total, ended) in enumerate(rows):
            spent[index] += length
            if ended or limit == max_new_tokens:
                value = float(rollout.values[row, length - 1])
                unverified[index].append(Unverified(tokens[:length], total, value, spent[index]))
    return [verify_completions(*pair, tokenizer, ends) for pair in zip(problems, unverified, strict=True)], spent
