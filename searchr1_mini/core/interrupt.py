"""Where a step may be left: polled between two decode steps and two micro-batches, as long as no weight has moved."""

from __future__ import annotations

import threading

from searchr1_mini.core.distributed import n_processes

_asked, _held = threading.Event(), threading.Event()


class Stopped(BaseException):
    """The user asked to stop, and the micro-batch (or decode step) at hand is done."""


def ask() -> None:
    """Has the next poll leave."""
    _asked.set()


def is_asked() -> bool:
    """Tells whether somebody asked to stop, in this process."""
    return _asked.is_set()


def hold() -> None:
    """Lets no poll leave from here on: a weight has moved, and the step must end."""
    _held.set()


def is_held() -> bool:
    """Tells whether a weight has moved since the last whole step."""
    return _held.is_set()


def release() -> None:
    """Lets polls leave again: the step is whole."""
    _held.clear()


def clear() -> None:
    """Forgets what was asked."""
    _asked.clear()
    _held.clear()


def check() -> None:
    """Leaves, if somebody asked and the step may be left. Several processes end the step: they must leave together.

    Raises:
        Stopped: now.
    """
    if _asked.is_set() and not _held.is_set() and n_processes() == 1:
        raise Stopped
