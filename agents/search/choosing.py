"""Which of a problem's completions is the answer, with the verifier (oracle) and without, and how often it is right."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ollm_rl.agents.search.samples import Sample, pass_at_k
from ollm_rl.answers.comparison import compare
from ollm_rl.answers.pool import Verdict, shared_pool
from ollm_rl.answers.quantities import clean
from ollm_rl.metrics.statistics import bootstrap_interval
from ollm_rl.problems.sources import Problem


@dataclass(frozen=True)
class Candidate:
    """A finished completion.

    Attributes:
        text: Without special tokens.
        log_prob: Of its tokens in nats, options added up by token.
        value: The value head's estimate at its last h_t.
        spent: Tokens generated for its problem until it was finished.
        vote: Its weight in the majority.
        verdict: The verifier's.
    """

    text: str
    log_prob: float
    value: float
    spent: int
    vote: float
    verdict: Verdict


Chooser = Callable[[Sequence[Candidate]], Candidate]


def by_oracle(found: Sequence[Candidate]) -> Candidate:
    """A right one if there is any: knows the reference answer."""
    return next((candidate for candidate in found if candidate.verdict.correct), found[0])


def by_likelihood(found: Sequence[Candidate]) -> Candidate:
    """The most probable one."""
    return max(found, key=lambda candidate: candidate.log_prob)


def by_value(found: Sequence[Candidate]) -> Candidate:
    """The one of which the value head expects most."""
    return max(found, key=lambda candidate: candidate.value)


def by_majority(found: Sequence[Candidate]) -> Candidate:
    """The most probable one of those that state the answer with the most votes.

    Answers are one if they are equal as text, as numbers or as lists of numbers; completions without an answer do not
    vote. Equal votes go to the more probable answer.
    """
    names: list[str] = []
    stated: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in found:
        if candidate.verdict.extracted is None:
            continue
        answer = clean(candidate.verdict.extracted)
        name = next((name for name in names if compare(answer, name)), None)
        if name is None:
            names.append(name := answer)
        stated[name].append(candidate)
    if not stated:
        return by_likelihood(found)
    groups = [(sum(voter.vote for voter in voters), by_likelihood(voters)) for voters in stated.values()]
    return max(groups, key=lambda group: (group[0], group[1].log_prob))[1]


CHOOSERS: dict[str, Chooser] = {
    "oracle": by_oracle,
    "majority": by_majority,
    "likelihood": by_likelihood,
    "value": by_value,
}


def correct_at(found: Sequence[Candidate], choice: str, budget: float = math.inf) -> bool:
    """Whether the choice among what was finished within so many tokens is right; nothing finished is not."""
    there = [candidate for candidate in found if candidate.spent <= budget]
    return bool(there) and CHOOSERS[choice](there).verdict.correct


def judge_all(
    found: list[list[Sample]], problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, equal_votes: bool
) -> list[list[Candidate]]:
    """The completions of every problem with the verifier's verdicts, equal texts checked once."""
    candidates = []
    for samples, problem in zip(found, problems, strict=True):
        texts = tokenizer.batch_decode([sample.tokens for sample in samples], skip_special_tokens=True)
        checks = {text: shared_pool().submit(text, problem.answer) for text in dict.fromkeys(texts)}
        candidates.append(
            [
                Candidate(
                    text=text,
                    log_prob=sample.log_prob,
                    value=sample.value,
                    spent=sample.spent,
                    vote=1.0 if equal_votes else math.exp(sample.log_prob),
                    verdict=checks[text].result(),
                )
                for text, sample in zip(texts, samples, strict=True)
            ]
        )
    return candidates


def shares_at_k(candidates: list[list[Candidate]], found: list[list[Sample]], latest: int) -> dict[int, float]:
    """pass@k for k = 1, 2, 4, ... from the same number of samples of every problem.

    Those count that began within ``latest`` tokens, where the whole token limit still fitted the budget: one that
    began later is known only if it is short.
    """
    begun = [[sample.spent - len(sample.tokens) <= latest for sample in samples] for samples in found]
    count = min(map(sum, begun))
    correct = [sum(candidate.verdict.correct for candidate in row[:count]) for row in candidates]
    return {
        2**power: sum(pass_at_k(count, right, 2**power) for right in correct) / len(correct)
        for power in range(count.bit_length())
    }


def share(solved: list[bool]) -> dict[str, float]:
    """Share of the problems solved and its 95 % bootstrap interval: ``mean``, ``low``, ``high``."""
    low, high = bootstrap_interval(solved)
    return {"mean": sum(solved) / len(solved), "low": low, "high": high}


def result_row(
    problem: Problem, found: list[Candidate], spent: int, names: list[str], budgets: list[int]
) -> dict[str, Any]:
    """What ``search`` returns of a problem; the first of the choices ``names`` is its answer."""
    chosen = {name: CHOOSERS[name](found) for name in names}
    return {
        "question": problem.question,
        "answer": problem.answer,
        "tokens_spent": spent,
        "completion": chosen[names[0]].text,
        "correct": chosen[names[0]].verdict.correct,
        "chosen_by": names[0],
        "choices": {name: {"completion": one.text, "correct": one.verdict.correct} for name, one in chosen.items()},
        "correct_at": {name: [correct_at(found, name, budget) for budget in budgets] for name in names},
        "completions": [
            {
                "completion": one.text,
                "correct": one.verdict.correct,
                "log_prob": one.log_prob,
                "tokens_spent": one.spent,
            }
            for one in found
        ],
    }
