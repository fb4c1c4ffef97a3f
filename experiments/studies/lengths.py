"""Right solutions of several lengths from human ones: the human text, only its equations, and only its last line.

python -m ollm_rl.experiments.studies.lengths GSM8K_TRAIN OUT

Options that are trained on them can offer short solutions too. GSM8K_TRAIN and OUT are JSON Lines with the fields id,
question, solution and answer. The equations are left out where the text has none or they do not lead to the answer.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ollm_rl.errors import MissingError
from ollm_rl.experiments.script import start
from ollm_rl.experiments.studies.human_styles import Row, steps_of
from ollm_rl.runs import write_atomic


def lengths(row: Row) -> Iterator[tuple[str, str]]:
    """Name and text of every length of a problem's solution."""
    human = row["solution"].strip()
    yield "human", human
    with suppress(ValueError):  # no equations, or they do not lead to the answer
        yield "equations", "\n".join(f"{left} = {right}" for left, right in steps_of(human, str(row["answer"])))
    *before, last = human.split("\n")
    if before:
        yield "last line", last


def main() -> None:
    """Write the solutions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if not args.data.is_file():
        raise MissingError(f"{args.data} does not exist; give the JSON Lines of GSM8K's solutions")
    rows = [json.loads(line) for line in args.data.read_text().strip().split("\n")]
    written = [
        {**row, "id": f"{row['id']}-{name}", "solution": text, "length": name}
        for row in rows
        for name, text in lengths(row)
    ]
    write_atomic(args.out, "".join(json.dumps(row) + "\n" for row in written))
    print(json.dumps(Counter(row["length"] for row in written)))


if __name__ == "__main__":
    start(main)
