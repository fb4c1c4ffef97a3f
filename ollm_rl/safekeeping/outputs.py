"""Where results go: found to be unwritable before the work, and named if the disk is full after it."""

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ollm_rl.errors import RunError, UsageError
from ollm_rl.safekeeping.locking import locked

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 2**20  # bytes; with fewer free, torch's errors of writing, which give no reason, are put down to the disk
TEMPORARY_SUFFIX = ".tmp"  # of a file that is being written
# The second form is that of older versions, where a kill in the first write of run.json blocked the folder.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp|\.run\.json\.[a-z0-9_]{8}")


def is_temporary(path: Path) -> bool:
    """Whether a file is one that ``write_atomic`` is writing, or was writing when its process was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writes left in a folder and in its parts. Nobody may be writing there.

    A folder in it that is a run itself is left as it is: its own process may be writing there.
    """
    parts = [path for path in folder.iterdir() if path.is_dir() and not (path / "run.json").exists()]
    for part in (folder, *parts):
        for path in part.glob(".*"):
            if is_temporary(path):
                path.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn what a full disk raises, in whichever library, into a ``RunError`` that names the path."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if not _is_disk_full(error, path):
            raise
        raise RunError(f"{path} cannot be written: no space left on its disk; free some and start again") from error


def _is_disk_full(error: BaseException, path: Path) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return True
        cause = cause.__cause__ or cause.__context__
    if "No space left on device" in str(error):  # safetensors
        return True
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < LITTLE


@contextmanager
def output_file(path: Path | None) -> Iterator[None]:
    """Make sure before the work of the block that its result can be written, and by no other process meanwhile.

    Args:
        path: The file; without one nothing happens.

    Raises:
        UsageError: If it is a folder or cannot be written, or another process is about to write it.
        RunError: If the disk is full.
    """
    if path is None:
        yield
        return
    if path.is_dir():
        raise UsageError(f"out={path} is a folder; give a file")
    with full_disk_named(path):
        _make_writable(path.parent, str(path))
        refusal = f"another process is about to write {path}; wait for it or give another out"
        with locked(path.parent / f".{path.name}.lock", refusal):
            yield


@contextmanager
def output_folder(folder: Path | None, activity: str) -> Iterator[None]:
    """Make a folder for the results of the block, and keep other processes out of it meanwhile.

    Args:
        folder: The folder; without one nothing happens.
        activity: What goes on there, such as ``a sweep``; its last word names the lock file.

    Raises:
        UsageError: If the folder cannot be made or written, or another process is at work in it.
        RunError: If the disk is full.
    """
    if folder is None:
        yield
        return
    with full_disk_named(folder):
        _make_writable(folder, str(folder))
        refusal = f"{activity} is running in {folder}; wait for it or give another out folder"
        with locked(folder / lock_name(activity), refusal):
            remove_temporaries(folder)
            yield


def lock_name(activity: str) -> str:
    """Name of the lock file of an activity."""
    return f"{activity.split()[-1]}.lock"


def _make_writable(folder: Path, out: str) -> None:
    """Make a folder, and refuse one in which no file can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in the way" if in_the_way else error.strerror
        raise UsageError(f"out={out!r} cannot be written ({reason}); give another path") from error
