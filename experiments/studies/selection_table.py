"""Tables of the scripts ``*_selection.sh``: ``python -m ollm_rl.experiments.studies.selection_table OUT``.

Reads OUT/forced.json, of ``ollm-rl teacher-forced``, and what ``ollm-rl search`` wrote beside it, as far as they exist.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ollm_rl.errors import MissingError
from ollm_rl.experiments.script import start
from ollm_rl.experiments.studies.intervals import scaled
from ollm_rl.report.tables import Cell, Table

MEASURES = {"token_accuracy": ("tokens right, %", 100, 1), "nll": ("NLL, nats per token", 1, 3)}
MEASURES |= {"answer_correct": ("answers right, %", 100, 1), "information": ("nats revealed", 1, 3)}
MEASURES |= {"gain_per_nat": ("gain per nat", 1, 2)}
AMBIGUITY = {
    "deterministic": "positions with an entropy below 0.1 nats",
    "ambiguous": "positions with an entropy above 1 nat",
    "ambiguous_top_two": "probability of the two most probable tokens there",
    "live_share": "positions where options differ",
    "whole_coverage": "true solutions that options offer whole",
}


def forced_table(forced: dict[str, Any]) -> Table:
    """Teacher-forced scores, with what the choices reveal of the true tokens."""
    rows: list[list[Cell]] = []
    for name, scores in forced["columns"].items():
        cells: list[Cell] = []
        for key, (_, factor, digits) in MEASURES.items():
            interval = scores.get(key)
            cells.append("–" if interval is None else scaled(interval, factor, digits))
        rows.append([name, *cells])
    note = f"{forced['num_problems']} problems, 95 % bootstrap."
    return Table("Teacher-forced", note, ["column", *(name for name, *_ in MEASURES.values())], rows)


def ambiguity_table(forced: dict[str, Any]) -> Table:
    """How sure the backbone is of the true text, and what the options offer of it."""
    found = forced["ambiguity"] | forced["options"]
    rows: list[list[Cell]] = [[name, scaled(found[key])] for key, name in AMBIGUITY.items()]
    return Table("Ambiguity", f"{forced['num_problems']} problems, 95 % bootstrap.", ["share of", "%"], rows)


def search_table(folder: Path, choice: str) -> Table:
    """Share of problems solved by the number of generated tokens, if completions are chosen in this way."""
    searches = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}
    budgets = next(iter(searches.values()))["budgets"]
    rows: list[list[Cell]] = []
    for name, result in searches.items():
        last = result["accuracy"][choice]
        ends = scaled([last[key] for key in ("mean", "low", "high")])
        rows.append([name, *(f"{100 * share:.1f}" for share in result["curves"][choice][:-1]), ends])
    note = f"Chosen by {choice}; % of {result['num_problems']} problems solved within so many generated tokens."
    return Table(choice.capitalize(), note, ["search", *(f"{budget}" for budget in budgets)], rows)


def show(out: Path) -> None:
    """Print all tables."""
    path, tables = out / "forced.json", list[Table]()
    if path.is_file():
        forced = json.loads(path.read_text())
        tables += [forced_table(forced), ambiguity_table(forced)]
    if any(out.glob("*-*.json")):
        tables += [search_table(out, choice) for choice in ("oracle", "majority", "likelihood")]
    if not tables:
        raise MissingError(f"{out} holds no forced.json and no searches; give the folder a script *_selection.sh wrote")
    print("\n\n".join(table.markdown() for table in tables))


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    show(parser.parse_args().out)


if __name__ == "__main__":
    start(main)
