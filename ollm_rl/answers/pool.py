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

from ollm_rl.answers.child import Child
from ollm_rl.answers.comparison import compare
from ollm_rl.answers.extraction import extract_answer
from ollm_rl.answers.quantities import clean, split_unit

__all__ = ["FAILURES", "Verdict", "VerifierPool", "extract_answer", "verify"]


FAILURES = ("timeout", "error")  # statuses for which the checker, not the answer, is to blame


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check.

    Attributes:
        correct: Whether the answer equals the gold answer; False for every status but ``ok``.
        extracted: The answer as it stands in the completion, None without one.
        method: Where it stood: ``boxed``, ``hashes``, ``phrase`` or ``last_number``; None without an answer.
        status: ``ok``, ``no_answer``, ``timeout``, ``error`` (the checker broke) or ``too_long``.
    """

    correct: bool
    extracted: str | None
    method: str | None
    status: str

    @property
    def failed(self) -> bool:
        """Whether the checker broke, which says nothing about the answer."""
        return self.status in FAILURES


def verify(completion: str, gold: str) -> Verdict:
    r"""Check a completion's final answer against the gold answer.

    May be called from any thread and any process, after fork and spawn, and in Ray actors. Answers that need
    math-verify go to a pool of this process, made at first use; `VerifierPool` does the same with limits of your own,
    and without waiting.

    Args:
        completion: Generated text.
        gold: The bare answer, such as ``72`` or ``\frac{1}{2}``.
    """
    return shared_pool().submit(completion, gold).result()


class VerifierPool:
    """Child processes with math-verify, and the quick comparisons before them.

    Children start when the first answer needs one, and end with `close`, with the ``with`` block or with the process.

    Args:
        num_workers: Child processes; each takes some 70 MB.
        time_limit: Seconds one check may take in a child, of the wall and of the processor; the child is killed then.
        memory_limit: Bytes of address space of a child.
        max_characters: Longer answers, and answers to longer gold answers, are not looked at.

    Raises:
        ValueError: If a limit leaves nothing.
    """

    def __init__(
        self,
        num_workers: int = min(4, os.cpu_count() or 1),
        *,
        time_limit: float = 5.0,
        memory_limit: int = 1024**3,
        max_characters: int = 1000,
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
        """Begin a check; most are finished on return.

        Raises:
            RuntimeError: If the pool is closed.
        """
        done: Future[Verdict] = Future()
        found = extract_answer(completion)
        if found is None:
            done.set_result(Verdict(False, None, None, "no_answer"))
            return done
        if max(len(found[0]), len(gold)) > self.max_characters:
            done.set_result(Verdict(False, *found, "too_long"))
            return done
        answer, reference = clean(found[0]), clean(gold)
        equal = compare(answer, reference)
        if equal is not None:
            done.set_result(Verdict(equal, *found, "ok"))
            return done
        self._ask(_Task(done, found, [split_unit(answer)[0], split_unit(reference)[0]]))
        return done

    def submit_whole(self, completion: str, gold: str) -> Future[Verdict]:
        """Begin a check by math-verify alone, extraction included: a second opinion, of which we decide nothing.

        The verdict names ``whole`` as its method. Completions of more than ten times ``max_characters`` are too
        long.

        Raises:
            RuntimeError: If the pool is closed.
        """
        done: Future[Verdict] = Future()
        if len(completion) > 10 * self.max_characters or len(gold) > self.max_characters:
            done.set_result(Verdict(False, None, "whole", "too_long"))
        else:
            self._ask(_Task(done, (None, "whole"), [completion, gold, "whole"]))
        return done

    def verify_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Check many answers, as many at a time as there are workers.

        Raises:
            ValueError: If the two differ in length.
        """
        pending = [self.submit(completion, gold) for completion, gold in zip(completions, golds, strict=True)]
        return [check.result() for check in pending]

    def worker_pids(self) -> list[int]:
        """Process ids of the children that live."""
        return [child.process.pid for child in self._children if child.process and child.process.poll() is None]

    def close(self) -> None:
        """Cancel what waits, end the children and wait for them."""
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
        """State without a child: of a new pool, and of a forked process, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._children: list[Child] = []
        self._closed = False

    def _ask(self, task: "_Task") -> None:
        """Put a task in the queue of the children, which the first one starts."""
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
            self._tasks.put(task)

    def _serve(self, child: "Child") -> None:
        """Life of a thread: keep its child ready, hand it one task after another."""
        child.start()
        while (task := self._tasks.get()) is not None:
            if task.done.set_running_or_notify_cancel():
                correct, status = child.check(json.dumps(task.question).encode() + b"\n")
                task.done.set_result(Verdict(correct, *task.found, status))
            if not self._closed:
                child.renew()
        child.stop()

    def _forget(self) -> None:
        """In a forked process: let go of the parent's children without a word to them."""
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
    found: tuple[str | None, str]
    question: list[str]


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
    _shared_lock = threading.Lock()  # another thread of the parent may have held it
    for pool in list(_pools):
        pool._forget()


def _at_exit() -> None:
    for pool in list(_pools):
        pool._kill()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
