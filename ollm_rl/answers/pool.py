r"""Whether a completion's final answer equals the gold answer, in bounded time and memory.

Text and exact numbers decide most answers at once, in the caller. The rest goes to math-verify in child processes that
are killed after a time limit and replaced: some answers keep SymPy busy for ever (``5^{5^{5^{5^5}}}``), and time-outs
by signal work in the main thread only. Nothing but text and a word for the outcome crosses the pipes.
"""

import atexit
import json
import os
import queue
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from ollm_rl.answers.child import Child
from ollm_rl.answers.comparison import compare, reduce
from ollm_rl.answers.extraction import extract_answer
from ollm_rl.answers.spelling import clean
from ollm_rl.answers.units import split_unit
from ollm_rl.errors import UsageError

__all__ = ["FAILURES", "Verdict", "VerifierPool", "extract_answer", "verify"]


FAILURES = ("timeout", "error")  # statuses in which the checker failed, which says nothing about the answer
MAX_CHARACTERS = 1000  # of an answer that is checked
MAX_BARS = 20  # of an answer that math-verify checks: its parser takes up to ten seconds for loops of |3||3|...


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check.

    Attributes:
        correct: Whether the answer equals the gold answer; False for every status but ``ok``.
        extracted: The answer as written in the completion; None without an answer.
        method: How it was found: ``boxed``, ``hashes``, ``phrase`` or ``last_number``; None without an answer.
        status: ``ok``, ``no_answer``, ``timeout``, ``error`` (the checker failed) or ``too_long``.
    """

    correct: bool
    extracted: str | None
    method: str | None
    status: str

    @property
    def failed(self) -> bool:
        """Whether the checker failed, which says nothing about the answer."""
        return self.status in FAILURES


def verify(completion: str, gold: str) -> Verdict:
    r"""Check a completion's final answer against the gold answer.

    May be called from any thread and process, after fork and spawn, and in Ray actors. Answers that need math-verify
    go to a pool of this process, created at first use. `VerifierPool` does the same with your own limits and without
    waiting.

    Args:
        completion: Generated text.
        gold: The bare answer, such as ``72`` or ``\frac{1}{2}``.

    Raises:
        UsageError: If one of them is not text.
    """
    for name, text in (("completion", completion), ("gold", gold)):
        if not isinstance(text, str):
            raise UsageError(f"{name}={text!r} is not text; give text, such as '72'")
    return shared_pool().submit(completion, gold).result()


class Undecided(NamedTuple):
    """An answer that takes math-verify: what was found, with its method, and the texts to compare."""

    found: tuple[str | None, str]
    question: list[str]


def decide(completion: str, gold: str, max_characters: int = MAX_CHARACTERS) -> Verdict | Undecided:
    """The verdict of `verify` if text and exact numbers decide it, else what `VerifierPool.ask` takes."""
    found = extract_answer(completion)
    if found is None:
        return Verdict(False, None, None, "no_answer")
    if max(len(found[0]), len(gold)) > max_characters:
        return Verdict(False, *found, "too_long")
    answer, reference = clean(found[0]), clean(gold)
    equal = compare(answer, reference)
    if equal is None and answer.count("|") > MAX_BARS:
        return Verdict(False, *found, "too_long")
    if equal is None:
        return Undecided(found, [split_unit(part)[0] for part in reduce(answer, reference)])
    return Verdict(equal, *found, "ok")


class VerifierPool:
    """Quick comparisons, and child processes with math-verify for the answers that these cannot decide.

    Children start when the first answer needs one, and end with `close`, with the ``with`` block or with the process.

    Args:
        num_workers: Number of child processes; each takes about 70 MB.
        time_limit: Seconds of wall time and of processor time per check, after which the child is killed.
        memory_limit: Address space of a child, in bytes.
        max_characters: Longer answers and gold answers are not checked.

    Raises:
        ValueError: If a limit is not positive.
    """

    def __init__(
        self,
        num_workers: int = min(4, os.cpu_count() or 1),
        *,
        time_limit: float = 5.0,
        memory_limit: int = 1024**3,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        if num_workers < 1 or time_limit <= 0 or max_characters < 1:
            raise ValueError(
                f"num_workers={num_workers}, time_limit={time_limit} and max_characters={max_characters} must be "
                "positive; leave them out for the usual values"
            )
        self.num_workers, self.max_characters = num_workers, max_characters
        self._limits = (time_limit, memory_limit)
        self._reset()
        _pools.add(self)

    def submit(self, completion: str, gold: str) -> Future[Verdict]:
        """Begin a check; most are done on return.

        Raises:
            RuntimeError: If the pool is closed.
        """
        done: Future[Verdict] = Future()
        decided = decide(completion, gold, self.max_characters)
        if isinstance(decided, Undecided):
            return self.ask(decided)
        done.set_result(decided)
        return done

    def submit_whole(self, completion: str, gold: str) -> Future[Verdict]:
        """Begin a check by math-verify only, including its own extraction, as a second opinion.

        The method of the verdict is ``whole``. Completions longer than ten times ``max_characters`` are too long.

        Raises:
            RuntimeError: If the pool is closed.
        """
        done: Future[Verdict] = Future()
        if len(completion) > 10 * self.max_characters or len(gold) > self.max_characters:
            done.set_result(Verdict(False, None, "whole", "too_long"))
        else:
            return self.ask(Undecided((None, "whole"), [completion, gold, "whole"]))
        return done

    def verify_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Check many answers, with all workers in parallel.

        Raises:
            ValueError: If the two differ in length.
        """
        pending = [self.submit(completion, gold) for completion, gold in zip(completions, golds, strict=True)]
        return [check.result() for check in pending]

    def worker_pids(self) -> list[int]:
        """Process ids of the living children."""
        return [child.process.pid for child in self._children if child.process and child.process.poll() is None]

    def close(self) -> None:
        """Cancel waiting checks, end the children and wait for them."""
        with self._lock:
            self._closed = True
            threads = self._threads
        try:
            while True:
                if task := self._tasks.get_nowait():
                    task.done.cancel()
        except queue.Empty:
            pass
        for _ in threads:
            self._tasks.put(None)
        for thread in threads:
            thread.join()

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reset(self) -> None:
        """Set the state without children, of a new pool, or of a forked process, which has no threads."""
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._children: list[Child] = []
        self._closed = False

    def ask(self, undecided: Undecided) -> Future[Verdict]:
        """Begin a check by math-verify; the first one starts the children.

        Raises:
            RuntimeError: If the pool is closed.
        """
        done: Future[Verdict] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("this VerifierPool is closed; make another")
            if not self._threads:
                self._children = [Child(*self._limits) for _ in range(self.num_workers)]
                self._threads = [
                    threading.Thread(target=self._serve, args=(child,), name="verifier", daemon=True)
                    for child in self._children
                ]
                for thread in self._threads:
                    thread.start()
            self._tasks.put(_Task(done, undecided))
        return done

    def _serve(self, child: "Child") -> None:
        """Main loop of a thread: keep its child ready and give it one task after another."""
        child.start()
        while (task := self._tasks.get()) is not None:
            if task.done.set_running_or_notify_cancel():
                correct, status = child.check(json.dumps(task.undecided.question).encode() + b"\n")
                task.done.set_result(Verdict(correct, *task.undecided.found, status))
            if not self._closed:
                child.renew()
        child.stop()

    def _forget(self) -> None:
        """Drop the parent's children in a forked process, without signalling them."""
        for child in self._children:
            child.abandon()
        self._reset()

    def _kill(self) -> None:
        self._closed = True
        for child in self._children:
            child.kill()


@dataclass(frozen=True)
class _Task:
    done: Future[Verdict]
    undecided: Undecided


_pools: weakref.WeakSet[VerifierPool] = weakref.WeakSet()
_shared: VerifierPool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> VerifierPool:
    """The pool of this process that `verify` uses."""
    global _shared
    if _shared is None:
        with _shared_lock:
            if _shared is None:
                _shared = VerifierPool()
    return _shared


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()  # another thread of the parent may hold the old one
    for pool in list(_pools):
        pool._forget()


def _at_exit() -> None:
    for pool in list(_pools):
        pool._kill()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
