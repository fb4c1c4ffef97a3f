"""The tables of a comparison from its raw file: ``python -m ollm_rl.experiments.studies.compare_tables FILE...``.

A FILE is the comparison.parquet of ``ollm-rl compare``. Several are shown as one comparison, with the baseline of the
first: other seeds, or other methods. ``--seeds 10 11`` shows the learning of these runs only: does it lie within the
intervals of the others?
"""

import argparse
from pathlib import Path

from ollm_rl.experiments.raw import tables_of
from ollm_rl.experiments.script import start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=())
    args = parser.parse_args()
    print("\n\n".join(table.markdown() for table in tables_of(*args.files, seeds=args.seeds)))


if __name__ == "__main__":
    start(main)
