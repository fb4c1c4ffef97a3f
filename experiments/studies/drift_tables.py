"""Tables and figure of a drift study, from its Parquet file only.

python -m ollm_rl.experiments.studies.drift_tables FILE.parquet --window N --thresholds T ... --figure OUT.svg

A completion is *strictly right* if its answer is right, it stays in the language of its question, and nothing about it
is degenerate. Every number is a mean over seeds, with the lowest and the highest seed in brackets.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from ollm_rl.errors import MissingError, UsageError
from ollm_rl.experiments.curves import ROUNDING
from ollm_rl.experiments.script import positive, start
from ollm_rl.experiments.studies.colours import GREY, SIDES
from ollm_rl.report.canvas import save_svg
from ollm_rl.report.tables import Cell, Estimate, Table

BASELINE = "vocabulary"
NOTHING = "–"
LAST = 512  # episodes that are the end of training
BLOCK = 256  # episodes of a point in the figure, or a window if that is longer
# Lines by the end of a method's name, longer ends first.
STYLES = {
    "on English options with KL": (0, (6, 1, 1, 1, 1, 1)),
    "with KL": "--",
    "with language reward": ":",
    "on English options": "-.",
}
# Quantity: name in tables, factor, digits.
RATES = {
    "correct": ("reward", 1, 3),
    "strict": ("strictly right", 1, 3),
    "switched": ("language switching, %", 100, 1),
    "degenerate": ("degenerate, %", 100, 1),
    "nats": ("nats per token", 1, 3),
    "tokens": ("tokens", 1, 1),
}


def load(path: Path) -> pd.DataFrame:
    """The rows with what is derived from them: ``strict``, ``degenerate`` and ``nats``.

    Raises:
        UsageError: If it is no such file.
    """
    try:
        frame = pd.read_parquet(path)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path} is no Parquet file; give the drift.parquet of a study") from error
    if not {"switched", "flags", "correct", "log_prob"} <= set(frame):
        raise UsageError(f"{path} holds no completions of a drift study; give its drift.parquet")
    frame["switched"] = frame["switched"].astype("float64")  # NaN where it cannot be told
    frame["degenerate"] = frame["flags"].astype(str) != ""
    frame["strict"] = frame["correct"] & ~frame["degenerate"] & ~(frame["switched"] == 1)
    frame["nats"] = -frame["log_prob"].astype("float64")
    frame["method"] = pd.Categorical(frame["method"], categories=frame["method"].unique())
    return frame


def trailing(run: pd.DataFrame, window: int) -> pd.DataFrame:
    """Means over the last ``window`` episodes, a row for each episode from the first that has so many."""
    return run[list(RATES)].astype("float64").rolling(window, min_periods=1).mean().iloc[window - 1 :]


def at_reward(run: pd.DataFrame, window: int, threshold: float) -> pd.Series | None:
    """Means over the window in which a run first reaches a mean reward, with ``episodes``; None if it never does."""
    means = trailing(run, window)
    reached = np.flatnonzero(means["correct"] >= threshold - ROUNDING)
    if not reached.size:
        return None
    means["episodes"] = np.arange(window, window + len(means))
    return means.iloc[reached[0]]


def _runs(frame: pd.DataFrame, part: str) -> dict[str, list[pd.DataFrame]]:
    """The runs of every method, one frame per seed, in the order of the file."""
    rows = frame[frame["part"] == part]
    methods = rows.groupby("method", sort=False, observed=True)
    return {str(name): [run for _, run in of_method.groupby("seed")] for name, of_method in methods}


def _spread(values: Sequence[float], factor: float, digits: int) -> Estimate:
    scaled = [factor * value for value in values]
    return Estimate(float(np.mean(scaled)), min(scaled), max(scaled), digits)


def _row(method: str, found: Sequence[pd.Series], base: Sequence[pd.Series]) -> list[Cell]:
    """A method's means, and its switching plus degeneracy as a ratio to the baseline's."""
    cells: list[Cell] = [_spread([one[key] for one in found], *RATES[key][1:]) for key in RATES]
    ours, theirs = (
        sum(one["switched"] + one["degenerate"] for one in side) / max(1, len(side)) for side in (found, base)
    )
    ratio = NOTHING if method == BASELINE or not theirs > 0 else f"{ours / theirs:.2f}"
    return [method, *cells, ratio]


def threshold_table(frame: pd.DataFrame, window: int, threshold: float) -> Table:
    """Rates in the window in which each run first reaches a mean reward."""
    found = {
        method: [at for run in runs if (at := at_reward(run, window, threshold)) is not None]
        for method, runs in _runs(frame, "train").items()
    }
    counts = {method: len(runs) for method, runs in _runs(frame, "train").items()}
    rows: list[list[Cell]] = []
    for method, reached in found.items():
        share = f"{len(reached)} of {counts[method]}"
        if not reached:
            rows.append([method, share, *[NOTHING] * (len(RATES) + 2)])
            continue
        name, *cells = _row(method, reached, found.get(BASELINE, []))
        rows.append([name, share, _spread([one["episodes"] for one in reached], 1, 0), *cells])
    note = f"Over the {window} episodes in which a run first has a mean reward of {threshold:g}."
    names = [name for name, *_ in RATES.values()]
    columns = ["method", "reached", "episodes", *names, "switching + degenerate, ratio"]
    return Table(f"At reward {threshold:g}", note, columns, rows)


def end_table(frame: pd.DataFrame, part: str, window: int) -> Table:
    """Rates at the end of training: over the last episodes, or on the test problems."""
    runs = _runs(frame, part)
    last = {
        method: [trailing(run, min(window, len(run)) if part == "train" else len(run)).iloc[-1] for run in of_method]
        for method, of_method in runs.items()
    }
    rows = [_row(method, found, last.get(BASELINE, [])) for method, found in last.items()]
    title, note = {
        "train": ("End of training", f"Over the last {window} episodes."),
        "test": ("Test problems", "Sampled completions of test problems after training."),
    }[part]
    names = [name for name, *_ in RATES.values()]
    return Table(title, note, ["method", *names, "switching + degenerate, ratio"], rows)


def drift_text(path: Path, window: int, thresholds: Sequence[float]) -> str:
    """All tables as Markdown."""
    frame = load(path)
    tables = [threshold_table(frame, window, threshold) for threshold in thresholds]
    tables += [end_table(frame, part, LAST) for part in ("train", "test")]
    return "\n\n".join(table.markdown() for table in tables)


def draw(path: Path, window: int, out: Path) -> None:
    """Rates against the reward over the course of training, block by block; variants of a policy differ by the line.

    Raises:
        UsageError: If a run is shorter than a block.
    """
    frame = load(path)
    panels = ("strict", "switched", "degenerate", "nats")
    figure = Figure(figsize=(11.5, 6.4), layout="constrained")
    axes = figure.subplots(2, 2)
    for method, runs in _runs(frame, "train").items():
        shortest = min(map(len, runs))
        if shortest < window:
            raise UsageError(f"a point is {window} episodes, and a run of {method} has {shortest}; leave --figure out")
        count = shortest // window
        blocks = np.mean(
            [
                run[list(RATES)]
                .astype("float64")
                .iloc[: count * window]
                .groupby(np.arange(count * window) // window)
                .mean()
                for run in runs
            ],
            axis=0,
        )
        means = dict(zip(RATES, blocks.T, strict=True))
        colour = SIDES.get(method.split()[0], GREY)
        style = next((style for end, style in STYLES.items() if method.endswith(end)), "-")
        for axis, key in zip(axes.flat, panels, strict=True):
            values = RATES[key][1] * means[key]
            axis.plot(
                means["correct"],
                values,
                linestyle=style,
                color=colour,
                marker=".",
                linewidth=1.2,
                alpha=0.8,
                label=method,
            )
            axis.plot(means["correct"][-1], values[-1], "o", color=colour, markersize=8, fillstyle="none")
    for axis, key in zip(axes.flat, panels, strict=True):
        axis.set_xlabel(f"reward, mean of {window} episodes")
        axis.set_ylabel(RATES[key][0])
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save_svg(figure, out)


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--window", type=positive, default=96, help="episodes that a mean is taken over")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.95, 0.98], help="mean rewards")
    parser.add_argument("--figure", type=Path, help="also draw the figure to this SVG file")
    args = parser.parse_args()
    if not args.file.is_file():
        raise MissingError(f"{args.file} does not exist; give the drift.parquet of a study")
    print(drift_text(args.file, args.window, args.thresholds))
    if args.figure is not None:
        draw(args.file, max(BLOCK, args.window), args.figure)


if __name__ == "__main__":
    start(main)
