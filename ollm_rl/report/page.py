"""Reports as static HTML files, and a comparison of methods as a table for the terminal.

A file is self-contained: it includes styles, script and plots (inline SVG). Text written by a model is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ollm_rl.report.plots import (
    DASHES,
    MAX_POINTS,
    MUTED,
    NUM_COLOURS,
    PAINTS,
    SERIES,
    SMALL_WIDTH,
    History,
    Row,
    Style,
    curve_plot,
    heat_map,
    interval_plot,
    number,
)
from ollm_rl.report.tables import Table
from ollm_rl.runs import write_atomic

COLUMNS = ("method", "accuracy [95 %]", "episodes", "seconds", "language switching", "degeneracy")
MISSING = "–"
ORIGIN = ("command", "model", "lora", "data", "split", "seed", "commit", "machine")
SHADE = 8, 60  # per cent, of a live token with the least and the most entropy of its completion
HEAD, TAIL = 1200, 800  # characters kept of a longer text

# Plots of the reward, if a curve has the column: column -> title.
AXES = {
    "episodes": "Reward by episodes",
    "tokens": "Reward by generated tokens",
    "seconds": "Reward by seconds of training",
}

# Plots besides the reward, if a curve has the column: column -> (title, note).
QUANTITIES = {
    "completion_tokens": ("Completion length (tokens)", "Mean number of tokens in a completion."),
    "entropy": ("Entropy (nats)", "Mean entropy of the policy at a decision."),
    "live_share": ("Live positions (share)", "Positions where the options lead to more than one token."),
    "mixed_groups": ("Mixed groups (share)", "Groups of one prompt whose rewards differ, so there is a signal."),
    "language_switching_rate": ("Language switching (share)", "Completions that leave the language of their prompt."),
    "degeneracy_rate": ("Degeneracy (share)", "Completions that loop, do not end, are empty or state no answer."),
}


def write_report(
    path: Path,
    summary: dict[str, Any],
    curves: Mapping[str, Sequence[History]],
    samples: Sequence[Row],
    options: Sequence[Row] = (),
    tables: Sequence[Table] = (),
) -> None:
    """Write a comparison of methods, atomically.

    Args:
        path: The HTML file.
        summary: ``methods`` (rows with ``method``, ``accuracy``, ``low``, ``high``, ``episodes``, ``seconds``,
            ``language_switching_rate`` and ``degeneracy_rate``, where rates are shares, and ``data`` if a method has
            several problem sets), ``data`` (text that describes the problems), ``evaluated`` (false if measured in
            training), ``seeds``, ``notes`` (sentences) and the result of ``runs.origin``.
        curves: By method, for every seed one row per iteration with ``iteration``, ``episodes``, ``tokens``,
            ``seconds``, ``reward`` and any of ``QUANTITIES``. None and NaN leave a gap.
        samples: Rows with ``method``, ``question``, ``answer``, ``completion``, ``correct``, ``switched``, ``flags``
            and ``source`` (origin of the completion).
        options: For methods with options: ``method``, ``explored`` (rows of ``agents.evaluation.explorer.explore``),
            and ``usage`` and ``entropy`` of ``agents.evaluation.explorer.option_maps``.
        tables: Further tables, shown first.
    """
    drawn = {method: [rows for rows in seeds if rows] for method, seeds in curves.items() if any(seeds)}
    styles = {
        method: Style(SERIES[index % NUM_COLOURS], DASHES[index // NUM_COLOURS % len(DASHES)])
        for index, method in enumerate(drawn)
    }
    html = render(
        "report.html",
        summary,
        summary=summary,
        tables=tables,
        columns=COLUMNS,
        table=[_cells(row) for row in summary["methods"]],
        accuracy=_accuracy_plot(summary["methods"], styles),
        legend=[(method, Markup(PAINTS[style.colour]), style.dashes) for method, style in styles.items()],
        reward_plots=_reward_plots(drawn, styles),
        other_plots=_other_plots(drawn, styles),
        max_points=MAX_POINTS,
        thinned=any(len(rows) > MAX_POINTS for seeds in drawn.values() for rows in seeds),
        several=any(len(seeds) > 1 for seeds in drawn.values()),
        maps=[plot for row in options for plot in _option_maps(row)],
        mapped=max((len(row["entropy"]) for row in options), default=0),
        explored=[_shaded(item, row["method"]) for row in options for item in row["explored"]],
        samples=[{**row, **{name: _shorten(row[name]) for name in ("question", "completion")}} for row in samples],
        sample_methods=list(dict.fromkeys(row["method"] for row in samples)),
    )
    write_atomic(path, html)


def write_explorer(path: Path, explored: Sequence[Row], origin: Row) -> None:
    """Write only the option explorer, atomically.

    Args:
        path: The HTML file.
        explored: Rows of ``agents.evaluation.explorer.explore``.
        origin: Result of ``runs.origin``, and ``model``.
    """
    write_atomic(path, render("explore.html", origin, explored=[_shaded(item) for item in explored]))


def render(template: str, origin: Row, **values: Any) -> str:
    """Render a template to a page.

    Args:
        template: File name of the template.
        origin: Result of ``runs.origin``; other entries with a name in ``ORIGIN`` are shown as well.
        values: Variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ollm_rl.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["shown"] = _shown
    names = [name for name in ORIGIN if name in origin]
    return environment.get_template(template).render(origin=origin, origin_names=names, **values)


