"""Learning curves of several seeds in a figure: ``python -m ollm_rl.experiments.studies.figure OUT.svg SOURCE...``.

The sources are files ``comparison.parquet`` of ``ollm-rl compare``, or folders of ``ollm-rl demo``, of different seeds.
A line is the mean over the runs; its band holds the middle half of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ollm_rl.agents.evaluation.groups import history
from ollm_rl.errors import MissingError, UsageError
from ollm_rl.experiments.curves import Curve
from ollm_rl.experiments.raw import read_all
from ollm_rl.experiments.script import start
from ollm_rl.experiments.studies.colours import GREY, colours
from ollm_rl.report.canvas import save_svg

METHODS, WINDOW = ("latent", "anchored", "vocabulary"), 96  # of a demo; episodes that a shown reward is the mean of


def of_demo(run: Path, method: str) -> Curve:
    """The curve of one method of one demo."""
    rows = history(run / method)
    if not rows:
        raise MissingError(
            f"{run / method} holds no metrics; give folders of ollm-rl demo, or files comparison.parquet"
        )
    return Curve(rows, WINDOW)


def curves(sources: Sequence[Path]) -> dict[str, list[Curve]]:
    """The curves of every method, one per seed."""
    if all(source.suffix == ".parquet" for source in sources):
        return read_all(sources).curves
    return {method: [of_demo(run, method) for run in sources] for method in METHODS}


def draw(out: Path, sources: Sequence[Path]) -> None:
    """Draw reward by episodes and by seconds, side by side.

    Raises:
        UsageError: If the methods are more than the colours, or the runs of one differ in length.
    """
    methods = curves(sources)
    by_method = colours(methods)
    if GREY in by_method.values():
        raise UsageError(f"{len(methods)} methods need more colours than a figure has; give fewer files")
    for method, runs in methods.items():
        if len({len(run.rows) for run in runs}) > 1:
            raise UsageError(f"runs of {method} differ in their number of iterations; give files whose runs are whole")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for method, runs in methods.items():
        colour = by_method[method]
        rewards = np.array([run.reward for run in runs])
        for axis, quantity in zip(axes, ("episodes", "seconds"), strict=True):
            positions = np.array([run.column(quantity) for run in runs]).mean(0)
            axis.plot(positions, rewards.mean(0), color=colour, linewidth=2, label=method)
            low, high = np.quantile(rewards, (0.25, 0.75), axis=0)
            axis.fill_between(positions, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.set_xlabel(quantity)
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("reward (share of right answers)")
    axes[0].legend(frameon=False)
    save_svg(figure, out)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the SVG file to write")
    parser.add_argument("sources", type=Path, nargs="+", help="files comparison.parquet, or folders of demos")
    args = parser.parse_args()
    draw(args.out, args.sources)


if __name__ == "__main__":
    start(main)
