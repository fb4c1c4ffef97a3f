"""The plots of training: reward by episodes, tokens and seconds, and what else was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ollm_rl.report.canvas import DASHES, NUM_COLOURS, PAINTS, SERIES, UNCHOSEN, Style
from ollm_rl.report.numbers import number, seeds
from ollm_rl.report.plots import MAX_POINTS, History, Row, curve_plot

# Plots of the reward, if a curve has the column: column -> title.
AXES = {
    "episodes": "Reward by episodes",
    "tokens": "Reward by generated tokens",
    "seconds": "Reward by seconds of training",
}


class Quantity(NamedTuple):
    """What is drawn besides the reward, if any curve has it."""

    title: str
    note: str
    share: bool = False


QUANTITIES = {
    "completion_tokens": Quantity("Completion length (tokens)", "Mean number of tokens in a completion."),
    "decision_entropy": Quantity(
        "Entropy at decisions (nats)", "Mean over the positions where options lead to more than one token."
    ),
    "entropy": Quantity("Entropy of all positions (nats)", "Mean over all tokens: 0 where all options agree."),
    "live_share": Quantity("Decisions", "Positions where options lead to more than one token.", share=True),
    "mixed_groups": Quantity(
        "Mixed groups", "Groups of one prompt whose rewards differ, so there is a signal.", share=True
    ),
    "language_switching_rate": Quantity(
        "Language switching", "Completions that leave the language of their prompt.", share=True
    ),
    "degeneracy_rate": Quantity(
        "Degeneracy", "Completions that loop, do not end, are gibberish or empty, or state no answer.", share=True
    ),
}

Curves = Mapping[str, Sequence[History]]  # by method, the rows of every seed


class Shown(NamedTuple):
    """A plot with its title and note."""

    title: str
    note: str
    plot: Markup


def styles_of(curves: Curves, unchosen: Mapping[str, str]) -> dict[str, Style]:
    """Colour and dashes of every method; grey for those that were not chosen."""
    chosen = [method for method in curves if method not in unchosen]
    return dict.fromkeys(curves, UNCHOSEN) | {
        method: Style(SERIES[index % NUM_COLOURS], DASHES[index // NUM_COLOURS % len(DASHES)])
        for index, method in enumerate(chosen)
    }


def shown(curves: Curves, styles: Mapping[str, Style]) -> dict[str, Any]:
    """What the template needs of the curves."""
    return {
        "legend": legend(curves, styles),
        "reward_plots": reward_plots(curves, styles),
        "other_plots": other_plots(curves, styles),
        "max_points": MAX_POINTS,
        "thinned": any(len(rows) > MAX_POINTS for runs in curves.values() for rows in runs),
        "several": any(len(runs) > 1 for runs in curves.values()),
    }


def legend(curves: Curves, styles: Mapping[str, Style]) -> list[tuple[str, str, Markup, str]]:
    """Name, number of seeds, colour and dashes of every line."""
    return [
        (method, seeds(len(curves[method])), Markup(PAINTS[style.colour]), style.dashes)
        for method, style in sorted(styles.items(), key=lambda item: item[1] == UNCHOSEN)
    ]


def reward_plots(curves: Curves, styles: Mapping[str, Style]) -> list[Shown]:
    """The reward over every quantity that the rows have."""
    known = {name for histories in curves.values() for rows in histories for row in rows for name in row}
    return [
        Shown(title, "", curve_plot(curves, styles, x=name, y="reward"))
        for name, title in AXES.items()
        if name in known
    ]


def other_plots(curves: Curves, styles: Mapping[str, Style]) -> list[Shown]:
    """Every quantity that any curve has, of the curves that have it."""
    plots = []
    measured = {method: [_measured(rows) for rows in histories] for method, histories in curves.items()}
    for name, (title, note, share) in QUANTITIES.items():
        having = {
            method: histories
            for method, histories in measured.items()
            if any(not math.isnan(number(row.get(name))) for rows in histories for row in rows)
        }
        if having:
            plots.append(Shown(title, note, curve_plot(having, styles, x="episodes", y=name, share=share)))
    return plots


def _measured(rows: History) -> list[Row]:
    """Rows with the entropy of decisions apart from that of all positions.

    A policy that decides at every position, such as one over the vocabulary, has only the latter, and no share of
    decisions: it is 1 by construction.
    """
    shares = [number(row.get("live_share")) for row in rows]
    everywhere = all(share == 1.0 or math.isnan(share) for share in shares)
    return [_apart(row, everywhere) for row in rows]


def _apart(row: Row, everywhere: bool) -> dict[str, Any]:
    entropy, live = number(row.get("entropy")), number(row.get("live_share"))
    if everywhere:
        return {**row, "decision_entropy": math.nan, "live_share": math.nan}
    return {**row, "decision_entropy": entropy, "entropy": entropy * live}
