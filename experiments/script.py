"""What scripts of ``bench`` and ``studies`` share: how they are started, and files that several processes write.

A mistake of the user is one line, as it is of ``ollm-rl``.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ollm_rl.errors import RunError, UsageError, one_line
from ollm_rl.runs import write_atomic


def positive(text: str) -> int:
    """The ``type`` of an argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def write_if_free(path: Path, contents: Callable[[], str | bytes]) -> None:
    """Make the contents of a file and write them, unless it exists or another process is making them."""
    with suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
        if not path.exists():
            write_atomic(path, contents())


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
