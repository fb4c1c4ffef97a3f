"""Choose a problem's answer among its completions, with the verifier (oracle) or without, and measure accuracy."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Completion
from ollm_rl.answers.pool import shared_pool
from ollm_rl.metrics.samples import same_answers
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.problem import Problem

Chooser = Callable[[Sequence[Completion]], Completion]


class Unverified(NamedTuple):
    """A completion as a search returns it, before it is verified; see `Completion` for the numbers."""

    token_ids: list[int]
    log_prob: float
    value: float
    tokens_spent: int


def verify_completions(
    problem: Problem,
    unverified: Sequence[Unverified],
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: Sequence[int],
) -> list[Completion]:
    """The completions of a problem with the verifier's verdicts; equal texts are checked once."""
    texts = tokenizer.batch_decode([result.token_ids for result in unverified], skip_special_tokens=True)
    checks = {text: shared_pool().submit(text, problem.answer) for text in dict.fromkeys(texts)}
    return [
        Completion(
            problem=problem,
            text=text,
            tokens=len(result.token_ids),
            terminated=result.token_ids[-1] in end_tokens,
            verdict=checks[text].result(),
            log_prob=result.log_prob,
            value=result.value,
            tokens_spent=result.tokens_spent,
        )
        for text, result in zip(texts, unverified, strict=True)
    ]


def by_oracle(completions: Sequence[Completion]) -> Completion:
    """A correct completion if there is one; uses the reference answer."""
    return next((completion for completion in completions if completion.verdict.correct), completions[0])


def by_likelihood(completions: Sequence[Completion]) -> Completion:
    """The most probable completion."""
    return max(completions, key=_log_prob)


def by_value(completions: Sequence[Completion]) -> Completion:
    """The completion with the highest estimate of the value head."""
    return max(completions, key=lambda completion: -math.inf if completion.value is None else completion.value)


def by_majority(completions: Sequence[Completion], *, equal_votes: bool = True) -> Completion:
    """The most probable completion of those that state the answer with the most votes.

    Answers count as the same if they are equal as text, as numbers or as lists of numbers. Completions without an
    answer do not vote. Between answers with equal votes, the one with the most probable completion wins.

    Args:
        completions: At least one.
        equal_votes: One vote for each completion, as for samples. Otherwise each votes with its probability, as for the
            completions of a tree, which are never equal.
    """
    same = same_answers([completion.verdict.extracted for completion in completions])
    if not same:
        return by_likelihood(completions)
    groups = []
    for indices in same:
        voters = [completions[index] for index in indices]
        votes = sum(1.0 if equal_votes else math.exp(_log_prob(voter)) for voter in voters)
        groups.append((votes, by_likelihood(voters)))
    return max(groups, key=lambda group: (group[0], _log_prob(group[1])))[1]


def choosers(names: Sequence[str], *, equal_votes: bool) -> dict[str, Chooser]:
    """Choosers by name: oracle, majority, likelihood, value."""
    by_name: dict[str, Chooser] = {
        "oracle": by_oracle,
        "majority": partial(by_majority, equal_votes=equal_votes),
        "likelihood": by_likelihood,
        "value": by_value,
    }
    return {name: by_name[name] for name in names}


def correct_at(completions: Sequence[Completion], choose: Chooser, budget: float = math.inf) -> bool:
    """Whether the choice among completions finished within ``budget`` tokens is correct; False if there are none."""
    finished = [completion for completion in completions if (completion.tokens_spent or 0) <= budget]
    return bool(finished) and choose(finished).verdict.correct


def share(solved: list[bool]) -> dict[str, float]:
    """Share of the problems solved and its 95 % bootstrap interval: ``mean``, ``low``, ``high``."""
    low, high = bootstrap_interval(solved)
    return {"mean": sum(solved) / len(solved), "low": low, "high": high}


def result_row(
    completions: list[Completion], tokens_spent: int, choosers_by_name: dict[str, Chooser], budgets: list[int]
) -> dict[str, Any]:
    """What ``search`` returns for a problem; the answer is that of the first chooser."""
    chosen = {name: choose(completions) for name, choose in choosers_by_name.items()}
    first, answer = next(iter(chosen.items()))
    return {
        "question": answer.problem.question,
        "answer": answer.problem.answer,
        "tokens_spent": tokens_spent,
        "completion": answer.text,
        "correct": answer.verdict.correct,
        "chosen_by": first,
        "choices": {name: {"completion": each.text, "correct": each.verdict.correct} for name, each in chosen.items()},
        "correct_at": {
            name: [correct_at(completions, choose, budget) for budget in budgets]
            for name, choose in choosers_by_name.items()
        },
        "completions": [completion.row() for completion in completions],
    }


def _log_prob(completion: Completion) -> float:
    return -math.inf if completion.log_prob is None else completion.log_prob
