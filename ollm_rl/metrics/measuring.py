"""What is measured of a completion, in this process or in others beside it.

A GPU writes short completions faster than one core measures them. So while it decodes, other processes measure.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ollm_rl.errors import RunWarning
from ollm_rl.metrics.degenerate import degeneracy
from ollm_rl.metrics.language import Switching, measure_switching

MOST_WORKERS, CORES_PER_WORKER = 4, 4

Text = tuple[str, str, bool]  # question, completion, and whether it ended by itself


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


class MeasuringPool:
    """Processes that measure texts. Each starts with its first texts, and ends with `close` or with this process.

    What is given to a process that has died is measured by a thread of this one.

    Args:
        num_workers: Number of processes; each takes about 550 MB.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="measuring")
        self._own = threading.local()  # the process of each thread
        self._processes: list[subprocess.Popen[str]] = []

    def submit(self, texts: Sequence[Text]) -> Future[list[Measured]]:
        """Begin to measure some texts, in one of the processes."""
        return self._threads.submit(self._measure, list(texts))

    def worker_pids(self) -> list[int]:
        """Process ids of the living processes."""
        return [process.pid for process in self._processes if process.poll() is None]

    def close(self) -> None:
        """Measure what was submitted, and end the processes."""
        self._threads.shutdown()
        for process in self._processes:
            process.communicate()

    def _measure(self, texts: list[Text]) -> list[Measured]:
        try:
            if not hasattr(self._own, "process"):
                self._own.process = _start()
                self._processes.append(self._own.process)
            return _answer(self._own.process, texts)
        except (OSError, ValueError):  # it could not start, or has died
            message = (
                "a process that measures completions has ended; the run measures its share itself, which is slower"
            )
            warnings.warn(message, RunWarning, stacklevel=2)
            return [Measured.of(question, text, terminated=terminated) for question, text, terminated in texts]


def measuring_pool(device: str) -> MeasuringPool | None:
    """The pool of this process for rollouts on a type of device; None where the cores are few or decode themselves."""
    workers = min(MOST_WORKERS, (os.cpu_count() or 1) // CORES_PER_WORKER)
    if device != "cuda" or workers < 2:
        return None
    if not _shared:
        _shared.append(MeasuringPool(workers))
    return _shared[0]


_shared: list[MeasuringPool] = []  # the pool of this process, once there is one
os.register_at_fork(after_in_child=_shared.clear)  # a forked process has no threads


@atexit.register
def _at_exit() -> None:
    for pool in _shared:
        pool.close()


def _start() -> "subprocess.Popen[str]":
    # It imports from where this process does. A new session, so that Ctrl-C in a terminal does not reach it. It ends
    # when its standard input does.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    command = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, encoding="ascii"
    )


def _answer(process: "subprocess.Popen[str]", texts: list[Text]) -> list[Measured]:
    """What a process makes of some texts.

    Raises:
        OSError, ValueError: If it has died.
    """
    assert process.stdin is not None and process.stdout is not None
    print(json.dumps(texts), file=process.stdin, flush=True)
    found = json.loads(process.stdout.readline())
    return [Measured(Switching(*counts), frozenset(flags)) for counts, flags in found]


def serve() -> None:
    """Answer each line of texts on standard input by a line of what was measured."""
    for line in sys.stdin:
        found = [Measured.of(question, text, terminated=terminated) for question, text, terminated in json.loads(line)]
        print(json.dumps([[one.switching, sorted(one.flags)] for one in found]), flush=True)
