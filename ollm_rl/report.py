"""A comparison of training methods as one static HTML file, and as a table for the terminal.

The file loads nothing from outside: styles, script and plots (inline SVG) are in it. Colours in the plots are
variables of the page's style sheet, so one plot serves light and dark.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ollm_rl.runs import write_atomic

COLUMNS = ("method", "accuracy [95 %]", "episodes", "seconds", "language switching", "degeneracy")
MISSING = "–"

NUM_COLOURS = 8  # --series-0 to --series-7 in the template
DASHES = ("none", "6 2", "2 2", "8 2 2 2")  # lengths in points; told apart once the colours are used up
# matplotlib draws in these stand-ins, which are replaced by the style sheet's variables.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0a0a{index:02x}" for index in range(NUM_COLOURS))
PAINTS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
WIDTH, SMALL_WIDTH = 4.4, 3.6  # inches; the page scales a plot to its card, and its letters with it
MAX_POINTS = 200  # a line
HEAD, TAIL = 1200, 800  # characters kept of a longer text

# What is drawn beside the reward where a curve has it: column -> (title, note).
QUANTITIES = {
    "completion_tokens": ("Completion length (tokens)", "Mean tokens of a completion."),
    "entropy": ("Entropy (nats)", "Mean entropy of the policy at a decision."),
    "live_share": ("Live positions (share)", "Positions at which the options lead to more than one token."),
    "mixed_groups": ("Mixed groups (share)", "Groups of one prompt whose rewards differ, so that there is a signal."),
    "language_switching_rate": ("Language switching (share)", "Completions that leave the language of their prompt."),
    "degeneracy_rate": ("Degeneracy (share)", "Completions that loop, do not end or are gibberish."),
}

Row = Mapping[str, Any]


class Style(NamedTuple):
    """Colour and dashes of one method, the same in every plot."""

    colour: str  # a stand-in of PAINTS
    dashes: str  # lengths in points as SVG writes them, or "none"


def write_report(
    path: Path, summary: dict[str, Any], curves: dict[str, list[dict[str, Any]]], samples: list[dict[str, Any]]
) -> None:
    """Write the report, at once or not at all.

    Args:
        path: The HTML file.
        summary: ``methods`` (rows with ``method``, ``accuracy``, ``low``, ``high``, ``episodes``, ``seconds``,
            ``language_switching_rate``, ``degeneracy_rate``; rates are shares), ``num_problems`` (0 where the accuracy
            is that of the last iteration of training, over seeds), ``commit``, ``seed``, ``versions``, ``machine``
            and ``command``.
        curves: By method, one row an iteration with ``iteration``, ``episodes``, ``seconds``, ``reward`` and any of
            ``QUANTITIES``. None and NaN leave a gap.
        samples: Rows with ``method``, ``question``, ``answer``, ``completion``, ``correct``, ``switched``, ``flags``.
    """
    drawn = {method: rows for method, rows in curves.items() if rows}
    styles = {
        method: Style(SERIES[index % NUM_COLOURS], DASHES[index // NUM_COLOURS % len(DASHES)])
        for index, method in enumerate(drawn)
    }
    template = (files("ollm_rl") / "templates" / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = environment.from_string(template).render(
        summary=summary,
        columns=COLUMNS,
        table=[_cells(row) for row in summary["methods"]],
        accuracy=_accuracy_plot(summary["methods"], styles),
        legend=[(method, Markup(PAINTS[style.colour]), style.dashes) for method, style in styles.items()],
        reward_plots=[
            ("Reward by episodes", _curve_plot(drawn, styles, x="episodes", y="reward")),
            ("Reward by seconds of training", _curve_plot(drawn, styles, x="seconds", y="reward")),
        ],
        other_plots=[
            (title, note, _curve_plot(drawn, styles, x="episodes", y=name, width=SMALL_WIDTH))
            for name, (title, note) in QUANTITIES.items()
            if any(not math.isnan(_number(row.get(name))) for rows in drawn.values() for row in rows)
        ],
        max_points=MAX_POINTS,
        thinned=any(len(rows) > MAX_POINTS for rows in drawn.values()),
        samples=[
            {**row, "question": _shorten(row["question"]), "completion": _shorten(row["completion"])} for row in samples
        ],
        sample_methods=list(dict.fromkeys(row["method"] for row in samples)),
    )
    write_atomic(path, html)


def format_table(methods: Sequence[Row]) -> str:
    """Return the methods as a plain-text table with aligned columns, without a line break at the end."""
    cells = [list(COLUMNS), *(_cells(row) for row in methods)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for method, *numbers in cells:
        aligned = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([method.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    """One method as text, in the order of ``COLUMNS``."""
    return [
        str(row["method"]),
        f"{_percent(row['accuracy'])} [{_percent(row['low'], '')}, {_percent(row['high'], '')}]",
        _count(row["episodes"]),
        _count(row["seconds"]),
        _percent(row["language_switching_rate"]),
        _percent(row["degeneracy_rate"]),
    ]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _percent(share: Any, unit: str = " %") -> str:
    return MISSING if math.isnan(_number(share)) else f"{100 * share:.1f}{unit}"


def _count(value: Any) -> str:
    """A number of episodes or seconds: whole, but with one decimal between 0 and 10 where it is not."""
    number = _number(value)
    if math.isnan(number):
        return MISSING
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def _shorten(text: str) -> str:
    left_out = len(text) - HEAD - TAIL
    if left_out <= 0:
        return text
    return f"{text[:HEAD]}\n[… {left_out:,} characters left out …]\n{text[-TAIL:]}"


def _curve_plot(
    curves: Mapping[str, Sequence[Row]], styles: Mapping[str, Style], *, x: str, y: str, width: float = WIDTH
) -> Markup:
    """Column ``y`` of every method against its column ``x``."""
    figure, axes = _canvas(width, height=0.6 * width)
    for method, rows in curves.items():
        points = _block_means([(_number(row[x]), _number(row.get(y))) for row in rows])
        colour, dashes = styles[method]
        (line,) = axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, solid_joinstyle="round")
        if dashes != "none":
            line.set_linestyle((0, tuple(float(length) / line.get_linewidth() for length in dashes.split())))
        if sum(not math.isnan(value) for _, value in points) == 1:
            line.set_marker("o")  # a line of one point is invisible
    axes.set_xlabel(x, color=MUTED)
    axes.margins(x=0.02)
    return _svg(figure, f"{y} by {x}, one line for each of: {', '.join(curves)}")


def _block_means(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` points: each the end of a block of iterations and the mean of its known values."""
    size = math.ceil(len(points) / MAX_POINTS)
    means = []
    for start in range(0, len(points), size):
        block = points[start : start + size]
        known = [value for _, value in block if not math.isnan(value)]
        means.append((block[-1][0], sum(known) / len(known) if known else math.nan))
    return means


