"""Sums over problems, their intervals and the histograms, counted by hand."""

from typing import Any

import numpy as np
import pytest

from ollm_rl.pretrain.teacher_forced.summary import problem_sums, summarise

MODES = {"all": 2.0, "offered": 1.5}


def scores_of(*nll: float, oracle: float = 1.0, information: float = 0.5, right: bool = True) -> dict[Any, np.ndarray]:
    """Scores of a problem with the backbone's ``nll`` at each token; the other quantities are equal at all tokens."""
    size = len(nll)
    measures = {"right": float(right), "nll": oracle, "information": information, "decision_nll": oracle}
    return {
        ("backbone", "right"): np.zeros(size),
        ("backbone", "nll"): np.array(nll),
        **{
            (column, name): np.full(size, value) for column in ("oracle", "encoder") for name, value in measures.items()
        },
        **{("ambiguity", name): np.zeros(size) for name in ("deterministic", "ambiguous", "top_two")},
        ("ambiguity", "ambiguous_top_two"): np.zeros(size),
        ("options", "distinct"): np.full(size, 2.0),
        ("options", "live"): np.full(size, 1.0),
        ("options", "mutual_information"): np.full(size, 0.25),
        **{(kind, name): np.full(size, n) for kind in ("live_modes", "first_modes") for name, n in MODES.items()},
        ("listed", "options"): np.zeros((size, 3)),
    }


def summary_of(*sums: dict[Any, float], entropies: list[float] | None = None) -> dict[str, Any]:
    return summarise(sums, np.array(entropies or [0.0]), np.array([1.0000001, 0.5]), seed=0)


def test_a_problem_is_summed_over_its_tokens_and_its_answer_is_right_only_as_a_whole() -> None:
    scores = scores_of(1.0, 2.0, 4.0)
    scores["backbone", "right"] = np.array([1.0, 0.0, 1.0])
    sums = problem_sums(scores, [1, 2])
    assert sums["backbone", "nll"] == 7 and sums["backbone", "right"] == 2
    assert (sums["problem", "tokens"], sums["problem", "answers"]) == (3, 1)
    assert (sums["backbone", "answer_correct"], sums["oracle", "answer_correct"]) == (0, 1)
    assert problem_sums(scores, [2])["backbone", "answer_correct"] == 1
    assert ("listed", "options") not in sums


@pytest.mark.parametrize("answer", [[], [2, 3]])
def test_an_answer_that_is_missing_or_cut_off_does_not_count(answer: list[int]) -> None:
    sums = problem_sums(scores_of(1.0, 2.0, 4.0), answer)
    assert (sums["problem", "answers"], sums["oracle", "answer_correct"]) == (0, 0)
    assert summary_of(sums)["columns"]["oracle"]["answer_correct"] is None


def test_a_ratio_is_that_of_the_totals_and_its_interval_resamples_problems() -> None:
    # One token of 3 nats and three of 2: 9 nats over 4 tokens. Each has 1 nat under the oracle, with 0.5 revealed.
    one, other = (problem_sums(scores_of(*nll), [0]) for nll in ((3.0,), (2.0, 2.0, 2.0)))
    found = summary_of(*[one, other] * 20)
    oracle = found["columns"]["oracle"]
    assert found["columns"]["backbone"]["nll"][0] == pytest.approx(9 / 4)
    assert found["nll_gain"][0] == pytest.approx(5 / 4)
    assert oracle["information"] == pytest.approx([0.5] * 3)
    value, low, high = oracle["gain_per_nat"]
    # A draw of only the first kind gives (3 - 1) / 0.5 = 4, of only the second (2 - 1) / 0.5 = 2.
    assert value == pytest.approx(2.5) and 2 < low < value < high < 4
    assert (found["num_problems"], found["num_tokens"], found["num_answers"]) == (40, 80, 40)


def test_measures_of_the_options_have_intervals_and_are_none_without_a_mode() -> None:
    scores = scores_of(3.0, 2.0)
    scores["first_modes", "all"] = scores["first_modes", "offered"] = np.zeros(2)
    assert summary_of(problem_sums(scores, [0]))["options"] == {
        "distinct_tokens": [2, 2, 2],
        "live_share": [1, 1, 1],
        "mutual_information": [0.25, 0.25, 0.25],
        "mode_coverage_live": [0.75, 0.75, 0.75],
        "mode_coverage_first": None,
        "whole_coverage": [1, 1, 1],
    }


def test_without_revealed_information_there_is_no_gain_per_nat() -> None:
    oracle = summary_of(problem_sums(scores_of(3.0, information=0.0), [0]))["columns"]["oracle"]
    assert oracle["information"] == [0, 0, 0] and oracle["gain_per_nat"] is None
    # One problem of two reveals information. Draws without it have nothing to divide by and are left out.
    with_information, without = (problem_sums(scores_of(3.0, information=nats), [0]) for nats in (0.5, 0.0))
    value, low, high = summary_of(with_information, without)["columns"]["oracle"]["gain_per_nat"]
    assert (value, low, high) == pytest.approx((8, 4, 8))  # (2 + 2) / 0.5; twice the first: 4 / 1


def test_every_position_is_in_a_histogram_in_spite_of_rounding_errors() -> None:
    found = summary_of(problem_sums(scores_of(1.0), [0]), entropies=[-1e-9, 0.05, 0.15, 0.31])["ambiguity"]
    assert found["entropy_histogram"] == {"edges": [0.0, 0.1, 0.2, 0.3, 0.4], "counts": [2, 1, 0, 1]}
    assert found["top_two_histogram"]["counts"] == [0] * 10 + [1] + [0] * 8 + [1]
    assert found["ambiguous_top_two"] is None
