"""Reward terms and their sum, worked by hand."""

import pytest

from ollm_rl.answers.pool import Verdict
from ollm_rl.envs.rewards import (
    all_weights,
    answer_format,
    correctness,
    language_consistency,
    length,
    repetition,
    reward_terms,
    total,
)

RIGHT = Verdict(True, "7", "boxed", "ok")
WRONG = Verdict(False, "8", "last_number", "ok")
BROKEN = Verdict(False, "7", "boxed", "timeout")
NONE = Verdict(False, None, None, "no_answer")


def test_a_right_answer_is_worth_one_and_a_broken_check_what_the_caller_says() -> None:
    assert [correctness(verdict) for verdict in (RIGHT, WRONG, BROKEN, NONE)] == [1.0, 0.0, 0.0, 0.0]
    assert [correctness(verdict, failure=0.5) for verdict in (RIGHT, WRONG, BROKEN, NONE)] == [1.0, 0.0, 0.5, 0.0]


def test_only_a_stated_answer_has_a_format() -> None:
    assert [answer_format(verdict) for verdict in (RIGHT, WRONG, NONE)] == [1.0, 0.0, 0.0]


def test_length_costs_up_to_one() -> None:
    assert (length(0, 96), length(24, 96), length(96, 96)) == (0.0, -0.25, -1.0)


def test_a_completion_in_another_language_is_inconsistent() -> None:
    question = "Ana has five apples and buys three more. How many apples does she have?"
    assert language_consistency(question, "She starts with five apples and then buys three, so she has 8.") == 1.0
    assert language_consistency(question, "Empieza con cinco manzanas y luego compra tres, entonces tiene 8.") == 0.0


def test_repetition_counts_sequences_of_four_that_occurred_before() -> None:
    assert repetition("one two three four five six") == 0.0
    # a b c d | b c d a | c d a b | d a b c | a b c d: one of five is an old one.
    assert repetition("a b c d a b c d") == pytest.approx(-1 / 5)
    assert repetition("ha " * 103) == pytest.approx(-99 / 100)
    assert repetition("too short") == 0.0


def test_terms_without_a_weight_are_not_computed_and_the_rest_add_up() -> None:
    settings = {"tokens": 24, "max_tokens": 96}
    alone = reward_terms("2 + 5?", "It is 7.", RIGHT, weights={"correctness": 1.0, "format": 0.0}, **settings)
    assert alone == {"correctness": 1.0}
    weights = {"correctness": 2.0, "format": 0.5, "length": 0.1}
    terms = reward_terms("2 + 5?", "It is 7.", RIGHT, weights=weights, **settings)
    assert terms == {"correctness": 1.0, "format": 1.0, "length": -0.25}
    assert total(terms, weights) == pytest.approx(2.0 + 0.5 - 0.025)


def test_a_term_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="reward term 'brevity' is unknown; give weights for correctness, format"):
        all_weights({"brevity": 1.0})
