"""Reports as static HTML files, and a comparison of methods as a table for the terminal.

A file is self-contained: it includes styles, script and plots (inline SVG). Text written by a model is escaped.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ollm_rl.report import maps, training
from ollm_rl.report.canvas import MUTED, Style
from ollm_rl.report.completions import by_problem, counted_kinds
from ollm_rl.report.numbers import count, number, percent, seeds
from ollm_rl.report.plots import History, Row, interval_plot
from ollm_rl.report.tables import Table
from ollm_rl.runs import write_atomic

COLUMNS = ("method", "accuracy [95 %]", "episodes", "seconds", "language switching", "degeneracy")
ORIGIN = ("command", "model", "lora", "data", "split", "seed", "commit", "machine")
SHADE = 8, 60  # per cent, of a live token with the least and the most entropy of its completion


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
            ``language_switching_rate`` and ``degeneracy_rate``, where rates are shares, ``seeds`` of training that
            they are means over, if any, and ``data`` if a method has several problem sets), ``data`` (text that
            describes the problems), ``evaluated`` (false if measured in training), ``seeds``, ``notes`` (sentences),
            the result of ``runs.origin`` and, if methods are shown in grey, ``unchosen``: why each was not chosen.
        curves: By method, for every seed one row per iteration with ``iteration``, ``episodes``, ``tokens``,
            ``seconds``, ``reward`` and any of ``training.QUANTITIES``. None and NaN leave a gap.
        samples: Rows with ``method``, ``question``, ``answer``, ``completion``, ``correct``, ``switched``, ``flags``
            and ``source`` (origin of the completion).
        options: For methods with options: ``method``, ``explored`` (rows of ``agents.evaluation.explorer.explore``),
            and ``usage`` and ``entropy`` of ``agents.evaluation.explorer.option_maps``.
        tables: Further tables, shown first.
    """
    unchosen = summary.get("unchosen", {})
    drawn = {method: known for method, runs in curves.items() if (known := [rows for rows in runs if rows])}
    styles = training.styles_of(drawn, unchosen)
    problems = by_problem(samples)
    html = render(
        "report.html",
        summary,
        summary=summary,
        sections=_sections(summary, tables, training=drawn, maps=options, explorer=options, completions=problems),
        tables=tables,
        columns=COLUMNS,
        unchosen=unchosen,
        evaluations=_evaluations(summary["methods"], styles),
        **training.shown(drawn, styles),
        **_maps(options),
        explored=[_shaded(item, row["method"]) for row in options for item in row["explored"]],
        problems=problems,
        kinds=counted_kinds(problems),
    )
    write_atomic(path, html)


def _sections(summary: Row, tables: Sequence[Table], **parts: Collection[Any]) -> dict[str, str]:
    """Titles by id, in the order of the page, without the parts that are empty."""
    titles = {
        **{f"table{index}": table.title for index, table in enumerate(tables)},
        "accuracy": "Accuracy" if summary["evaluated"] else "The last iteration of training",
        "training": "Training",
        "maps": "Options along a completion",
        "explorer": "Option explorer",
        "completions": "Completions to read",
        "origin": "How this was made",
    }
    return {name: title for name, title in titles.items() if parts.get(name, True)}


def write_explorer(path: Path, explored: Sequence[Row], origin: Row) -> None:
    """Write only the option explorer, atomically.

    Args:
        path: The HTML file.
        explored: Rows of ``agents.evaluation.explorer.explore``.
        origin: Result of ``runs.origin``, and ``model``.
    """
    write_atomic(path, render("explore.html", origin, sections={}, explored=[_shaded(item) for item in explored]))


