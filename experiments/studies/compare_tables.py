"""The tables of a comparison from its raw file: ``python -m ollm_rl.experiments.studies.compare_tables FILE.parquet``.

FILE is the comparison.parquet of ``ollm-rl compare``.
"""

import argparse
import sys
from pathlib import Path

from ollm_rl.errors import UsageError
from ollm_rl.experiments.raw import tables_of


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    try:
        print("\n\n".join(table.markdown() for table in tables_of(parser.parse_args().file)))
    except UsageError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
