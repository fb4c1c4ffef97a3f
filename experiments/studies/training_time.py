"""How long the runs of comparisons trained: ``python -m ollm_rl.experiments.studies.training_time FILE.parquet...``.

A FILE is the comparison.parquet of ``ollm-rl compare``. Seconds are those of rollouts and updates; loading and
evaluation come on top. A run counts in full where others share its GPU, and once if several files hold it.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ollm_rl.experiments.raw import read
from ollm_rl.experiments.script import start
from ollm_rl.report.tables import Cell, Table


def runs_of(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, int, float], dict[str, Any]]:
    """The last row of each run, by method, seed and the seconds of its first iteration, which no two runs share."""
    firsts: dict[tuple[str, int], float] = {}
    lasts = {}
    for row in rows:
        run = row["method"], row["seed"]
        lasts[*run, firsts.setdefault(run, row["seconds"])] = row
    return lasts


def time_table(files: Sequence[Path]) -> Table:
    """Runs, episodes and minutes of every file.

    Raises:
        UsageError: If one is no comparison.
    """
    held = {path: read(path) for path in files}
    longest: dict[tuple[str, int, float], tuple[float, Path]] = {}  # episodes and file
    for path, (rows, _) in held.items():
        for run, last in runs_of(rows).items():
            longest[run] = max(longest.get(run, (0.0, path)), (last["episodes"], path))
    cells: list[list[Cell]] = []
    gpu = 0.0
    for path, (rows, data) in held.items():
        lasts = [last for run, last in runs_of(rows).items() if longest[run][1] == path]
        minutes = sum(last["seconds"] for last in lasts) / 60
        _, found, device = data["machine"].partition(", NVIDIA ")
        gpu += minutes if found else 0
        episodes = sum(last["episodes"] for last in lasts)
        cells.append([path.stem, device or "CPU", str(len(lasts)), f"{episodes:,.0f}", f"{minutes:.1f}"])
    note = f"{gpu:.0f} minutes on GPUs in all. Runs that share a GPU count each, and a run that two files hold once."
    return Table("Time of training", note, ["file", "device", "runs", "episodes", "minutes"], cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    print(time_table(parser.parse_args().files).markdown())


if __name__ == "__main__":
    start(main)
