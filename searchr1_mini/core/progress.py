"""How far the work at hand has come: told by whoever does it, shown by whoever listens."""

from __future__ import annotations

from collections.abc import Callable

_listeners: list[Callable[[str, int, int, str], None]] = []


def listen(listener: Callable[[str, int, int, str], None]) -> None:
    """Has every `tell` reach this listener too."""
    _listeners.append(listener)


def tell(what: str, done: int, total: int, note: str = "") -> None:
    """Tells that `done` of `total` parts of the work are done."""
    for listener in _listeners:
        listener(what, done, total, note)
