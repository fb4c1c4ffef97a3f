"""The tables of a comparison from its raw file: ``python -m ollm_rl.experiments.studies.compare_tables FILE.parquet``.

FILE is the comparison.parquet of ``ollm-rl compare``.
"""

import argparse
from pathlib import Path

from ollm_rl.experiments.raw import tables_of
from ollm_rl.experiments.script import start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print("\n\n".join(table.markdown() for table in tables_of(parser.parse_args().file)))


if __name__ == "__main__":
    start(main)
