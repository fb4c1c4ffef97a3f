"""One process per output: a lock file that the system releases when its process ends, in whatever way."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ollm_rl.errors import UsageError


@contextmanager
def locked(lock_file: Path, refusal: str) -> Iterator[None]:
    """Hold a lock while the block runs. A kill leaves the file, which then locks nothing.

    Args:
        lock_file: In a folder that exists.
        refusal: What to say if another process holds the lock, and what to do.

    Raises:
        UsageError: If another process, or another thread of this one, holds the lock.
        OSError: If the file cannot be created.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(refusal) from error
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)  # while it is held; nobody waits for it, who would then hold a removed file
        lock.release()
