"""What limits options in a setting: pass@k of both sides at the start, what can be imitated, and signal over training.

python -m ollm_rl.experiments.studies.limits FOLDER [--figure OUT.svg]

FOLDER is the OUT of a study's script. Read are ``greedy`` and ``pass`` (evaluations of backbone and options before
training), ``imitation`` (results of that study) and ``compare/runs`` or ``runs`` (training runs NAME-seedN); what is
missing is left out.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ollm_rl.agents.evaluation.groups import METRICS_FILE, history
from ollm_rl.agents.evaluation.results import read_results
from ollm_rl.experiments.studies.intervals import scaled
from ollm_rl.report.canvas import save_svg
from ollm_rl.report.tables import Cell, Table

SIGNALS = {"reward": "reward", "mixed_groups": "mixed groups", "live_share": "share of decisions"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")

Runs = Mapping[str, Sequence[Sequence[dict[str, Any]]]]  # by method, the rows of every seed


def start_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Greedy accuracy with its interval, and pass@k by k, of every model before training."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("greedy", "pass"):
        if (folder / name).exists():
            for result in read_results(folder / name):
                entry = found.setdefault(Path(result["model"]).name, {"pass": {}})
                if name == "greedy":
                    entry["greedy"] = [result[key] for key in ("accuracy", "low", "high")]
                ks = {int(key.removeprefix("pass_at_")): value for key, value in result.items() if "pass_at_" in key}
                entry["pass"] |= dict(sorted(ks.items()))
    return found


def training_runs(folder: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """The metrics of all runs by method, seeds in order."""
    methods: dict[str, list[list[dict[str, Any]]]] = {}
    for parent in (folder / "compare/runs", folder / "runs"):
        for path in sorted(parent.glob(f"*-seed*/{METRICS_FILE}")):
            methods.setdefault(re.sub(r"-seed\d+$", "", path.parent.name), []).append(history(path.parent))
    return methods


def imitation_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the imitation study by student."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "imitation").glob("*.json"))}


def start_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Greedy accuracy and pass@k before training."""
    ks = sorted({k for result in results.values() for k in result["pass"]})
    rows: list[list[Cell]] = [
        [
            name,
            scaled(result["greedy"]) if "greedy" in result else "–",
            *(f"{100 * result['pass'][k]:.1f}" if k in result["pass"] else "–" for k in ks),
        ]
        for name, result in results.items()
    ]
    note = "Before training, in per cent: greedy, and the share of problems that one of k samples solves."
    return Table("At the start", note, ["model", "greedy", *(f"pass@{k}" for k in ks)], rows)


def imitation_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """What policies on the frozen hidden state reach by imitation."""
    rows: list[list[Cell]] = [
        [name, f"{100 * found['whole_coverage']:.1f}", scaled(found["before"]), scaled(found["after"])]
        for name, found in results.items()
    ]
    note = "Right completions of a trained vocabulary policy, imitated on frozen hidden states; greedy, in per cent."
    return Table("Ceiling", note, ["student", "offered whole, %", "before", "after imitation"], rows)


def training_table(runs: Runs) -> Table:
    """Signal in thirds of training, means over seeds."""
    rows: list[list[Cell]] = []
    for method, seeds in runs.items():
        cells = []
        for key in SIGNALS:
            thirds = np.mean(
                [[part.mean() for part in np.array_split(column(run, key), 3) if part.size] for run in seeds], axis=0
            )
            cells.append(", ".join(f"{third:.2f}" for third in thirds))
        rows.append([method, str(len(seeds)), *cells])
    note = (
        "Means over the first, second and last third of training. A group is mixed if its episodes differ in reward, "
        "without which nothing is learned from it; decisions are positions where the policy has a choice."
    )
    return Table("Signal", note, ["method", "runs", *SIGNALS.values()], rows)


def column(run: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """A metric by iteration."""
    return np.array([row[key] for row in run], dtype=float)


def draw(start: Mapping[str, Any], ceilings: Mapping[str, Any], runs: Runs, out: Path) -> None:
    """pass@k at the start, ceilings by imitation, and mixed groups against episodes, side by side."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for colour, (name, result) in zip(COLOURS, start.items(), strict=False):
        left.plot(
            list(result["pass"]), [100 * value for value in result["pass"].values()], "o-", color=colour, label=name
        )
    left.set(xscale="log", xlabel="k", ylabel="pass@k before training, %")
    left.legend(frameon=False)
    places = np.arange(len(ceilings))
    for shift, key, colour in ((-0.2, "whole_coverage", COLOURS[6]), (0.2, "after", COLOURS[2])):
        values = [found[key] if key == "whole_coverage" else found[key][0] for found in ceilings.values()]
        name = {"whole_coverage": "completions offered whole", "after": "greedy after imitation"}[key]
        middle.bar(places + shift, [100 * value for value in values], 0.38, color=colour, label=name)
    middle.set_xticks(places, list(ceilings), rotation=20)
    middle.set_ylabel("%")
    if ceilings:
        middle.legend(frameon=False)
    for colour, (method, seeds) in zip(COLOURS, runs.items(), strict=False):
        length = min(len(run) for run in seeds)
        mixed = np.mean([column(run, "mixed_groups")[:length] for run in seeds], axis=0)
        episodes = column(seeds[0], "episodes")[:length]
        width = max(1, length // 12)
        smooth = np.convolve(mixed, np.ones(width) / width, "valid")
        right.plot(episodes[width - 1 :], 100 * smooth, color=colour, label=method)
    right.set(xlabel="episodes", ylabel="mixed groups, %")
    if runs:
        right.legend(frameon=False, fontsize=8)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    save_svg(figure, out)


def main() -> None:
    """Print the tables of what is there, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", type=Path, help="also draw the figure to this SVG file")
    args = parser.parse_args()
    start, ceilings = start_results(args.folder), imitation_results(args.folder)
    runs = training_runs(args.folder)
    tables = [make(found) for make, found in ((start_table, start), (imitation_table, ceilings)) if found]
    tables += [training_table(runs)] if runs else []
    if not tables:
        raise SystemExit(f"{args.folder} holds no results; give the OUT of a study's script")
    print("\n\n".join(table.markdown() for table in tables))
    if args.figure is not None:
        draw(start, ceilings, runs, args.figure)


if __name__ == "__main__":
    main()
