"""Which of a problem's completions is the answer, with the verifier (oracle) and without, and how often it is right."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.completions import Completion
from ollm_rl.answers.comparison import compare
from ollm_rl.answers.pool import shared_pool
from ollm_rl.answers.quantities import clean
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.sources import Problem

Chooser = Callable[[Sequence[Completion]], Completion]


class Written(NamedTuple):
    """What a search finds of a completion before it is judged; see `Completion` for the numbers."""

    token_ids: list[int]
    log_prob: float
    value: float
    tokens_spent: int


def judge(problem: Problem, found: Sequence[Written], tokenizer: PreTrainedTokenizerBase) -> list[Completion]:
    """The completions of a problem with the verifier's verdicts, equal texts checked once."""
    texts = tokenizer.batch_decode([one.token_ids for one in found], skip_special_tokens=True)
    checks = {text: shared_pool().submit(text, problem.answer) for text in dict.fromkeys(texts)}
    return [
        Completion(
            problem=problem,
            text=text,
            tokens=len(one.token_ids),
            terminated=one.token_ids[-1] == tokenizer.eos_token_id,
            verdict=checks[text].result(),
            log_prob=one.log_prob,
            value=one.value,
            tokens_spent=one.tokens_spent,
        )
        for text, one in zip(texts, found, strict=True)
    ]


def by_oracle(found: Sequence[Completion]) -> Completion:
    """A right one if there is any: knows the reference answer."""
    return next((one for one in found if one.verdict.correct), found[0])


def by_likelihood(found: Sequence[Completion]) -> Completion:
    """The most probable one."""
    return max(found, key=_log_prob)


def by_value(found: Sequence[Completion]) -> Completion:
    """The one of which the value head expects most."""
    return max(found, key=lambda one: -math.inf if one.value is None else one.value)


def by_majority(found: Sequence[Completion], *, equal_votes: bool = True) -> Completion:
    """The most probable one of those that state the answer with the most votes.

    Answers are one if they are equal as text, as numbers or as lists of numbers; completions without an answer do not
    vote. Equal votes go to the more probable answer.

    Args:
        found: At least one.
        equal_votes: One vote for each, as for samples; else each votes with its probability, as for the completions
            of a tree, which are never equal.
    """
    names: list[str] = []
    stated: dict[str, list[Completion]] = defaultdict(list)
    for one in found:
        if one.verdict.extracted is None:
            continue
        answer = clean(one.verdict.extracted)
        name = next((name for name in names if compare(answer, name)), None)
        if name is None:
            names.append(name := answer)
        stated[name].append(one)
    if not stated:
        return by_likelihood(found)
    groups = [
        (sum(1.0 if equal_votes else math.exp(_log_prob(voter)) for voter in voters), by_likelihood(voters))
        for voters in stated.values()
    ]
    return max(groups, key=lambda group: (group[0], _log_prob(group[1])))[1]


def choosers(names: Sequence[str], *, equal_votes: bool) -> dict[str, Chooser]:
    """The choices of these names: oracle, majority, likelihood, value."""
    known: dict[str, Chooser] = {
        "oracle": by_oracle,
        "majority": partial(by_majority, equal_votes=equal_votes),
        "likelihood": by_likelihood,
        "value": by_value,
    }
    return {name: known[name] for name in names}


def correct_at(found: Sequence[Completion], choose: Chooser, budget: float = math.inf) -> bool:
    """Whether the choice among what was finished within so many tokens is right; nothing finished is not."""
    there = [one for one in found if (one.tokens_spent or 0) <= budget]
    return bool(there) and choose(there).verdict.correct


def share(solved: list[bool]) -> dict[str, float]:
    """Share of the problems solved and its 95 % bootstrap interval: ``mean``, ``low``, ``high``."""
    low, high = bootstrap_interval(solved)
    return {"mean": sum(solved) / len(solved), "low": low, "high": high}


def result_row(
    found: list[Completion], spent: int, chosen_by: dict[str, Chooser], budgets: list[int]
) -> dict[str, Any]:
    """What ``search`` returns of a problem; the first of the choices is its answer."""
    chosen = {name: choose(found) for name, choose in chosen_by.items()}
    first, answer = next(iter(chosen.items()))
    return {
        "question": answer.problem.question,
        "answer": answer.problem.answer,
        "tokens_spent": spent,
        "completion": answer.text,
        "correct": answer.verdict.correct,
        "chosen_by": first,
        "choices": {name: {"completion": one.text, "correct": one.verdict.correct} for name, one in chosen.items()},
        "correct_at": {
            name: [correct_at(found, choose, budget) for budget in budgets] for name, choose in chosen_by.items()
        },
        "completions": [one.row() for one in found],
    }


def _log_prob(one: Completion) -> float:
    return -math.inf if one.log_prob is None else one.log_prob
