"""Checkpoints that are whole or not there, exact resume, and the guard of a run's folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import FULL_DISK, UserError
from searchr1_mini.storage.files import read_json, read_metrics, write_json_atomic
from searchr1_mini.storage.forms import PROGRESS

MANIFEST = "manifest.json"
CHANGED = "resumed_with.json"  # options that --resume changed


def save_checkpoint(run_dir: Path, step: int, write_files: Callable[[Path], None]) -> Path:
    """Writes checkpoints/step-000050: aside, with a manifest of checksums, synced, then renamed into place.

    Args:
        write_files: fills the folder that it is given.

    One that is there, whole, stays as it is: at no instant is a step that was saved not there.

    Raises:
        UserError: the disk is full; what was saved before is untouched.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final, aside = folder / f"step-{step:06d}", folder / f".step-{step:06d}"
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale)
    if is_whole(final):
        return final
    try:
        aside.mkdir()
        write_files(aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(aside)): _checksum(path) for path in files}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2))
        for path in (*files, aside / MANIFEST, *(p for p in aside.rglob("*") if p.is_dir()), aside):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync(folder)
    except Exception as error:  # tokenizers raises Exception itself
        shutil.rmtree(aside, ignore_errors=True)
        if not is_full_disk(error, folder):
            raise
        raise UserError(
            f"the disk is full: checkpoint {final} was not saved; earlier checkpoints are whole. Free some space, then "
            f"go on with --resume --output-dir {run_dir}"
        ) from error
    return final


def is_full_disk(error: BaseException, folder: Path) -> bool:
    """Tells whether the disk is full: torch and safetensors wrap the system's error in one of their own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL_DISK
    words = ("No space left", "File too large", "quota exceeded", "unexpected pos", "write failed", "file write failed")
    is_told = any(word in str(error) for word in words)
    return is_told or (folder.exists() and shutil.disk_usage(folder).free < 1 << 20)


def _checksum(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoint_step(path: Path) -> int:
    """Returns the step of a checkpoint, 50 for `.../step-000050`."""
    return int(path.name.removeprefix("step-"))


def is_whole(path: Path) -> bool:
    """Tells whether every file of the manifest is there, unchanged."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(_checksum(path / name) == expected for name, expected in manifest.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Lists every checkpoint folder, the newest first, whole or not."""
    found = [path for path in (run_dir / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=checkpoint_step, reverse=True)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Returns the newest whole checkpoint; broken ones are named on stderr and passed over."""
    for path in list_checkpoints(run_dir):
        if is_whole(path):
            return path
        print(f"warning: checkpoint {path} is damaged and passed over", file=sys.stderr)
    return None


def checkpoint_to_resume(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint of the run; None where it was interrupted before the first.

    Raises:
        UserError: all of its checkpoints are damaged.
    """
    newest = latest_checkpoint(folder)
    if newest is None and list_checkpoints(folder):
        raise UserError(
            f"--resume: every checkpoint in {folder} is damaged; put back a copy of one, or start a new run in another "
            "--output-dir"
        )
    return newest


def best_checkpoint(run_dir: Path) -> Path | None:
    """Finds the whole checkpoint whose step has the highest held-out exact match, the newest of equals."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    em = {row["step"]: row["eval/em"] for row in rows if row.get("eval/em") is not None}
    scored = [path for path in list_checkpoints(run_dir) if checkpoint_step(path) in em]
    scored.sort(key=lambda path: em[checkpoint_step(path)], reverse=True)
    return next(filter(is_whole, scored), None)


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Removes what is older than the newest `keep` whole checkpoints, broken ones too, but for the best.

    To know that one is whole is to read all of it, so no more of them are looked at than must be.
    """
    newest = list(islice(filter(is_whole, list_checkpoints(run_dir)), keep))
    if len(newest) < keep:
        return
    older = [path for path in list_checkpoints(run_dir) if checkpoint_step(path) < checkpoint_step(newest[-1])]
    best = best_checkpoint(run_dir) if older else None
    for path in older:
        if path != best:
            shutil.rmtree(path)


def read_progress(path: Path) -> dict[str, Any]:
    """Reads how far a checkpoint's run had come.

    Raises:
        UserError: it is damaged.
    """
    progress = read_json(path)
    is_ours = {name for name in PROGRESS if name[0] != "?"} <= progress.keys()  # else of another version
    return read_json(path, PROGRESS) if is_ours else progress


def keep_changed(run_dir: Path, config: dict[str, Any], may_change: Sequence[str]) -> None:
    """Keeps what `--resume` changed beside config.json, which stays as the run began, for the next `--resume`."""
    began = read_json(run_dir / "config.json")
    changed = {name: config[name] for name in may_change if name in began and began[name] != config[name]}
    if changed != changed_since(run_dir):
        write_json_atomic(run_dir / CHANGED, changed)


def changed_since(run_dir: Path) -> dict[str, Any]:
    """Reads what `--resume` has changed of a run's options; nothing where it changed none.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / CHANGED
    return read_json(path) if path.is_file() else {}


def check_new(run_dir: Path) -> None:
    """Refuses a folder in which a run cannot begin, since there is something in it.

    Raises:
        UserError: says so.
    """
    # a process that was killed as it began leaves the beginning of config.json
    of_a_beginning = (".config.json.", ".lock")
    if run_dir.is_dir() and any(not found.name.startswith(of_a_beginning) for found in run_dir.iterdir()):
        raise UserError(
            f"{run_dir} is not empty; add --resume to go on with the run in it, or name another --output-dir"
        )


def prepare_run_dir(
    run_dir: Path,
    resume: bool,
    config: dict[str, Any],
    must_match: Sequence[str],
    compared: Callable[[Any], Any] = lambda value: value,
) -> None:
    """Opens a run's folder: a new one gets its config.json, another run's is refused, a resumed one is compared.

    Args:
        compared: what of a value counts where two are compared.

    Raises:
        UserError: the folder holds another run, or none to resume, or one whose `must_match` values differ; it cannot
            be written; its config.json is damaged.
    """
    path = run_dir / "config.json"
    if resume:
        if not path.exists():
            raise UserError(
                f"--resume: {run_dir} holds no run (no config.json); check --output-dir or leave out --resume"
            )
        old = read_json(path)
        for name in must_match:
            if name in old and compared(old[name]) != compared(config[name]):  # an older version had fewer options
                raise UserError(
                    f"--resume: the run in {run_dir} has {name} {old[name]}, not {config[name]}; give the same "
                    "value, or start a new run in another --output-dir"
                )
        return
    check_new(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, config)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise UserError(f"{run_dir} cannot be written ({error.strerror}); name another --output-dir") from error
