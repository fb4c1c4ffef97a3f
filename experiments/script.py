"""How scripts of ``bench`` and ``studies`` are started: a mistake of the user is one line, as it is of ``ollm-rl``."""

import argparse
import sys
from collections.abc import Callable

from ollm_rl.errors import RunError, UsageError, one_line


def positive(text: str) -> int:
    """The ``type`` of an argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def start(main: Callable[[], object]) -> None:
    """Run a script. What the user did wrong ends it with one line and exit status 2, a run that failed with 1."""
    try:
        main()
    except (UsageError, FileNotFoundError) as error:
        print(one_line(error), file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