def render(template: str, origin: Row, **values: Any) -> str:
    """Render a template to a page.

    Args:
        template: File name of the template.
        origin: Result of ``runs.origin``; other entries with a name in ``ORIGIN`` are shown as well, if not None.
        values: Variables of the template, ``sections`` among them: titles by id, in the order of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ollm_rl.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["shown"] = _shown
    environment.filters["percent"] = percent
    environment.filters["seeds"] = seeds
    names = [name for name in ORIGIN if origin.get(name) is not None]
    return environment.get_template(template).render(origin=origin, origin_names=names, **values)


def format_table(methods: Sequence[Row]) -> str:
    """Format the methods as a plain-text table with aligned columns, without a line break at the end."""
    names = [f"{row['method']} on {row['data']}" if row.get("data") else row["method"] for row in methods]
    table = [list(COLUMNS), *(_cells(row, name) for row, name in zip(methods, names, strict=True))]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    table.insert(1, ["-" * width for width in widths])
    lines = []
    for method, *numbers in table:
        aligned = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([method.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


def _cells(row: Row, name: str) -> list[str]:
    """One method as text, in the order of ``COLUMNS``."""
    return [
        name,
        f"{percent(row['accuracy'])} [{percent(row['low'], '')}, {percent(row['high'], '')}]",
        count(row["episodes"]),
        count(row["seconds"]),
        percent(row["language_switching_rate"]),
        percent(row["degeneracy_rate"]),
    ]


def _best_first(row: Row) -> float:
    accuracy = number(row["accuracy"])
    return math.inf if math.isnan(accuracy) else -accuracy


def _evaluations(
    methods: Sequence[Row], styles: Mapping[str, Style]
) -> list[tuple[str, Markup, list[tuple[Row, list[str]]]]]:
    """Every problem set with its plot and table, best first; its name is empty if there is only one."""
    sets: dict[str, list[Row]] = {}
    for row in sorted(methods, key=_best_first):
        sets.setdefault(row.get("data", ""), []).append(row)
    return [
        (data, _accuracy_plot(rows, styles), [(row, _cells(row, row["method"])) for row in rows])
        for data, rows in sets.items()
    ]


def _accuracy_plot(methods: Sequence[Row], styles: Mapping[str, Style]) -> Markup:
    rows = []
    for row in methods:
        interval = [number(row[name]) for name in ("accuracy", "low", "high")]
        colour = styles[row["method"]].colour if row["method"] in styles else MUTED
        rows.append((str(row["method"]), interval, colour))
    return interval_plot(rows, "problems solved")


def _maps(options: Sequence[Row]) -> dict[str, Any]:
    """Maps of usage and of entropy, all in one scale: its full shade is the greatest value that there can be."""
    most_options = max((len(row["usage"]) for row in options), default=1)
    top = math.log(most_options) or 1.0
    x = "token of the completion"
    usage = [
        maps.heat_map(
            row["usage"], x=x, y="option", first=0, top=1.0, label=f"{row['method']}: option usage", shown=percent
        )
        for row in options
    ]
    entropy = [
        maps.heat_map(
            row["entropy"],
            x=x,
            y="completion",
            first=1,
            top=top,
            label=f"{row['method']}: entropy",
            shown=lambda nats: f"{nats:.2f} nats",
        )
        for row in options
    ]
    names = [row["method"] for row in options]
    return {
        "maps": [
            ("Usage of each option", list(zip(names, usage, strict=True))),
            ("Entropy of the policy", list(zip(names, entropy, strict=True))),
        ],
        "mapped": max((len(row["entropy"]) for row in options), default=0),
        "most_options": most_options,
        "scale": [(f"{round(100 * part)} %", f"{part * top:.2f}") for part in (0, 0.25, 0.5, 0.75, 1)],
        "faint": percent(maps.SHOWN_FROM),
        "least_shade": round(100 * maps.LEAST),
    }


def _shaded(item: Row, method: str | None = None) -> dict[str, Any]:
    """A row of the explorer with its method and the shade of every token in per cent."""
    max_entropy = max(position["entropy"] for position in item["positions"]) or 1.0
    low, high = SHADE
    shades = [round(low + (high - low) * position["entropy"] / max_entropy) for position in item["positions"]]
    return {**item, "method": method, "shades": shades}


def _shown(token: str) -> str:
    """A token with visible white space."""
    return token.replace(" ", "␣").replace("\n", "⏎") or "·"
