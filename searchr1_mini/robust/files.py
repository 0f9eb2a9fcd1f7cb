"""Files that a crash leaves readable: lines that are whole or not there, and JSON that says where it is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from searchr1_mini.errors import UserError


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds one row a line; whatever happens, the file ends in a whole line.

    All rows go to the system in one piece. What a power cut left of a line is cut off first, and rows that the disk
    has no room for are taken back.

    Raises:
        OSError: the disk is full or cannot be written; the file holds the whole lines that it held before.
    """
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with path.open("ab", buffering=0) as file:
        whole = end_of_last_line(path)
        file.truncate(whole)
        try:
            while text:  # a disk that is nearly full takes a part
                text = text[file.write(text) :]
        except BaseException:
            file.truncate(whole)
            raise


def end_of_last_line(path: Path) -> int:
    """Bytes up to the end of the last line that is whole."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b"", b"\n"):
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); put back a copy of it, or name another folder") from error
