"""JSON that somebody, or a disk, has changed: every part of a value, and what may stand there instead."""

from __future__ import annotations

from typing import Any


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every part of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


def changed(value: Any, path: tuple, new: Any) -> Any:
    """A JSON value with the part at a path replaced, or removed where `new` is ..."""
    if not path:
        return {} if new is ... else new
    copied = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new is ...:
        del copied[path[0]]
    else:
        copied[path[0]] = changed(copied[path[0]], path[1:], new)
    return copied


JUNK = [
    ..., None, "x", "", 7, -1, 0, 2**64, 10**400, 1e308, float("nan"), float("-inf"), True, [], [[]], {}, {"x": 1},
    ["x"], "\ud800", "\0", 0.5, [None], [10**400], "a" * 5000, "</script>",
]  # fmt: skip
