"""Intervals over seeds, and the lines and shades of a plot."""

import math
import re

import pytest

from ollm_rl.report.canvas import SERIES, Style
from ollm_rl.report.maps import heat_map
from ollm_rl.report.plots import curve_plot, interval_plot, t_interval
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


def told(plot: str) -> list[str]:
    """What is shown on hover, in the order of the lines."""
    return [text for _, _, text in Page(plot).spots]


def drawn(y: str, *values: float | None, share: bool = False) -> str:
    """A plot of one method, with 10 episodes per iteration."""
    rows = [{"episodes": 10.0 * (place + 1), y: value} for place, value in enumerate(values)]
    return str(curve_plot({"a": [rows]}, {"a": Style(SERIES[0], "none")}, x="episodes", y=y, share=share))


def ticks(plot: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", plot)


def test_a_line_begins_at_0_episodes_with_the_untrained_policy() -> None:
    assert told(drawn("reward", 0.25, None, 0.75)) == ["a: 0.25 after 0 episodes", "a: 0.75 after 20 episodes"]


def test_the_start_of_a_long_run_is_a_point_of_its_own() -> None:
    texts = told(drawn("reward", 0.0, *([1.0] * 99)))  # 99 iterations in blocks of three: 34 points
    assert len(texts) == 34 and texts[0] == "a: 0 after 0 episodes"
    assert texts[1] == "a: 1 after 20 episodes"  # before the iterations 2 to 4 there were 10, 20 and 30


def test_shares_are_written_in_per_cent_on_an_axis_from_0_to_1() -> None:
    plot = drawn("degeneracy_rate", 0.01, 0.02, share=True)
    assert [text for text in ticks(plot) if "%" in text] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert told(plot)[0] == "a: 1.0 % after 0 episodes"


def test_rewards_between_0_and_1_have_the_whole_axis_and_others_their_own() -> None:
    assert ticks(drawn("reward", 0.5, 0.6))[-5:] == ["0", "0.25", "0.5", "0.75", "1"]
    assert "2" in ticks(drawn("reward", 0.5, 2.0)) and "-1" in ticks(drawn("reward", -1.0, 0.5))


def test_a_spot_lies_on_its_line() -> None:
    plot = drawn("reward", 0.0, 1.0)
    (line,) = re.findall(r'<path d="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+)', plot.replace("\n", ""))[-1:]
    places = [place for x, y, _ in Page(plot).spots for place in (x, y)]
    assert places == pytest.approx([float(number) for number in line], abs=0.1)


def test_a_label_stands_beside_its_dot_where_there_is_more_room() -> None:
    plot = interval_plot([("high", [0.9, 0.8, 1.0], SERIES[0]), ("low", [0.1, 0.0, 0.2], SERIES[1])], "solved")
    spots = {text: (x, y) for x, y, text in Page(plot).spots}
    assert list(spots) == ["high: 90.0 % [80.0, 100.0]", "low: 10.0 % [0.0, 20.0]"]
    labels = {
        text: (float(x), float(y))
        for x, y, text in re.findall(r'<text[^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>((?:high|low) [^<]*)', plot)
    }
    for (x, y), (text, (label_x, label_y)) in zip(spots.values(), labels.items(), strict=True):
        assert abs(label_y - y) < 6, text
        assert (label_x > x) == text.startswith("low")


def test_equal_values_have_one_shade_in_all_maps_and_faint_ones_none() -> None:
    def shades(values: list[list[float]]) -> list[str]:
        plot = heat_map(values, x="token", y="option", first=0, top=2.0, label="", shown=lambda value: f"{value} nats")
        return [style for style in re.findall(r'style="([^"]*)"', plot) if "fill: var(--series-0)" in style]

    assert shades([[0.5]]) == shades([[0.5, 0.009]])
    assert len(shades([[0.5, 2.0]])) == 2


def test_long_labels_do_not_overlap() -> None:
    rows = [(name, [0.2, 0.1, 0.3], SERIES[0]) for name in ("a long name " * 8, "b", "c-long-name" * 8)]
    heights = re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>b 20', interval_plot(rows, "solved"))
    spots = [y for _, y, _ in Page(interval_plot(rows, "solved")).spots]
    assert len(heights) == 1 and float(heights[0]) == pytest.approx(spots[1], abs=6)
    assert min(spots[1] - spots[0], spots[2] - spots[1]) > 2.5 * 11  # half of five lines of 11 points


def test_a_label_is_above_an_interval_that_leaves_no_room_beside_it() -> None:
    plot = interval_plot([("two seeds", [0.5, 0.0, 1.0], SERIES[0])], "solved")
    ((x, y, _),) = Page(plot).spots
    ((label_x, label_y),) = re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>two seeds 50.0 %', plot)
    assert float(label_x) == pytest.approx(x, abs=0.1) and 5 < y - float(label_y) < 15
