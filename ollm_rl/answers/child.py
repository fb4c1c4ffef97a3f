"""Controls one child process of the answer checker: starts it, sends it questions, kills and replaces it."""

import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

START_LIMIT = 60.0  # seconds for a child to import SymPy
CHECKS_OF_A_CHILD = 1000  # after which it is replaced, because SymPy's caches grow


class Child:
    """One child process and its pipes, used by one thread. No method raises; a failed child gives a status."""

    def __init__(self, time_limit: float, memory_limit: int) -> None:
        self.time_limit, self.memory_limit = time_limit, memory_limit
        self.process: subprocess.Popen[bytes] | None = None
        self._checks = 0  # since the start

    def start(self) -> None:
        """Start a process and wait until it is ready. ``process`` is None if this fails."""
        worker = Path(__file__).with_name("worker.py")
        # -P: names of our modules in the script's folder must not hide the standard library.
        command = [sys.executable, "-P", str(worker), str(self.time_limit), str(self.memory_limit)]
        try:
            # Unbuffered, so that a forked process can close its copies without writing. A new session, so that Ctrl-C
            # in a terminal does not reach the child.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
            self._checks = 0
            self._read_line(START_LIMIT)
        except (OSError, EOFError, TimeoutError):
            self.stop()

    def check(self, question: bytes) -> tuple[bool, str]:
        """Return whether the two are equal, and the status ``ok``, ``timeout`` or ``error``."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.start()
        if self.process is None:
            return False, "error"
        self._checks += 1
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(question)
            reply = self._read_line(self.time_limit)
        except TimeoutError:
            self.stop()
            return False, "timeout"
        except (OSError, EOFError):
            self.stop()
            return False, "error"
        if reply == b"spent\n":
            self._checks = CHECKS_OF_A_CHILD
        return reply == b"true\n", "ok" if reply in (b"true\n", b"false\n") else "error"

    def renew(self) -> None:
        """Start a process where there is none, or where it has done enough."""
        if self.process is None or self._checks >= CHECKS_OF_A_CHILD:
            self.stop()
            self.start()

    def stop(self) -> None:
        """Kill the process, if there is one, and wait for its end, so that no zombie stays."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            with process:  # closes the pipes and waits
                pass

    def kill(self) -> None:
        """End the process from another thread; its own thread cleans up."""
        if (process := self.process) is not None:
            process.kill()

    def abandon(self) -> None:
        """In a forked process: close the copies of the parent's pipes, or the child would outlive the parent."""
        if (process := self.process) is not None:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def _read_line(self, limit: float) -> bytes:
        """The child's next line.

        Raises:
            TimeoutError: If it took longer than ``limit`` seconds.
            OSError, EOFError: If the child has ended.
        """
        assert self.process is not None and self.process.stdout is not None
        pipe = self.process.stdout
        deadline = time.monotonic() + limit
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(pipe.fileno(), 64)
                if not part:
                    raise EOFError
                line += part
        return line
