"""Functions in processes of their own: one that may be killed, or two of one run, as a launcher starts them."""

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

COUNT = 2
PATIENCE = 200.0  # seconds


def run_process(log: Path, function: Callable[..., Any], *arguments: Any) -> int | None:
    """Call a function in a process of its own; returns its exit code, which is negative after a signal.

    What it prints is in ``log``.
    """
    process = _context().Process(target=_logged, args=(log, function, *arguments))
    process.start()
    process.join(PATIENCE)
    process.kill()
    code: int | None = process.exitcode
    return code


def _logged(log: Path, function: Callable[..., Any], *arguments: Any) -> None:
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    raise SystemExit(function(*arguments))


def _context() -> Any:
    """A fork needs no second import of everything, but a process that knows CUDA must not be forked."""
    return get_context("spawn" if torch.cuda.is_available() else "fork")


def run_processes(folder: Path, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Call a function of a module in two processes of one thread; returns their exit codes by rank.

    What they print is in ``folder``, in files ``0.out``, ``0.err`` and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = _context()
    started = [
        context.Process(target=_process, args=(rank, port, folder, function, *arguments)) for rank in range(COUNT)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE)
        process.kill()
    return [process.exitcode for process in started]


def _process(rank: int, port: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> None:
    sys.stdout, sys.stderr = ((folder / f"{rank}.{name}").open("w", buffering=1) for name in ("out", "err"))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(COUNT), "LOCAL_RANK": str(rank), "TQDM_DISABLE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    raise SystemExit(function(*arguments))