def format_table(methods: Sequence[Row]) -> str:
    """Format the methods as a plain-text table with aligned columns, without a line break at the end."""
    table = [list(COLUMNS), *(_cells(row) for row in methods)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    table.insert(1, ["-" * width for width in widths])
    lines = []
    for method, *numbers in table:
        aligned = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([method.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    """One method as text, in the order of ``COLUMNS``."""
    return [
        _name(row),
        f"{_percent(row['accuracy'])} [{_percent(row['low'], '')}, {_percent(row['high'], '')}]",
        _count(row["episodes"]),
        _count(row["seconds"]),
        _percent(row["language_switching_rate"]),
        _percent(row["degeneracy_rate"]),
    ]


def _name(row: Row) -> str:
    return f"{row['method']} on {row['data']}" if row.get("data") else str(row["method"])


def _reward_plots(drawn: Mapping[str, Sequence[History]], styles: Mapping[str, Style]) -> list[tuple[str, Any]]:
    """Title and plot of the reward over every quantity that the rows have."""
    known = {name for seeds in drawn.values() for rows in seeds for row in rows for name in row}
    return [(title, curve_plot(drawn, styles, x=name, y="reward")) for name, title in AXES.items() if name in known]


def _other_plots(drawn: Mapping[str, Sequence[History]], styles: Mapping[str, Style]) -> list[tuple[str, str, Markup]]:
    """Title, note and plot of every quantity that any curve has."""
    rows = [row for seeds in drawn.values() for history in seeds for row in history]
    return [
        (title, note, curve_plot(drawn, styles, x="episodes", y=name, width=SMALL_WIDTH))
        for name, (title, note) in QUANTITIES.items()
        if any(not math.isnan(number(row.get(name))) for row in rows)
    ]


def _accuracy_plot(methods: Sequence[Row], styles: Mapping[str, Style]) -> Markup:
    rows = []
    for row in methods:
        interval = [100 * number(row[name]) for name in ("accuracy", "low", "high")]
        colour = styles[row["method"]].colour if row["method"] in styles else MUTED
        rows.append((f"{_name(row)}: {_percent(row['accuracy'])}", interval, colour))
    return interval_plot(rows, "accuracy (% of the problems)")


def _option_maps(row: Row) -> list[tuple[str, str, Markup]]:
    """Maps of usage and entropy of one method, each with title and note."""
    method, x = row["method"], "token of the completion"
    max_usage = max((share for shares in row["usage"] for share in shares if not math.isnan(share)), default=1.0)
    max_entropy = max(map(max, row["entropy"])) or 1.0
    equal_usage = 100 / len(row["usage"])
    usage_map = heat_map(row["usage"], x=x, y="option", first=0, top=max_usage, label=f"{method}: option usage")
    entropy_map = heat_map(row["entropy"], x=x, y="completion", first=1, top=max_entropy, label=f"{method}: entropy")
    return [
        (
            f"{method}: usage",
            f"Full shade {100 * max_usage:.0f} %; {equal_usage:.0f} % if all options were used equally.",
            usage_map,
        ),
        (f"{method}: entropy", f"Full shade {max_entropy:.2f} nats.", entropy_map),
    ]


def _shaded(item: Row, method: str | None = None) -> dict[str, Any]:
    """A row of the explorer with its method and the shade of every token in per cent."""
    max_entropy = max(position["entropy"] for position in item["positions"]) or 1.0
    low, high = SHADE
    shades = [round(low + (high - low) * position["entropy"] / max_entropy) for position in item["positions"]]
    return {**item, "method": method, "shades": shades}


def _shown(token: str) -> str:
    """A token with visible white space."""
    return token.replace(" ", "␣").replace("\n", "⏎")


def _percent(share: Any, unit: str = " %") -> str:
    return MISSING if math.isnan(number(share)) else f"{100 * share:.1f}{unit}"


def _count(value: Any) -> str:
    """A number of episodes or seconds: a whole number, or one decimal if it is below 10 and not whole."""
    count = number(value)
    if math.isnan(count):
        return MISSING
    return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"


def _shorten(text: str) -> str:
    num_left_out = len(text) - HEAD - TAIL
    if num_left_out <= 0:
        return text
    return f"{text[:HEAD]}\n[… {num_left_out:,} characters left out …]\n{text[-TAIL:]}"
