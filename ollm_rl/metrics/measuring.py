"""What is measured of a completion, in this process or in others beside it.

A GPU writes short completions faster than one core measures and checks them. So while it decodes, other processes do.
The first of them loads the models of languages, which takes seconds, and forks, so that they share the memory of these.
"""

import atexit
import contextlib
import os
import queue
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ollm_rl.answers.pool import Undecided, Verdict, decide
from ollm_rl.errors import RunWarning
from ollm_rl.metrics.degenerate import degeneracy
from ollm_rl.metrics.detection import load_models
from ollm_rl.metrics.language import Switching, measure_switching

MOST_WORKERS, CORES_PER_WORKER, LEAST_CORES = 8, 2, 8


class Text(NamedTuple):
    """A completion to measure, with the question, its gold answer, and whether the completion ended by itself."""

    question: str
    gold: str
    completion: str
    terminated: bool


class Measured(NamedTuple):
    """What can be measured of a text before it is checked.

    Attributes:
        switching: Its words, those in another language than the question's, and the switches between them.
        flags: What is degenerate about it.
    """

    switching: Switching
    flags: frozenset[str]

    @classmethod
    def of(cls, question: str, text: str, *, terminated: bool) -> "Measured":
        """Measure a text."""
        return cls(measure_switching(question, text), degeneracy(text, finished=terminated))


Judged = tuple[Measured, Verdict | Undecided]


class MeasuringPool:
    """Processes that measure completions, and check their answers where that is quick.

    They start at once, and end with `close` or with this process. What is given to one that has died is measured by a
    thread of this one.

    Args:
        num_workers: Number of processes; together they take about 700 MB.

    Attributes:
        first: The process that loads the models and is the parent of the others.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._idle: queue.SimpleQueue[Connection[Any, Any]] = queue.SimpleQueue()
        theirs = []
        for _ in range(num_workers):
            ours, their = Pipe()
            self._idle.put(ours)
            theirs.append(their)
        self.first = _start(theirs)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="measuring")

    def submit(self, texts: Sequence[Text]) -> Future[list[Judged]]:
        """Begin to measure and check some completions, in one of the processes."""
        return self._threads.submit(self._measure, list(texts))

    def close(self) -> None:
        """Measure what was submitted, and end the processes."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().close()
        self.first.kill()  # it may still be loading
        self.first.wait()

    def _measure(self, texts: list[Text]) -> list[Judged]:
        try:
            process = self._idle.get_nowait()
            process.send(texts)
            judged: list[Judged] = process.recv()
        except (queue.Empty, OSError, EOFError):  # it has died
            message = (
                "a process that measures completions has ended; the run measures its share itself, which is slower"
            )
            warnings.warn(message, RunWarning, stacklevel=2)
            return _judged(texts)
        self._idle.put(process)
        return judged


def measuring_pool(device: str) -> MeasuringPool | None:
    """The pool of this process for rollouts on a type of device; None where the cores are few or decode themselves."""
    cores = os.cpu_count() or 1
    if device != "cuda" or cores < LEAST_CORES:
        return None
    if not _shared:
        _shared.append(MeasuringPool(min(MOST_WORKERS, cores // CORES_PER_WORKER)))
    return _shared[0]


_shared: list[MeasuringPool] = []  # the pool of this process, once there is one
os.register_at_fork(after_in_child=_shared.clear)  # a forked process has no threads


@atexit.register
def _at_exit() -> None:
    for pool in _shared:
        pool.close()


def _start(connections: Sequence["Connection[Any, Any]"]) -> "subprocess.Popen[bytes]":
    """Start the first process, which takes over these ends of connections."""
    descriptors = [connection.fileno() for connection in connections]
    # It imports from where this process does. A new session, so that Ctrl-C in a terminal does not reach it.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({descriptors})"
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a process of several must not fork
    started = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,
        env=os.environ | one_thread,
    )
    for connection in connections:
        connection.close()
    return started


def serve(descriptors: Sequence[int]) -> None:
    """Load the models, and measure what comes by each connection in a process of its own; each ends with its."""
    load_models()
    connections: list[Connection[Any, Any]] = [Connection(descriptor) for descriptor in descriptors]
    for connection in connections:
        if os.fork() == 0:
            for other in connections:
                if other is not connection:
                    other.close()  # else nobody would notice that its process has died
            with contextlib.suppress(EOFError, OSError):
                while True:
                    connection.send(_judged(connection.recv()))
            return
    for connection in connections:
        connection.close()
    for _ in connections:
        os.wait()


def _judged(texts: Sequence[Text]) -> list[Judged]:
    return [
        (
            Measured.of(text.question, text.completion, terminated=text.terminated),
            decide(text.completion, text.gold),
        )
        for text in texts
    ]
