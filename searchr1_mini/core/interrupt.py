"""Ctrl-C and SIGTERM: the first asks the run to stop where nothing is lost, the second stops it at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from searchr1_mini.core.distributed import n_processes

_asked = threading.Event()


class Stopped(BaseException):
    """The user asked to stop, and the micro-batch (or decode step) at hand is done."""


@contextmanager
def first_signal() -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM is noted instead of raised; a second one raises KeyboardInterrupt."""

    def on_signal(*_) -> None:
        if _asked.is_set():
            raise KeyboardInterrupt
        _asked.set()
        print("\nstopping; what is done will be saved. Ctrl-C again leaves at once", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_asked() -> bool:
    """Whether a signal came, in this process."""
    return _asked.is_set()


def check() -> None:
    """Called between two micro-batches and between two decode steps, where a step may be left.

    With several processes a step is finished instead: they must leave together.

    Raises:
        Stopped: a signal came.
    """
    if _asked.is_set() and n_processes() == 1:
        raise Stopped
