"""Intervals over seeds, and the lines and shades of a plot."""

import math
import re

import pytest

from ollm_rl.report.maps import heat_map
from ollm_rl.report.plots import SERIES, Style, curve_plot, interval_plot, t_interval
from tests.report.test_report import Page


def test_the_interval_over_seeds_is_students() -> None:
    # Mean 2, standard error 1 / sqrt(3); Student's t with 2 degrees of freedom has 97.5 % below 4.302653.
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert t_interval([1.0, math.nan, 3.0]) == pytest.approx((2.0, 2 - 12.706205, 2 + 12.706205), abs=1e-5)


def test_one_seed_has_no_interval() -> None:
    mean, low, high = t_interval([0.4, math.nan])
    assert mean == 0.4 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, t_interval([])))


def test_a_line_is_the_mean_up_to_the_last_point_that_all_seeds_reached() -> None:
    def seed(rewards: list[float]) -> list[dict[str, float]]:
        return [{"episodes": 10.0 * place, "reward": reward} for place, reward in enumerate(rewards)]

    style = {"a": Style(SERIES[0], "none")}
    plots = [
        curve_plot({"a": seeds}, style, x="episodes", y="reward")
        for seeds in ([seed([0.0, 0.4, 1.0]), seed([0.2, 0.8])], [seed([0.1, 0.6])])
    ]
    lines = [re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-0\)', plot) for plot in plots]
    assert len(lines[0]) == len(lines[1]) == 1
    assert lines[0][0].count("L") == lines[1][0].count("L") == 1  # two points each


def test_a_map_shades_what_is_above_zero() -> None:
    plot = heat_map([[0.5, 0.0, 1.0], [1.0]], x="token", y="completion", first=1, top=1.0, label="", shown=str)
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', plot)
    squares = {style: path.count("M") for path, style in paths if "--series-0" in style}
    assert sorted(squares.values()) == [1, 2]  # one cell in half the shade, two in the full shade
    (full,) = [style for style, count in squares.items() if count == 2]
    assert "fill-opacity: 0" not in full
