"""Plots of methods: curves of training, and values with intervals."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from scipy import stats

from ollm_rl.report.canvas import (
    FONT_SIZE,
    INK,
    MUTED,
    POINTS,
    UNCHOSEN,
    WIDTH,
    Spot,
    Style,
    canvas,
    svg,
    unit_axis,
)
from ollm_rl.report.numbers import count, number, percent

MAX_POINTS = 50  # per line; more would be noise between two pixels of a phone
LABEL = 25  # characters of a line of a label
LETTER, GAP = 6.2, 9  # points: width of a letter, and between a label and its interval

Row = Mapping[str, Any]
History = Sequence[Row]  # a run's metrics, one row per iteration


class Point(NamedTuple):
    """A point of a line: the mean over the seeds and the ends of its interval, NaN for one seed."""

    x: float
    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's t; its ends are NaN for fewer than two known values."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return (known[0] if known else math.nan), math.nan, math.nan
    mean = sum(known) / len(known)
    half = float(stats.t.ppf(0.975, len(known) - 1) * stats.sem(known))
    return mean, mean - half, mean + half


def curve_plot(
    curves: Mapping[str, Sequence[History]], styles: Mapping[str, Style], *, x: str, y: str, share: bool = False
) -> Markup:
    """Column ``y`` of every method against its column ``x``: the mean over its seeds and the interval of the mean.

    What an iteration measured is drawn at the ``x`` before it, so every line begins at 0 with the untrained policy.
    The axis of shares, and of rewards whose means are between 0 and 1, reaches from 0 to 1. Another covers the means
    and 0, so a wide interval of few seeds may be cut at the edge.

    Args:
        curves: By method, the rows of every seed, at least one of each.
        styles: By method.
        x: A column that counts from 0, such as ``episodes``.
        y: The column that is drawn; None and NaN leave a gap.
        share: Whether ``y`` is a share, written in per cent.
    """
    figure, axes = canvas(WIDTH, height=0.6 * WIDTH)
    shown: Callable[[float], str] = percent if share else lambda value: f"{value:.3g}"
    largest, smallest, spots = 0.0, 0.0, list[Spot]()
    lines = {method: _points(histories, x, y) for method, histories in curves.items()}
    for method, points in sorted(lines.items(), key=lambda line: styles[line[0]] != UNCHOSEN):  # grey lines below
        colour, dashes = styles[method]
        grey = styles[method] == UNCHOSEN
        xs, means, lows, highs = zip(*points, strict=True)
        (line,) = axes.plot(xs, means, color=colour, linewidth=1 if grey else 1.8, solid_joinstyle="round")
        if dashes != "none":
            line.set_linestyle((0, tuple(float(length) / line.get_linewidth() for length in dashes.split())))
        known = [point for point in points if not math.isnan(point.mean)]
        if len(known) == 1:
            line.set_marker("o")  # a line of one point is invisible
        if len(curves[method]) > 1 and not grey:
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
        for point in known:
            spots.append((point.x, point.mean, f"{method}: {_told(point, shown)} after {count(point.x)} {x}"))
            largest, smallest = max(largest, point.mean), min(smallest, point.mean)
    if share or (largest <= 1 and smallest >= 0 and y == "reward"):
        unit_axis(axes, "y", as_percent=share)
    elif spots:
        room = 0.05 * (largest - smallest) or 1.0
        axes.set_ylim(smallest - room, largest + 2 * room)
    axes.set_xlim(0, axes.get_xlim()[1])
    axes.set_xlabel(x, color=MUTED)
    return svg(figure, f"{y} by {x}, one line for each of: {', '.join(curves)}", spots)


def _told(point: Point, shown: Callable[[float], str]) -> str:
    interval = "" if math.isnan(point.low) else f" [{shown(point.low)}, {shown(point.high)}]"
    return shown(point.mean) + interval


def _points(histories: Sequence[History], x: str, y: str) -> list[Point]:
    """The line of some seeds, up to the end of the shortest."""
    seeds = []
    for history in histories:
        before = [0.0, *(number(row[x]) for row in history[:-1])]
        seeds.append(_block_means(list(zip(before, (number(row.get(y)) for row in history), strict=True))))
    steps = list(zip(*seeds, strict=False))
    return [
        Point(sum(place for place, _ in step) / len(step), *t_interval([value for _, value in step])) for step in steps
    ]


def _block_means(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` points: the start, then the mean place and value of each block of iterations."""
    size = math.ceil((len(points) - 1) / (MAX_POINTS - 1)) or 1
    means = points[:1]
    for start in range(1, len(points), size):
        block = points[start : start + size]
        known = [value for _, value in block if not math.isnan(value)]
        means.append((sum(place for place, _ in block) / len(block), sum(known) / len(known) if known else math.nan))
    return means


