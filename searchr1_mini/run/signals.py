"""Ctrl-C and SIGTERM: the first asks the run to stop where nothing is lost, the second stops it at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from searchr1_mini.core import interrupt


@contextmanager
def first_signal() -> Iterator[None]:
    """Notes the first Ctrl-C or SIGTERM inside instead of raising it; a second one raises KeyboardInterrupt."""

    def on_signal(*_) -> None:
        if interrupt.is_asked():
            raise KeyboardInterrupt
        interrupt.ask()
        print(
            "\nstopping; finished work will be saved. Press Ctrl-C again to leave at once", file=sys.stderr, flush=True
        )

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        interrupt.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)
