"""Errors for mistakes that the user can fix, described in one line.

The command line prints a ``UsageError`` as one line and exits with 2; a ``RunError``, and what the machine lacks
(`machine_fault`), with 1. Any other exception is a bug: it keeps its traceback and asks for a report.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# By number of an ``OSError`` that no bug of ours can cause: what to do.
_REMEDIES = {
    errno.ENOSPC: "free space on its disk, then start again",
    errno.EDQUOT: "free space within your quota, then start again",
    errno.EROFS: "give a path on a disk that can be written",
    errno.EACCES: "give a path that you may use",
    errno.EPERM: "give a path that you may use",
    errno.EIO: "check its disk",
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), "move away what stands there, then start again"),
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class UsageError(ValueError):
    """A mistake of the user. The message is one line that names the value and how to fix it."""


class MissingError(UsageError, FileNotFoundError):
    """A file, folder, model or package that the user named is not there."""


class DamagedError(UsageError):
    """A file is damaged or broken. The message names it."""


class RunError(RuntimeError):
    """A run cannot continue although its settings are valid. The message contains all known details."""


class RunWarning(RuntimeWarning):
    """A run continues otherwise than it was set to. The command line prints the message as one line."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of an extra of ollm-rl, which may be missing, within this context.

    Raises:
        MissingError: If one is missing; the message says what to install.
    """
    try:
        yield
    except ImportError as error:
        raise MissingError(f"{one_line(error)}; run: pip install 'ollm-rl[{name}]'") from error


def machine_fault(error: BaseException) -> str | None:
    """What is wrong with memory, disk or files and what to do, in one line, if an exception says so."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        path = error.filename2 or error.filename  # where a finished file goes, not its temporary name
        where = f"{path}: " if path else ""
        return f"{where}{error.strerror} (error {error.errno}); {_REMEDIES[error.errno]}"
    text = one_line(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"out of memory ({text[:200]}); lower num_slots, batch_size, episodes or the model's size"
    return None


def one_line(error: BaseException | str) -> str:
    """An exception's message without line breaks, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