def _accuracy_plot(methods: Sequence[Row], styles: Mapping[str, Style]) -> Markup:
    """A point and an interval for each method, best at the top, names above the lines."""
    figure, axes = _canvas(WIDTH, height=0.7 + 0.55 * len(methods))
    rows = sorted(methods, key=lambda row: -math.inf if math.isnan(_number(row["accuracy"])) else row["accuracy"])
    for height, row in enumerate(rows):
        accuracy, low, high = (100 * _number(row[name]) for name in ("accuracy", "low", "high"))
        colour = styles[row["method"]].colour if row["method"] in styles else MUTED
        axes.plot([low, high], [height, height], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([accuracy], [height], "o", color=colour, markersize=8)
        label = f"{row['method']}: {_percent(row['accuracy'])}"
        axes.annotate(label, (0, height), (2, 9), textcoords="offset points", color=INK, size=10, parse_math=False)
    axes.set_ylim(-0.5, len(methods) - 0.2)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_xlabel("accuracy (%)", color=MUTED)
    return _svg(figure, "accuracy with 95 % intervals; the table below has the numbers")


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot, its size in inches, in the page's colours."""
    figure = Figure(figsize=(width, height), layout="constrained")  # not pyplot: no global state, no display
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=10)
    axes.xaxis.label.set_fontsize(10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    return figure, axes


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an ``<svg>`` element that stands in an HTML page beside others."""
    buffer = io.StringIO()
    # Marker and clip ids depend on the salt: equal ids of two plots in one page would mix them up.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg[svg.index("<svg") :])
    used = set(re.findall(r"#(\w+)", svg))
    svg = re.sub(r"<[^>]*>", lambda tag: _page_tag(tag[0], used), svg)
    return Markup(svg.replace("<svg ", Markup('<svg aria-label="{}" ').format(label), 1))


def _page_tag(tag: str, used: set[str]) -> str:
    """One tag of a plot in the page's colours and typeface, with short numbers, and an id only where it is used."""
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag)
    tag = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", tag)
    return re.sub(r"#\w{6}", lambda found: PAINTS.get(found[0], found[0]), tag)
