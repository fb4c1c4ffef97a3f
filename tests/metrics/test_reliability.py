"""Statistics over a few runs against numbers worked by hand and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from ollm_rl.metrics.reliability import interquartile_mean, probability_of_improvement, stratified_interval


def test_the_interquartile_mean_drops_a_quarter_at_either_end() -> None:
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 5.0, 4.0, 0.0, -100.0]) == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert interquartile_mean([[100.0, 1.0], [2.0, -100.0]]) == pytest.approx(1.5), "over all runs and tasks together"


def test_the_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    assert probability_of_improvement([3.0, 1.0], [2.0, 1.0]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert probability_of_improvement([-math.inf], [-math.inf]) == 0.5, "neither ever got there"
    assert probability_of_improvement([-5.0], [-math.inf]) == 1
    by_task = probability_of_improvement([[3.0, 0.0], [1.0, 0.0]], [[2.0, 1.0], [1.0, 1.0]])
    assert by_task == pytest.approx((2.5 / 4 + 0) / 2)


def test_an_interval_is_that_of_scipy() -> None:
    scores = np.random.default_rng(0).normal(size=30)
    low, high = stratified_interval(lambda drawn: float(drawn.mean()), scores)
    expected = stats.bootstrap((scores,), np.mean, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.02)


def test_tasks_are_drawn_apart_and_so_are_the_methods() -> None:
    # Each task has one run twice: whatever is drawn, the mean over runs and tasks is the same.
    scores = [[1.0, 10.0], [1.0, 10.0]]
    assert stratified_interval(interquartile_mean, scores, num_resamples=50) == (5.5, 5.5)
    low, high = stratified_interval(lambda a, b: float(a.mean() - b.mean()), [0.0, 1.0], [0.0, 1.0], num_resamples=500)
    assert (low, high) == (-1, 1)


def test_an_interval_may_end_at_never() -> None:
    low, high = stratified_interval(lambda drawn: float(np.sort(drawn)[1]), [64.0, 96.0, math.inf], num_resamples=500)
    assert (low, high) == (64, math.inf)
