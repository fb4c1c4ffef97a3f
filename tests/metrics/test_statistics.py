"""Intervals, paired comparisons, learning curves and rankings, by hand and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from ollm_rl.metrics.statistics import area_under_curve, bootstrap_interval, compare_paired, rank, time_to_threshold


def test_the_interval_of_a_fair_coin_is_that_of_the_normal_distribution() -> None:
    # 400 tosses, standard error 0.5 / 20 = 0.025, so 0.5 -+ 1.96 * 0.025 = 0.451, 0.549.
    lower, upper = bootstrap_interval([0, 1] * 200)
    assert lower == pytest.approx(0.451, abs=0.006)
    assert upper == pytest.approx(0.549, abs=0.006)


def test_data_without_spread_get_the_exact_binomial_interval() -> None:
    # 0.025 ** (1 / 500) = exp(-3.688879 / 500) = 0.9926494
    assert bootstrap_interval([0] * 500) == pytest.approx((0.0, 0.0073506), abs=1e-6)
    assert bootstrap_interval([1] * 500) == pytest.approx((0.9926494, 1.0), abs=1e-6)


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(7).normal(size=50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_more_confidence_means_a_wider_interval() -> None:
    values = np.arange(30.0)
    narrow, wide = bootstrap_interval(values, confidence=0.5), bootstrap_interval(values, confidence=0.99)
    assert wide[0] < narrow[0] < 14.5 < narrow[1] < wide[1]


@pytest.mark.parametrize(("values", "confidence"), [([], 0.95), ([1.0, float("nan")], 0.95), ([1.0], 95)])
def test_an_interval_of_no_numbers_is_refused(values: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match="must"):
        bootstrap_interval(values, confidence=confidence)


def test_an_interval_agrees_with_scipys_on_the_same_values() -> None:
    values = np.random.default_rng(3).exponential(size=200)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000).confidence_interval
    assert bootstrap_interval(values, num_resamples=20_000) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_an_interval_over_seeds_and_problems_covers_the_spread_of_both() -> None:
    # 30 seeds with standard deviation 0.3, 400 problems with 1.0 (the same for all seeds), nothing else: the mean's
    # standard error is sqrt(0.09 / 30 + 1 / 400) = 0.0742. Over only the problems it would be 0.05.
    generator = np.random.default_rng(0)
    seeds, problems = generator.normal(size=30), generator.normal(size=400)
    values = 0.3 * stats.zscore(seeds)[:, None] + stats.zscore(problems)[None, :]
    low, high = bootstrap_interval(values, num_resamples=20_000)
    assert (low, high) == pytest.approx((-1.96 * 0.0742, 1.96 * 0.0742), abs=0.006)
    low, high = bootstrap_interval(values.mean(0), num_resamples=20_000)
    assert (low, high) == pytest.approx((-1.96 * 0.05, 1.96 * 0.05), abs=0.004)


def test_one_row_of_seeds_is_a_row_of_problems() -> None:
    values = np.random.default_rng(1).normal(size=60)
    assert bootstrap_interval(values[None, :]) == bootstrap_interval(values)


def test_a_single_value_has_no_spread() -> None:
    assert bootstrap_interval([0.5]) == (0.5, 0.5)


def test_two_methods_are_compared_problem_by_problem() -> None:
    # Five problems, all won: of the 2**5 sign flips two have a mean as far from 0, so p = 2 / 32.
    comparison = compare_paired([1, 1, 1, 1, 1], [0, 0, 0, 0, 0])
    assert (comparison.difference, comparison.high, comparison.p_value) == (1, 1, pytest.approx(0.0625))
    assert comparison.low == pytest.approx(0.025 ** (1 / 5))
    # Three won, one lost, four alike. Flips of the four that differ: |mean| >= 2 / 8 for 2 * (1 + 4) of 16.
    comparison = compare_paired([1, 1, 1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0])
    assert (comparison.difference, comparison.p_value) == (0.25, pytest.approx(10 / 16))
    assert comparison.low < 0.25 < comparison.high


def test_pairing_sees_a_difference_that_two_intervals_hide() -> None:
    # 30 % of the problems are solved by both, and 4 of 100 more by the first: p = 2 * 0.5**4.
    first, second = np.zeros(100), np.zeros(100)
    first[:34], second[:30] = 1, 1
    comparison = compare_paired(first, second)
    assert comparison.low > 0
    assert comparison.p_value == pytest.approx(0.125, abs=0.01)
    assert len(rank({"first": bootstrap_interval(first), "second": bootstrap_interval(second)})) == 1


def test_methods_that_never_differ_may_still_differ_on_unseen_problems() -> None:
    comparison = compare_paired([0, 1] * 250, [0, 1] * 250)
    assert comparison == pytest.approx((0, -0.0073506, 0.0073506, 1), abs=1e-6)  # the exact interval of 0 in 500


def test_a_comparison_over_seeds_averages_them_for_its_p_value() -> None:
    first, second = [[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert compare_paired(first, second)[::3] == pytest.approx((0.9, 0.0625))


def test_a_comparison_of_other_problems_is_refused() -> None:
    with pytest.raises(ValueError, match=r"first has shape \(1, 3\) and second \(1, 2\)"):
        compare_paired([1, 0, 1], [1, 0])


def test_the_area_under_a_curve_is_its_mean_height() -> None:
    # 0.2 to 0.4 over 100 episodes, then 0.4 to 0.8 over 300: (0.3 * 100 + 0.6 * 300) / 400.
    times, rewards = [100, 200, 500], [0.2, 0.4, 0.8]
    assert area_under_curve(times, rewards) == pytest.approx(0.525)
    assert area_under_curve([0, 3, 7], [0.5, 0.5, 0.5]) == 0.5
    # Until 350 the second piece ends at 0.6: (0.3 * 100 + 0.5 * 150) / 250.
    assert area_under_curve(times, rewards, until=350) == pytest.approx(0.42)
    assert area_under_curve(times, rewards, until=200) == pytest.approx(0.3)


def test_the_time_to_a_threshold_is_that_of_the_first_measurement_that_reaches_it() -> None:
    times, rewards = [256, 512, 768, 1024], [0.1, 0.5, 0.4, 0.9]
    assert time_to_threshold(times, rewards, 0.5) == 512
    assert time_to_threshold(times, rewards, 0.51) == 1024
    assert time_to_threshold(times, rewards, 0.1) == 256
    assert time_to_threshold(times, rewards, 0.95) is None
    assert time_to_threshold([8], [0.5], 0.5) == 8 and time_to_threshold([8, 16], [math.nan, 0.5], 0.5) == 16
    with pytest.raises(ValueError, match="one value at least"):
        time_to_threshold([], [], 0.5)


@pytest.mark.parametrize(
    ("times", "rewards", "until", "message"),
    [
        ([1, 2], [0.5], None, r"times \(2\) and rewards \(1\)"),
        ([1], [0.5], None, "two values at least"),
        ([1, 3, 2], [0.1, 0.2, 0.3], None, "times must grow"),
        ([1, 2], [0.1, 0.2], 3.0, "until=3 is not within the curve, which goes from 1 to 2"),
        ([1, 2], [0.1, 0.2], 1.0, "until=1 is not within"),
    ],
)
def test_an_invalid_curve_is_refused(
    times: list[float], rewards: list[float], until: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        area_under_curve(times, rewards, until=until)


def test_methods_are_ranked_only_where_their_intervals_are_apart() -> None:
    intervals = {"low": (0.1, 0.2), "high": (0.7, 0.8), "middle": (0.4, 0.5)}
    assert rank(intervals) == [["high"], ["middle"], ["low"]]
    assert rank({**intervals, "wide": (0.45, 0.75)}) == [["high", "middle", "wide"], ["low"]]  # "wide" connects two
    assert rank({"one": (0.1, 0.3), "other": (0.3, 0.5)}) == [["one", "other"]]  # they touch
    assert rank({}) == []


def test_an_invalid_interval_is_not_ranked() -> None:
    with pytest.raises(ValueError, match=r"interval of 'b' is \(0.5, 0.2\)"):
        rank({"a": (0.1, 0.2), "b": (0.5, 0.2)})
    with pytest.raises(ValueError, match="both finite"):
        rank({"a": (float("nan"), 0.2)})
