"""Plots as inline SVG in the colours of their page, the same for light and dark mode.

Colours are variables of the page's style sheet. Letters: R rows, C columns.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import stats

NUM_COLOURS = 8  # --series-0 to --series-7 in the template
DASHES = ("none", "6 2", "2 2", "8 2 2 2")  # lengths in points; distinguish methods once the colours are used up
# matplotlib draws in these placeholder colours, which are replaced by the style sheet's variables.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0a0a{index:02x}" for index in range(NUM_COLOURS))
PAINTS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
WIDTH, SMALL_WIDTH = 4.4, 3.6  # inches; the page scales a plot and its text to the card
FONT_SIZE = 11  # points; on a phone a plot is about as wide as WIDTH
MAX_POINTS = 200  # per line
SHADES = 16  # per heat map

Row = Mapping[str, Any]
History = Sequence[Row]  # a run's metrics, one row per iteration


class Style(NamedTuple):
    """Colour and dashes of one method, the same in every plot."""

    colour: str  # a key of PAINTS
    dashes: str  # lengths in points as SVG writes them, or "none"


def number(value: Any) -> float:
    """A value as a number, None as NaN."""
    return math.nan if value is None else float(value)


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's t; its ends are NaN for fewer than two known values."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return (known[0] if known else math.nan), math.nan, math.nan
    mean = sum(known) / len(known)
    half = float(stats.t.ppf(0.975, len(known) - 1) * stats.sem(known))
    return mean, mean - half, mean + half


def curve_plot(
    curves: Mapping[str, Sequence[History]],
    styles: Mapping[str, Style],
    *,
    x: str,
    y: str,
    width: float = WIDTH,
) -> Markup:
    """Column ``y`` of every method against its column ``x``: the mean over its seeds and the interval of the mean.

    The axes cover the values of the seeds, so a wide interval of few seeds may be cut at the edge.
    """
    figure, axes = canvas(width, height=0.6 * width)
    bands = []
    for method, histories in curves.items():
        seeds = [_block_means([(number(row[x]), number(row.get(y))) for row in history]) for history in histories]
        axes.update_datalim([point for seed in seeds for point in seed if not any(map(math.isnan, point))])
        steps = list(zip(*seeds, strict=False))  # as many as the shortest seed has
        x_means = [sum(x_value for x_value, _ in points) / len(points) for points in steps]
        means, lows, highs = zip(*(t_interval([value for _, value in points]) for points in steps), strict=True)
        colour, dashes = styles[method]
        (line,) = axes.plot(x_means, means, color=colour, linewidth=1.6, solid_joinstyle="round")
        if dashes != "none":
            line.set_linestyle((0, tuple(float(length) / line.get_linewidth() for length in dashes.split())))
        if sum(not math.isnan(value) for value in means) == 1:
            line.set_marker("o")  # a line of one point is invisible
        if len(seeds) > 1:
            bands.append((x_means, lows, highs, colour))
    axes.margins(x=0.02)
    limits = axes.get_ylim()
    for x_means, lows, highs, colour in bands:
        axes.fill_between(x_means, lows, highs, color=colour, alpha=0.18, linewidth=0)
    axes.set_ylim(limits)
    axes.set_xlabel(x, color=MUTED)
    return svg(figure, f"{y} by {x}, one line for each of: {', '.join(curves)}")


def _block_means(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` points, each with the end of a block of iterations and the mean of its known values."""
    size = math.ceil(len(points) / MAX_POINTS)
    means = []
    for start in range(0, len(points), size):
        block = points[start : start + size]
        known = [value for _, value in block if not math.isnan(value)]
        means.append((block[-1][0], sum(known) / len(known) if known else math.nan))
    return means


def interval_plot(rows: Sequence[tuple[str, Sequence[float], str]], label: str) -> Markup:
    """A point and an interval for each row (name, [value, low, high], colour), best at the top, names above the lines.

    Values are in per cent, and ``label`` is their name.
    """
    figure, axes = canvas(WIDTH, height=0.7 + 0.55 * len(rows))
    order = sorted(rows, key=lambda row: -math.inf if math.isnan(row[1][0]) else row[1][0])
    for height, (name, (value, low, high), colour) in enumerate(order):
        axes.plot([low, high], [height, height], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([value], [height], "o", color=colour, markersize=8)
        text = axes.annotate(
            name, (0, height), (2, 9), textcoords="offset points", color=INK, size=FONT_SIZE, parse_math=False
        )
        text.set_in_layout(False)  # a long name would leave no width for the plot
    axes.set_ylim(-0.5, len(rows) - 0.2)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_xlabel(label, color=MUTED)
    return svg(figure, f"{label} with 95 % intervals; the table below has the numbers")


def heat_map(values: Sequence[Sequence[float]], *, x: str, y: str, first: int, top: float, label: str) -> Markup:
    """Values from 0 to ``top``, (R, C), as shades, the first row at the top; NaN and 0 are left empty.

    Args:
        values: Rows may differ in length.
        x: Name of the columns, which are numbered from 1.
        y: Name of the rows.
        first: Number of the first row.
        top: Value of the full shade.
        label: Text for screen readers.
    """
    columns = max(map(len, values))
    grid = np.full((len(values), columns), np.nan)
    for row, row_values in zip(grid, values, strict=True):
        row[: len(row_values)] = row_values
    figure, axes = canvas(WIDTH, height=0.9 + min(2.6, 0.22 * len(values)))
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
    paint = to_rgb(SERIES[0])
    colours = LinearSegmentedColormap.from_list("shades", [(*paint, 0.0), (*paint, 1.0)], N=SHADES)
    cell_rows, cell_columns = np.nonzero(np.nan_to_num(grid) > 0)
    shades = colours(np.minimum(grid[cell_rows, cell_columns] / top, 1.0))
    for shade in np.unique(shades, axis=0):
        same = (shades == shade).all(1)
        cells = zip(cell_rows[same], cell_columns[same], strict=True)
        squares = [_square(row + first, column + 1) for row, column in cells]
        # One path per shade keeps a page with several maps small.
        axes.add_patch(PathPatch(MplPath.make_compound_path(*squares), facecolor=tuple(shade), linewidth=0))
    axes.set_xlim(0.5, columns + 0.5)
    axes.set_ylim(first + len(values) - 0.5, first - 0.5)
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    return svg(figure, label)


def _square(row: int, column: int) -> MplPath:
    """A square of side 1 around a point."""
    left, right, top, bottom = column - 0.5, column + 0.5, row - 0.5, row + 0.5
    return MplPath([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], closed=True)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of this size in inches, in the page's colours."""
    figure = Figure(figsize=(width, height), layout="constrained")  # not pyplot: no global state, no display
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=FONT_SIZE)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(FONT_SIZE)
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    return figure, axes


def svg(figure: Figure, label: str) -> Markup:
    """The figure as an ``<svg>`` element that can share an HTML page with others."""
    buffer = io.StringIO()
    # Marker and clip ids depend on the salt. Equal ids of two plots in one page would mix them up.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text[text.index("<svg") :])
    used = set(re.findall(r"#(\w+)", text))
    text = re.sub(r"<[^>]*>", lambda tag: _page_tag(tag[0], used), text)
    return Markup(text.replace("<svg ", Markup('<svg aria-label="{}" ').format(label), 1))


def _page_tag(tag: str, used: set[str]) -> str:
    """One tag of a plot in the page's colours and font, with short numbers, and with an id only if it is used."""
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", tag)
    tag = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", tag)
    return re.sub(r"#\w{6}", lambda match: PAINTS.get(match[0], match[0]), tag)
