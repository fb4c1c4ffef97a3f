"""Learning curves of several demo runs in one figure: ``python -m ollm_rl.experiments.studies.figure OUT.svg RUN...``.

A line is the mean over the runs (seeds); its band reaches from the lowest to the highest run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ollm_rl.errors import MissingError
from ollm_rl.experiments.script import start
from ollm_rl.report.canvas import save_svg

COLOURS = {"latent": "#0072b2", "anchored": "#009e73", "vocabulary": "#d55e00"}
WINDOW = 96  # episodes that a shown reward is the mean of


def history(run: Path, method: str) -> list[dict[str, Any]]:
    """Metrics of one method of one demo, with the mean reward of the last episodes."""
    path = run / method / "metrics.json"
    if not path.is_file():
        raise MissingError(f"{path} does not exist; give folders of ollm-rl demo")
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    length = max(1, round(WINDOW / rows[0]["episodes"]))
    for end, row in enumerate(rows, 1):
        last = rows[max(0, end - length) : end]
        row["mean_reward"] = sum(each["reward"] for each in last) / len(last)
    return rows


def draw(out: Path, runs: list[Path]) -> None:
    """Draw reward by episodes and by seconds, side by side."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for method, colour in COLOURS.items():
        histories = [history(run, method) for run in runs]
        rewards = np.array([[row["mean_reward"] for row in rows] for rows in histories])
        for axis, quantity in zip(axes, ("episodes", "seconds"), strict=True):
            positions = np.array([[row[quantity] for row in rows] for rows in histories]).mean(0)
            axis.plot(positions, rewards.mean(0), color=colour, linewidth=2, label=method)
            axis.fill_between(positions, rewards.min(0), rewards.max(0), color=colour, alpha=0.2, linewidth=0)
            axis.set_xlabel(quantity)
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("reward (share of right answers)")
    axes[0].legend(frameon=False)
    save_svg(figure, out)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the SVG file to write")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of ollm-rl demo with other seeds")
    args = parser.parse_args()
    draw(args.out, args.runs)


if __name__ == "__main__":
    start(main)
