"""What limits options in a setting: pass@k of both sides at the start, what can be imitated, and signal over training.

python -m ollm_rl.experiments.studies.limits SETTING... [--save SETTING.json] [--figure OUT.svg]

A SETTING is the OUT of a study's script, or a file of an earlier ``--save``. Of a folder are read ``greedy`` and
``pass`` (evaluations of backbone and options before training), ``imitation`` (results of that study) and
``compare/runs`` or ``runs`` (training runs NAME-seedN); what is missing is left out. The figure has a row per setting.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ollm_rl.agents.evaluation.groups import history
from ollm_rl.agents.evaluation.results import SUMMARY_FILE
from ollm_rl.errors import UsageError
from ollm_rl.experiments.script import start
from ollm_rl.experiments.studies.colours import GREY, OTHERS, colours
from ollm_rl.experiments.studies.intervals import scaled
from ollm_rl.files.records import Entries, read_object, read_rows
from ollm_rl.report.canvas import save_svg
from ollm_rl.report.tables import Cell, Table
from ollm_rl.runs import METRICS_FILE, write_atomic

SIGNALS = {"reward": "reward", "mixed_groups": "mixed groups", "live_share": "share of decisions"}
SUMMARY: Entries = {"model": str, **dict.fromkeys(("accuracy", "low", "high"), float)}

Runs = Mapping[str, Sequence[Sequence[dict[str, Any]]]]  # by method, the rows of every seed


def start_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Greedy accuracy with its interval, and pass@k by k, of every model before training."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("greedy", "pass"):
        if (folder / name).exists():
            for result in read_rows(folder / name / SUMMARY_FILE, SUMMARY):
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


class Setting(NamedTuple):
    """What is known of a setting; each part may be empty."""

    start: dict[str, dict[str, Any]]
    ceilings: dict[str, dict[str, Any]]
    runs: dict[str, list[list[dict[str, Any]]]]

    @classmethod
    def of(cls, path: Path) -> "Setting":
        """Read a folder, or a file that ``text`` gave.

        Raises:
            UsageError: If it holds no results.
        """
        if path.is_file():
            held = read_object(path, dict.fromkeys(cls._fields, {}), remedy="give a file of --save")
            found = cls(*(held[name] for name in cls._fields))
            try:
                for result in found.start.values():
                    result["pass"] = {int(k): value for k, value in result["pass"].items()}
                found.tables()
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise UsageError(f"{path} has been changed ({error!r}); give a file of --save") from error
        else:
            found = cls(start_results(path), imitation_results(path), training_runs(path))
        if not any(found):
            raise UsageError(f"{path} holds no results; give the OUT of a study's script, or a file of --save")
        return found

    def text(self) -> str:
        """As JSON, of the runs what the tables and the figure need."""
        names = ("episodes", *SIGNALS)
        runs = {
            method: [[{name: row[name] for name in names} for row in run] for run in seeds]
            for method, seeds in self.runs.items()
        }
        return json.dumps(self._replace(runs=runs)._asdict())

    def tables(self) -> list[Table]:
        """The tables of what is known."""
        tables = [make(found) for make, found in ((start_table, self.start), (imitation_table, self.ceilings)) if found]
        return tables + ([training_table(self.runs)] if self.runs else [])


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


def draw(settings: Mapping[str, Setting], out: Path) -> None:
    """In one row per setting pass@k at the start, ceilings by imitation, and the signals against episodes."""
    figure = Figure(figsize=(19, 3.4 * len(settings)), layout="constrained")
    columns = 2 + len(SIGNALS)
    for row, (name, setting) in zip(
        figure.subplots(len(settings), columns, squeeze=False), settings.items(), strict=True
    ):
        _draw_start(row[0], setting.start)
        _draw_ceilings(row[1], setting.ceilings)
        for axis, (key, label) in zip(row[2:], SIGNALS.items(), strict=True):
            _draw_signal(axis, setting.runs, key, label)
        row[0].set_title(name, loc="left", fontweight="bold")
        for axis in row:
            if not axis.has_data():
                axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
                axis.set(xticks=[], yticks=[])
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False, fontsize=8)
    save_svg(figure, out)


def _draw_start(axis: Axes, start: Mapping[str, Mapping[str, Any]]) -> None:
    measured = {name: result["pass"] for name, result in start.items() if result["pass"]}
    for name, colour in colours(measured).items():
        axis.semilogx(
            list(measured[name]), [100 * value for value in measured[name].values()], "o-", color=colour, label=name
        )
    axis.set(xlabel="k", ylabel="pass@k before training, %")


def _draw_ceilings(axis: Axes, ceilings: Mapping[str, Mapping[str, Any]]) -> None:
    axis.set_ylabel("imitation, %")
    if not ceilings:
        return
    places = np.arange(len(ceilings))
    for shift, key, colour in ((-0.2, "whole_coverage", GREY), (0.2, "after", OTHERS[0])):
        values = [found[key] if key == "whole_coverage" else found[key][0] for found in ceilings.values()]
        name = {"whole_coverage": "completions offered whole", "after": "greedy after imitation"}[key]
        axis.bar(places + shift, [100 * value for value in values], 0.38, color=colour, label=name)
    axis.set_xticks(places, list(ceilings), rotation=20)
    axis.set_ylim(0, 135)  # room for the legend


def _draw_signal(axis: Axes, runs: Runs, key: str, label: str) -> None:
    for method, colour in colours(runs).items():
        seeds = runs[method]
        length = min(len(run) for run in seeds)
        signal = np.mean([column(run, key)[:length] for run in seeds], axis=0)
        episodes = column(seeds[0], "episodes")[:length]
        width = max(1, length // 12)
        smooth = np.convolve(signal, np.ones(width) / width, "valid")
        axis.plot(episodes[width - 1 :], 100 * smooth, color=colour, label=method)
    axis.set(xlabel="episodes", ylabel=f"{label}, %")


def main() -> None:
    """Print the tables of what is there, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, nargs="+")
    parser.add_argument("--save", type=Path, help="write what is known of one setting to this JSON file")
    parser.add_argument("--figure", type=Path, help="also draw the figure to this SVG file")
    args = parser.parse_args()
    if args.save and len(args.settings) > 1:
        parser.error("--save takes one setting")
    settings = {path.stem: Setting.of(path) for path in args.settings}
    if len(settings) < len(args.settings):
        raise UsageError("two settings have the same name, which is that of their folder or file; rename one")
    for name, setting in settings.items():
        print("\n\n".join([f"## {name}", *(table.markdown() for table in setting.tables())]) + "\n")
        if args.save:
            write_atomic(args.save, setting.text())
    if args.figure:
        draw(settings, args.figure)


if __name__ == "__main__":
    start(main)
