"""Kills between any two file operations, in this process.

A kill is an exception before the n-th operation. From then on every further operation of the dead process fails too,
so that no cleanup runs, as after kill -9.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

# What Python reports to audit hooks, and the place of the path among the arguments.
OPERATIONS = {"open": 0, "os.rename": 0, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """Stands for kill -9; nothing catches it."""


class _Fault:
    """The operation to be killed; audit hooks cannot be removed, so there is one for all tests."""

    folder: str | None = None  # operations elsewhere do not count
    at: int = 0
    count: int = 0


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _Fault.folder is None or event not in OPERATIONS:
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
        return
    path = arguments[OPERATIONS[event]]
    if isinstance(path, str | Path):
        _operate(str(path))


def _operate(path: str) -> None:
    """Count an operation, and die if it is its turn."""
    # The system releases locks; names relative to a folder that is being removed count too.
    if path.endswith(".lock") or not (path.startswith(str(_Fault.folder)) or "/" not in path):
        return
    _Fault.count += 1
    if _Fault.count >= _Fault.at:
        raise Killed(f"before operation {_Fault.at}, {path}")


sys.addaudithook(_hook)


@contextmanager
def killed_before(operation: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the block as a process that is killed before an operation (from 1) on files below a folder.

    If it has fewer operations, it ends as usual.
    """
    plain = torch.save

    def save(state: Any, file: Any, *arguments: Any, **settings: Any) -> None:
        # It writes paths without Python: one operation makes the file, one fills it.
        if isinstance(file, str | Path):
            _operate(str(file))
            Path(file).write_bytes(b"")
        plain(state, file, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        _Fault.folder, _Fault.at, _Fault.count = str(folder), operation, 0
        try:
            yield
        except Killed:
            pass
        finally:
            _Fault.folder = None


def was_killed() -> bool:
    """Whether the last block had as many operations as were asked for."""
    return _Fault.count >= _Fault.at
