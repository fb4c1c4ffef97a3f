"""Empty plots, and plots as inline SVG in the colours of their page, the same for light and dark mode.

Colours are variables of the page's style sheet. The page's script shows the text of the spot nearest to the pointer.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, PercentFormatter

from ollm_rl.runs import write_atomic

NUM_COLOURS = 8  # --series-0 to --series-7 in the template
DASHES = ("none", "6 2", "2 2", "8 2 2 2")  # lengths in points; distinguish methods once the colours are used up
# matplotlib draws in these placeholder colours, which are replaced by the style sheet's variables.
INK, MUTED, GRID, FAINT = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0a0a{index:02x}" for index in range(NUM_COLOURS))
PAINTS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", FAINT: "var(--faint)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
WIDTH = 4.4  # inches; the page scales a plot and its text to the card
FONT_SIZE = 11  # points; on a phone a plot is about as wide as WIDTH
POINTS = 72  # per inch: the unit of the SVG
ROUND = [1, 2, 2.5, 5, 10]  # first digits of the distance between two ticks
SHARE_STEP = 0.25  # between two ticks of an axis from 0 to 1

Spot = tuple[float, float, str]  # where it is, in the units of the axes, and what is there


class Style(NamedTuple):
    """Colour and dashes of one method, the same in every plot."""

    colour: str  # a key of PAINTS
    dashes: str  # lengths in points as SVG writes them, or "none"


UNCHOSEN = Style(FAINT, "none")  # of a method that was not chosen


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of this size in inches, in the page's colours."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=POINTS)  # not pyplot: no global state
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=FONT_SIZE)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(FONT_SIZE)
        axis.set_major_locator(MaxNLocator(5, steps=ROUND))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    return figure, axes


def unit_axis(axes: Axes, which: str, *, as_percent: bool) -> None:
    """An axis, "x" or "y", from 0 to 1, with room for a line at its ends; shares are written in per cent."""
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MultipleLocator(SHARE_STEP))
    if as_percent:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    getattr(axes, f"set_{which}lim")(-0.03, 1.03)


def svg(figure: Figure, label: str, spots: Sequence[Spot] = ()) -> Markup:
    """The figure as an ``<svg>`` element that can share an HTML page with others.

    Args:
        figure: A plot of ``canvas``.
        label: Text for screen readers.
        spots: Shown on hover.
    """
    buffer = io.StringIO()
    # Marker and clip ids depend on the salt. Equal ids of two plots in one page would mix them up.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text[text.index("<svg") :])
    used = set(re.findall(r"#(\w+)", text))
    text = re.sub(r"<[^>]*>", lambda tag: _page_tag(tag[0], used), text)
    plot = Markup(text.replace("<svg ", Markup('<svg aria-label="{}" ').format(label), 1))
    return Markup('<div class="plot" data-spots="{}">{}</div>').format(_placed(figure, spots), plot)


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG file, the same bytes each time; its folder is made."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_atomic(path, buffer.getvalue())


def _placed(figure: Figure, spots: Sequence[Spot]) -> str:
    """The spots in the units of the SVG, from its upper left corner, as JSON. The figure has been drawn."""
    (axes,) = figure.axes
    places = axes.transData.transform(np.array([spot[:2] for spot in spots]).reshape(-1, 2))
    rows = [
        [round(float(x), 1), round(float(figure.bbox.height - y), 1), text]
        for (x, y), (_, _, text) in zip(places, spots, strict=True)
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def _page_tag(tag: str, used: set[str]) -> str:
    """One tag of a plot in the page's colours and font, with short numbers, and with an id only if it is used."""
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", tag)
    # Older releases of matplotlib write font, newer ones its parts.
    tag = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font-family: [^;\"]*; ?| transform=\"rotate\(-?0 [^\"]*\"", "", tag)
    return re.sub(r"#\w{6}", lambda match: PAINTS.get(match[0], match[0]), tag)
