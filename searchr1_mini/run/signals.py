"""Ctrl-C and SIGTERM: the first asks the run to stop where nothing is lost, the second stops it at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from searchr1_mini.core import interrupt


@contextmanager
def first_signal() -> Iterator[None]:
    """Notes the first Ctrl-C or SIGTERM inside instead of raising it; a second one raises KeyboardInterrupt.

    A thread other than the main one gets no signals, and leaves them as they are; `interrupt.ask` stops its run.
    """

    def on_signal(*_) -> None:
        if interrupt.is_asked():
            raise KeyboardInterrupt
        interrupt.ask()
        print(
            "\nstopping; finished work will be saved. Press Ctrl-C again to leave at once", file=sys.stderr, flush=True
        )

    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield
    finally:
        interrupt.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)
