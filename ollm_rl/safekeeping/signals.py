"""Stops from outside: SIGTERM lets the current step end, Ctrl-C during imports ends at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = 130  # exit code after Ctrl-C


@contextmanager
def catch_sigterm() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM sets; a second one acts as usual.

    In threads, which get no signals, the event is never set.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return

    def request_stop(*_: object) -> None:
        stop_requested.set()
        signal.signal(signal.SIGTERM, previous_handler)

    previous_handler = signal.signal(signal.SIGTERM, request_stop)
    try:
        yield stop_requested
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


@contextmanager
def end_at_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process with one line while the block runs, in which nothing has been done yet.

    An exception would not do: libraries that are being imported turn it into an ``ImportError`` or lose it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"ollm-rl: stopped before anything was done\n")
        os._exit(STOPPED)

    previous_handler = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
