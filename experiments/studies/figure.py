"""Learning curves of several seeds in one figure: ``python -m ollm_rl.experiments.studies.figure OUT.svg SOURCE...``.

The sources are a ``comparison.parquet`` of ``ollm-rl compare``, or folders of ``ollm-rl demo`` with different seeds. A
line is the mean over the runs; its band reaches from the lowest to the highest run.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ollm_rl.errors import MissingError
from ollm_rl.experiments.raw import runs_of
from ollm_rl.experiments.script import start
from ollm_rl.report.canvas import save_svg

COLOURS = ("#0072b2", "#009e73", "#d55e00", "#56b4e9", "#e69f00", "#cc79a7")
METHODS, WINDOW = ("latent", "anchored", "vocabulary"), 96  # of a demo; episodes that a shown reward is the mean of

History = Sequence[Mapping[str, Any]]


def of_demo(run: Path, method: str) -> History:
    """Metrics of one method of one demo."""
    path = run / method / "metrics.json"
    if not path.is_file():
        raise MissingError(f"{path} does not exist; give folders of ollm-rl demo, or one comparison.parquet")
    rows: History = json.loads(path.read_text())
    return rows


def histories(sources: Sequence[Path]) -> tuple[int, dict[str, list[History]]]:
    """The window, and the runs of every method."""
    if len(sources) == 1 and sources[0].suffix == ".parquet":
        config, runs = runs_of(sources[0])
        return config.window, {method: list(by_seed.values()) for method, by_seed in runs.items()}
    return WINDOW, {method: [of_demo(run, method) for run in sources] for method in METHODS}


def rewards(history: History, window: int) -> list[float]:
    """Mean reward of the last episodes, of fewer at the beginning."""
    length = max(1, round(window / history[0]["episodes"]))
    values = [row["reward"] for row in history]
    return [float(np.mean(values[max(0, end - length) : end])) for end in range(1, len(values) + 1)]


def draw(out: Path, sources: Sequence[Path]) -> None:
    """Draw reward by episodes and by seconds, side by side."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    window, methods = histories(sources)
    for colour, (method, runs) in zip(COLOURS, methods.items(), strict=False):
        values = np.array([rewards(run, window) for run in runs])
        for axis, quantity in zip(axes, ("episodes", "seconds"), strict=True):
            positions = np.array([[row[quantity] for row in run] for run in runs]).mean(0)
            axis.plot(positions, values.mean(0), color=colour, linewidth=2, label=method)
            axis.fill_between(positions, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
            axis.set_xlabel(quantity)
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("reward (share of right answers)")
    axes[0].legend(frameon=False)
    save_svg(figure, out)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the SVG file to write")
    parser.add_argument("sources", type=Path, nargs="+", help="a comparison.parquet, or folders of demos")
    args = parser.parse_args()
    draw(args.out, args.sources)


if __name__ == "__main__":
    start(main)
