"""Tables of ``tiny_arith_overfit.sh``: ``python -m ollm_rl.experiments.studies.overfit_table OUT``."""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError
from ollm_rl.experiments.script import start
from ollm_rl.files.records import Entries, read_object
from ollm_rl.report.tables import Cell, Table

MEASURES = {"nll": ("Nats per token", 1, 3), "token_accuracy": ("Tokens right, %", 100, 1)}
MEASURES |= {"answer_correct": ("Answers right, %", 100, 1)}
RESULT: Entries = {"columns": {"lora": dict.fromkeys(MEASURES, list)}}


def tables(out: Path) -> list[Table]:
    """A table per measure: means over the seeds by steps, the lowest and the highest in brackets.

    Raises:
        MissingError: If there is no result.
        DamagedError: If one cannot be read.
    """
    by_steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for path in out.glob("[0-9]*-[0-9]*.json"):
        result = read_object(path, RESULT, remedy="delete it and start the script again")
        by_steps[int(path.stem.split("-")[0])].append(result["columns"])
    if not by_steps:
        raise MissingError(f"{out} has no result; give the OUT of tiny_arith_overfit.sh")
    columns = list(next(iter(by_steps.values()))[0])
    found = []
    for key, (title, factor, digits) in MEASURES.items():
        rows: list[list[Cell]] = []
        for steps, results in sorted(by_steps.items()):
            row: list[Cell] = [f"{steps:,}"]
            for column in columns:
                values = [factor * result[column][key][0] for result in results]
                mean, low, high = sum(values) / len(values), min(values), max(values)
                row.append(f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
            rows.append(row)
        found.append(Table(title, "Means over seeds by steps of training.", ["steps", *columns], rows))
    return found


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    print("\n\n".join(table.markdown() for table in tables(parser.parse_args().out)))


if __name__ == "__main__":
    start(main)
