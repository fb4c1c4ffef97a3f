"""Functions in processes of their own: in one that may be killed, or in two of one run, as a launcher starts them."""

import gc
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

COUNT = 2
PATIENCE = 200.0  # seconds


class _Server:
    """Where `run_process` sends its calls."""

    connection: Connection | None = None


def _method() -> str:
    """A fork needs no second import of everything, but a process that knows CUDA must not be forked."""
    return "spawn" if torch.cuda.is_available() else "fork"


@contextmanager
def process_server() -> Iterator[None]:
    """Keep a fork of this process, of which `run_process` makes its processes.

    They need no second import of everything, and know nothing of what tests have done to this process since, such as
    starting Ray, after which a process must not be forked either.
    """
    _Server.connection, connection = Pipe()
    context: Any = get_context(_method())
    server = context.Process(target=_serve, args=(connection,))
    server.start()
    connection.close()
    yield
    _Server.connection.send(None)
    server.join()


def run_process(log: Path, function: Callable[..., Any], *arguments: Any) -> int | None:
    """Call a function of a module in a process of its own; returns its exit code, which is negative after a signal.

    What it prints is in ``log``.
    """
    assert _Server.connection is not None
    _Server.connection.send(pickle.dumps((log, function, arguments)))
    code: int | None = _Server.connection.recv()
    return code


def _serve(connection: Connection) -> None:
    """Fork a process for each call, until there are no more or nobody is left to make them."""
    if _Server.connection is not None:
        _Server.connection.close()  # a copy, with which the end of the other process would not be seen
    gc.freeze()  # its processes need not look at what is there already
    try:
        while (call := connection.recv()) is not None:
            process = get_context("fork").Process(target=_logged, args=(call,))
            process.start()
            process.join(PATIENCE)
            process.kill()
            process.join()
            connection.send(process.exitcode)
    except EOFError:
        pass


def _logged(call: bytes) -> None:
    log, function, arguments = pickle.loads(call)  # here, since this may import what asks for CUDA
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    raise SystemExit(function(*arguments))


def run_processes(folder: Path, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Call a function of a module in two processes of one thread; returns their exit codes by rank.

    What they print is in ``folder``, in files ``0.out``, ``0.err`` and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context: Any = get_context(_method())
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
