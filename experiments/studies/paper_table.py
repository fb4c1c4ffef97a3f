"""The paper's table from the results of ``paper.sh``: ``python -m ollm_rl.experiments.studies.paper_table OUT``.

Reads OUT/forced.json and OUT/eval.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ollm_rl.agents.evaluation.results import read_results
from ollm_rl.errors import MissingError
from ollm_rl.experiments.script import start
from ollm_rl.experiments.studies.intervals import scaled
from ollm_rl.report.tables import Cell, Table

# Columns of the teacher-forced evaluation: what the paper calls them, and its final-answer correctness.
FORCED = {
    "backbone": ("backbone", "–"),
    "lora": ("LoRA", "51 at its peak"),
    "oracle": ("OLLM, optimal selection", "about 70"),
    "policy": ("OLLM, policy", "lost in the text"),
}
RATES = ("language_switching_rate", "degeneracy_rate")


def forced_table(forced: dict[str, Any]) -> Table:
    """Per-token accuracy and answers under teacher forcing, beside the paper's figures."""
    rows: list[list[Cell]] = []
    for name, (shown, figure) in FORCED.items():
        scores = forced["columns"][name]
        rows.append([shown, scaled(scores["token_accuracy"]), figure, scaled(scores["answer_correct"])])
    note = "Along the given solutions of Omni-MATH. The paper does not say how it takes final answers."
    columns = ["method", "tokens right, %", "the paper's final answers, %", "final answers right, %"]
    return Table("Teacher-forced", note, columns, rows)


def free_table(results: list[dict[str, Any]]) -> Table:
    """Greedy decoding on the same problems."""
    rows: list[list[Cell]] = [
        [
            Path(result["model"]).name,
            scaled([result[name] for name in ("accuracy", "low", "high")]),
            *(f"{100 * result[rate]:.1f}" for rate in RATES),
            f"{result['completion_tokens']:,.0f}",
        ]
        for result in results
    ]
    columns = ["model", "final answers right, %", "language switching, %", "degenerate, %", "tokens"]
    return Table("Free-running", "Greedy, at most as many new tokens as the evaluation allows.", columns, rows)


def show(out: Path) -> None:
    """Print both tables."""
    path = out / "forced.json"
    if not path.is_file():
        raise MissingError(f"{path} does not exist; give the OUT of paper.sh")
    forced = json.loads(path.read_text())
    for table in (forced_table(forced), free_table(read_results(out / "eval"))):
        print(table.markdown(), end="\n\n")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    show(parser.parse_args().out)


if __name__ == "__main__":
    start(main)
