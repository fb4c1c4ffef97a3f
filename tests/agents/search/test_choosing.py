"""The rules that choose a completion, and pass@k."""

from itertools import product
from typing import Any

import pytest

from ollm_rl.agents.completions import Completion
from ollm_rl.agents.search.choosing import by_likelihood, by_majority, by_oracle, correct_at
from ollm_rl.answers.pool import Verdict
from ollm_rl.metrics.samples import pass_at_k
from tests.agents.search.test_search import PROBLEMS


def test_pass_at_k_is_the_share_of_the_subsets_with_a_right_sample() -> None:
    for samples, correct in product(range(1, 6), range(6)):
        for k in range(1, samples + 1):
            if correct <= samples:
                subsets = [s for s in product([0, 1], repeat=samples) if sum(s) == k]
                hit = sum(any(s[:correct]) for s in subsets)
                assert pass_at_k(samples, correct, k) == pytest.approx(hit / len(subsets))
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)  # 1 - C(3, 3) / C(5, 3)
    with pytest.raises(ValueError, match="k=6 .* samples=5; take more samples"):
        pass_at_k(5, 2, 6)


def candidate(answer: str | None, log_prob: float, *, correct: bool = False, spent: int = 0) -> Completion:
    verdict = Verdict(correct, answer, "boxed", "ok")
    facts: dict[str, Any] = {"tokens": 1, "terminated": True, "log_prob": log_prob, "tokens_spent": spent}
    return Completion(problem=PROBLEMS[0], text=f"{answer}", verdict=verdict, **facts)


def test_each_choice_follows_the_rule_in_its_name() -> None:
    found = [
        candidate("3", -1.0, spent=5),
        candidate(r"\frac{1}{2}", -3.0, spent=9),
        candidate("0.5", -2.0, spent=20),
        candidate(None, -0.5, spent=25),
        candidate("8", -9.0, correct=True, spent=30),
    ]
    assert by_likelihood(found) is found[3]
    assert by_majority(found) is found[2]  # two votes for a half, which 0.5 states more probably
    assert by_majority(found, equal_votes=False) is found[0]  # exp(-1) against exp(-2) + exp(-3)
    assert by_oracle(found) is found[4]
    assert by_majority([found[3]]) is found[3]
    assert [correct_at(found, by_oracle, budget) for budget in (4, 29, 30)] == [False, False, True]
    assert not correct_at(found, by_majority)
