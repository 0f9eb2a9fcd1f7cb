"""Files that a crash leaves readable: lines that are whole or not there, and JSON that says where it is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.storage.forms import METRICS, SUMMARY, misfit


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds one row per line; whatever happens, the file ends in a whole line.

    All rows go to the system in one piece. What a power cut left of a line is cut off first, and rows that the disk
    has no room for are taken back.

    Raises:
        OSError: the disk is full or cannot be written; the file holds the whole lines that it held before.
    """
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with path.open("ab", buffering=0) as file:
        whole = last_line_end(path)
        file.truncate(whole)
        try:
            while text:  # a disk that is nearly full takes a part
                text = text[file.write(text) :]
        except BaseException:
            file.truncate(whole)
            raise


def last_line_end(path: Path) -> int:
    """Returns the bytes up to the end of the last line that is whole."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b"", b"\n"):
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1


EVALUATIONS = ("before", "after_cold_start", "after", "after_without_retriever")


def read_summary(path: Path) -> dict[str, Any]:
    """Reads a finished run's summary.json.

    Raises:
        UserError: it is damaged, or its measurements are of different questions.
    """
    summary = read_json(path, SUMMARY)
    parts = [summary[name] for name in EVALUATIONS if summary.get(name)]
    if any(part["by_source"].keys() != parts[0]["by_source"].keys() for part in parts):
        raise UserError(f"{path} is damaged (its measurements are of other sources); put back a copy of it")
    return summary


def read_json(path: Path, form: Any = None) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
        form: what it must look like, see forms.py [default: any object].

    Raises:
        UserError: it cannot be read, or holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        if told := misfit(value, form or {}):
            raise ValueError(told)
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); put back a copy of it, or name another folder") from error


def listed_paths(text: str | None) -> list[str]:
    """Splits a comma-separated list of names and paths; a path that is there may have commas in its name."""
    words, parts = (text or "").split(","), []
    while words:
        joined = [",".join(words[:n]) for n in range(len(words), 0, -1)]
        there = [name for each in joined for name in (each, each.strip()) if exists(name)]
        parts.append(there[0] if there else words[0].strip())
        words = words[(there[0].count(",") if there else 0) + 1 :]
    return [part for part in parts if part]


def exists(path: str) -> bool:
    """Tells whether there is such a file or folder; a name that no file system takes is none."""
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):
        return False


def read_jsonl(path: Path, form: Any = None) -> list[dict[str, Any]]:
    """Reads the whole lines of a jsonl file; a torn last line, as a killed run leaves it, is passed over.

    Args:
        form: what each line must look like, see forms.py [default: any object].

    Raises:
        UserError: another line is no JSON object of that form.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows += [json.loads(line)] if line else []
            if line and not isinstance(rows[-1], dict):
                raise ValueError("not a JSON object")
            if line and (told := misfit(rows[-1], form or {})):
                raise ValueError(told)
        except (ValueError, RecursionError) as error:
            raise UserError(f"line {number} of {path} is damaged ({error}); remove it to go on") from error
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a metrics.jsonl, one per step: an evaluation, a line of its own, joins its step's.

    Raises:
        UserError: a line is damaged.
    """
    return joined_by_step(read_jsonl(path, METRICS))


def joined_by_step(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins rows with the same `step` into one, in order of their first."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    return list(steps.values())


def write_jsonl_atomic(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one row per line, see `write_text_atomic`."""
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text_atomic(path: Path, text: str) -> None:
    """Writes aside, then renames: a reader sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:  # a lone surrogate is no utf-8
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, see `write_text_atomic`."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