def interval_plot(rows: Sequence[tuple[str, Sequence[float], str]], label: str) -> Markup:
    """A point and an interval for each row (name, shares [value, low, high], colour), the first at the top.

    Its name and value stand beside the interval, where there is more room, or above it, if there is too little.
    ``label`` is the name of the values.
    """
    labels = [_label(name, percent(value)) for name, (value, _, _), _ in rows]
    extents = [_extent(interval) for _, interval, _ in rows]
    beside = [_fits(lines, *extent) for lines, extent in zip(labels, extents, strict=True)]
    sizes = np.array([0.5 + 0.5 * len(lines) + 0.4 * (not fits) for lines, fits in zip(labels, beside, strict=True)])
    figure, axes = canvas(WIDTH, height=0.7 + 0.36 * float(sizes.sum()))
    spots = []
    for index, (name, (value, low, high), colour) in enumerate(rows):
        end = float(sizes[: index + 1].sum())
        height = end - (sizes[index] / 2 if beside[index] else 0.45)
        axes.plot([low, high], [height, height], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([value], [height], "o", color=colour, markersize=8)
        _annotate(axes, "\n".join(labels[index]), extents[index], height, beside=beside[index])
        told = f"{name}: {percent(value)} [{percent(low, '')}, {percent(high, '')}]"
        spots.append((number(value), height, told))
    axes.set_ylim(float(sizes.sum()) or 1.0, 0)
    unit_axis(axes, "x", as_percent=True)
    axes.set_yticks([])
    axes.set_xlabel(label, color=MUTED)
    known = [spot for spot in spots if not math.isnan(spot[0])]
    return svg(figure, f"{label} with 95 % intervals; the table has the numbers", known)


def _extent(interval: Sequence[float]) -> tuple[float, float]:
    """The ends of what is drawn of a value and its interval."""
    known = [end for end in interval if not math.isnan(end)] or [0.0]
    return min(known), max(known)


def _fits(lines: Sequence[str], low: float, high: float) -> bool:
    """Whether the lines of a label have room on one side of an interval."""
    return max(map(len, lines)) * LETTER + GAP <= max(low, 1 - high) * POINTS * WIDTH


def _annotate(axes: Axes, label: str, extent: tuple[float, float], height: float, *, beside: bool) -> None:
    """Write the label of an interval beside it, or above its middle."""
    low, high = extent
    right = low < 1 - high
    place, offset, side, vertical = (
        (high if right else low, (GAP if right else -GAP, 0), "left" if right else "right", "center")
        if beside
        else ((low + high) / 2, (0, GAP), "center", "bottom")
    )
    text = axes.annotate(
        label,
        (place, height),
        offset,
        textcoords="offset points",
        ha=side,
        va=vertical,
        color=INK,
        size=FONT_SIZE,
        parse_math=False,
    )
    text.set_in_layout(False)  # a long name would leave no width for the plot


def _label(name: str, value: str) -> list[str]:
    """Lines of at most ``LABEL`` characters, the value in the last one."""
    lines = textwrap.wrap(name, LABEL) or [""]
    return [*lines[:-1], f"{lines[-1]} {value}"] if len(lines[-1]) + len(value) < LABEL else [*lines, value]
