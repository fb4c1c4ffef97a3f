"""How long the runs of comparisons trained: ``python -m ollm_rl.experiments.studies.training_time FILE.parquet...``.

A FILE is the comparison.parquet of ``ollm-rl compare``. Seconds are those of rollouts and updates; loading and
evaluation come on top. A run counts in full where others share its GPU, and once if several files hold it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ollm_rl.experiments.raw import by_method, read
from ollm_rl.experiments.script import start
from ollm_rl.report.tables import Cell, Table


def time_table(files: Sequence[Path]) -> Table:
    """Runs, episodes and minutes of every file.

    Raises:
        UsageError: If one is no comparison.
    """
    devices: dict[Path, str] = {}
    # By method, seed and the seconds of its first iteration, which no two runs share: episodes, file and seconds of the
    # longest part of a run that a file holds.
    longest: dict[tuple[str, int, float], tuple[float, Path, float]] = {}
    for path in files:
        rows, data = read(path)
        devices[path] = data["machine"].partition(", NVIDIA ")[2]
        for method, by_seed in by_method(rows, data).items():
            for seed, run in by_seed.items():
                key, found = (method, seed, run[0]["seconds"]), (run[-1]["episodes"], path, run[-1]["seconds"])
                longest[key] = max(longest.get(key, found), found)
    cells: list[list[Cell]] = []
    gpu = 0.0
    for path, device in devices.items():
        runs = [(episodes, seconds) for episodes, file, seconds in longest.values() if file == path]
        minutes = sum(seconds for _, seconds in runs) / 60
        gpu += minutes if device else 0
        episodes = sum(episodes for episodes, _ in runs)
        cells.append([path.stem, device or "CPU", str(len(runs)), f"{episodes:,.0f}", f"{minutes:.1f}"])
    note = f"{gpu:.0f} minutes on GPUs in all. Runs that share a GPU count each, and a run that two files hold once."
    return Table("Time of training", note, ["file", "device", "runs", "episodes", "minutes"], cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    print(time_table(parser.parse_args().files).markdown())


if __name__ == "__main__":
    start(main)
