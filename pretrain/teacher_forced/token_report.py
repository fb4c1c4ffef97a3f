"""A teacher-forced comparison as one static HTML file, and as a table for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ollm_rl.options.diagnostics import FIRST_TOKENS, MODE_PROBABILITY
from ollm_rl.pretrain.teacher_forced.scores import AMBIGUOUS, DETERMINISTIC
from ollm_rl.report.canvas import MUTED, SERIES, WIDTH, canvas, svg, unit_axis
from ollm_rl.report.numbers import MISSING, percent
from ollm_rl.report.page import render
from ollm_rl.runs import write_atomic

NATS = " nats"
# Heading, measure, decimals and unit.
MEASURES = (
    ("token accuracy", "token_accuracy", 1, " %"),
    ("NLL (nats per token)", "nll", 3, ""),
    ("answer correct", "answer_correct", 1, " %"),
    ("revealed (nats)", "information", 3, ""),
    ("gain per nat", "gain_per_nat", 2, ""),
)
# Measures of the options themselves: title, name, decimals and unit.
OPTIONS = (
    ("distinct tokens per position", "distinct_tokens", 2, ""),
    ("positions where options differ", "live_share", 1, " %"),
    ("what the option says about the next token", "mutual_information", 3, NATS),
    (
        f"likely tokens (at least {100 * MODE_PROBABILITY:.0f} % under the backbone) that an option offers, "
        "where options differ",
        "mode_coverage_live",
        1,
        " %",
    ),
    (f"the same, among the first {FIRST_TOKENS} tokens of a solution", "mode_coverage_first", 1, " %"),
    ("solutions that options offer whole: a policy over them can write only these", "whole_coverage", 1, " %"),
)
SHARES = ("deterministic", "ambiguous", "top_two", "ambiguous_top_two")  # of the ambiguity
SECTIONS = {
    "tokens": "Prediction of the next token",
    "measures": "What the options hold",
    "ambiguity": "Ambiguity of the backbone",
    "listed": "Tokens of each option",
    "origin": "How this was made",
}
HEADINGS = ("column", *(heading for heading, *_ in MEASURES))


def format_scores(result: dict[str, Any]) -> str:
    """The comparison as a plain-text table with aligned columns, and a closing line with the oracle's gain."""
    rows = [list(HEADINGS), *_table(result)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "  ".join([name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]
    return "\n".join([*lines, _gain(result)])


def write_token_report(path: Path, result: dict[str, Any]) -> None:
    """Write the report atomically.

    Args:
        path: The HTML file. It loads nothing from outside.
        result: Result of ``teacher_forced``, with ``model``, ``data``, ``split``, ``seed`` and what ``origin`` returns.
    """
    ambiguity = result["ambiguity"]
    html = render(
        "teacher_forced.html",
        result,
        result=result,
        sections=SECTIONS,
        headings=HEADINGS,
        table=_table(result),
        measures=[*_gains(result), *_option_measures(result["options"])],
        shares={name: _cell(ambiguity[name], 1, " %") for name in SHARES},
        thresholds=(DETERMINISTIC, AMBIGUOUS),
        entropy_plot=_histogram_plot(ambiguity["entropy_histogram"], "entropy (nats)", (DETERMINISTIC, AMBIGUOUS)),
        mass_plot=_histogram_plot(ambiguity["top_two_histogram"], "probability of the top two tokens", share=True),
        tables=[{**table, "rows": [_listed(row) for row in table["rows"]]} for table in result["option_tables"]],
    )
    write_atomic(path, html)


def _table(result: dict[str, Any]) -> list[list[str]]:
    """One row per column of the comparison, with cells in the order of ``HEADINGS``."""
    return [
        [name, *(_cell(scores.get(measure), decimals, unit) for _, measure, decimals, unit in MEASURES)]
        for name, scores in result["columns"].items()
    ]


def _cell(interval: Sequence[float] | None, decimals: int, unit: str = "") -> str:
    """``[value, low, high]`` as text; shares, whose unit is " %", in per cent."""
    if interval is None:
        return MISSING
    factor = 100 if unit == " %" else 1
    value, low, high = (f"{factor * number:.{decimals}f}" for number in interval)
    return f"{value}{unit} [{low}, {high}]"


def _gains(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What the oracle gains over the backbone: what of, and how much."""
    return [
        ("gain of the oracle over the backbone, share of the tokens", _cell(result["oracle_gain"], 1, " %")),
        ("gain of the oracle over the backbone, per token", _cell(result["nll_gain"], 3, NATS)),
    ]


def _option_measures(options: dict[str, Any]) -> list[tuple[str, str]]:
    return [(title, _cell(options[name], decimals, unit)) for title, name, decimals, unit in OPTIONS]


def _gain(result: dict[str, Any]) -> str:
    (_, share), (_, nats) = _gains(result)
    return f"gain over the backbone: oracle {share} of the tokens, {nats} per token; [95 % intervals]"


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an option table, with cells (token, percent of policy, percent of encoder, CSS class)."""
    options = row["options"]
    votes = {token: sum(p for o, p in zip(options, row["policy"], strict=True) if o == token) for token in options}
    voted = max(votes, key=lambda token: votes[token])
    cells = [
        (token, round(100 * policy), round(100 * encoder), f"{'d' * (token != voted)} {'t' * (token == row['token'])}")
        for token, policy, encoder in zip(options, row["policy"], row["encoder"], strict=True)
    ]
    return {"token": row["token"], "answer": row["answer"], "live": len(votes) > 1, "cells": cells}


def _histogram_plot(
    histogram: dict[str, list[float]], label: str, marks: Sequence[float] = (), *, share: bool = False
) -> Markup:
    """Positions per bin, on a logarithmic scale, since most positions are in the first bin of entropies."""
    edges, counts = histogram["edges"], histogram["counts"]
    figure, axes = canvas(WIDTH, height=0.6 * WIDTH)
    axes.stairs(counts, edges, fill=True, color=SERIES[0])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(which="minor", length=0)
    axes.set_ylim(bottom=0.8)
    if share:
        unit_axis(axes, "x", as_percent=True)
    for mark in marks:
        axes.axvline(mark, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel(label, color=MUTED)
    axes.set_ylabel("positions", color=MUTED)
    spots = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        ends = (percent(low, ""), percent(high)) if share else (f"{low:.2g}", f"{high:.2g} nats")
        if count:
            text = f"{' to '.join(ends)}: {count:,.0f} positions ({percent(count / sum(counts))})"
            spots.append(((low + high) / 2, float(count), text))
    return svg(figure, f"histogram over positions: {label}", spots)
