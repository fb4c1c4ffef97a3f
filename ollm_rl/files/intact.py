"""Of several checkpoints, those that are intact; damaged ones are named once and set aside."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ollm_rl.errors import DamagedError, one_line

DAMAGED_FOLDER = "damaged"


def intact(folder: Path, newest_first: Sequence[Path], check: Callable[[Path], object]) -> Iterator[Path]:
    """Yield the intact checkpoints, newest first, and move damaged ones into the sub-folder ``damaged``.

    Args:
        folder: Folder of the checkpoints.
        newest_first: The checkpoints, files or folders.
        check: Raises DamagedError for a damaged one.

    Raises:
        DamagedError: At the end, if none is intact and some were damaged, now or earlier.
    """
    any_intact = False
    for path in newest_first:
        try:
            check(path)
        except DamagedError as error:
            _set_aside(path, error)
            continue
        any_intact = True
        yield path
    aside = folder / DAMAGED_FOLDER
    if not any_intact and (newest_first or aside.is_dir()):
        raise DamagedError(f"{folder} holds only damaged checkpoints (see {aside}); train again in another out folder")


def _set_aside(path: Path, error: DamagedError) -> None:
    target = path.parent / DAMAGED_FOLDER / path.name
    try:
        target.parent.mkdir(exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
        done = f"it is now {target}"
    except OSError as reason:  # a reader of a folder that is not its own
        done = f"it cannot be moved ({reason.strerror})"
    print(f"{one_line(error)}; {done}, and the checkpoint before it is used", file=sys.stderr)
