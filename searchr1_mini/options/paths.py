"""Paths on the command line: a home, the newest run, the folder of a new one, and places that can be written."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import FULL_DISK, UserError
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.needs import shown
from searchr1_mini.options.nested import flag_name, with_options
from searchr1_mini.storage.files import exists, listed_paths


def at_home(name: str, value: Any) -> Any:
    """Spells out `~/runs`, as a shell does where it stands alone; other values stay as they are.

    Raises:
        UserError: nobody knows where that home is.
    """
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    path = os.path.expanduser(value)
    if path.startswith("~"):
        told = f"{flag_name(name)} {shown(value)}: {value.split('/')[0]} is no known home"
        raise UserError(f"{told}; write ./~ for a name of that form")
    return path


def folders_first(words: Sequence[str], flag: str) -> list[str]:
    """Puts the folders that a command begins with behind their flag, separated by commas."""
    n = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    return [flag, ",".join(words[:n]), *words[n:]] if n else list(words)


def check_folder(path: Path, flag: str = "--output-dir") -> None:
    """Refuses a folder in which no file could be made, or that could not be made itself, before any work.

    Raises:
        UserError: names the file that is in the way, or the folder above that takes none.
    """
    there = next((each for each in (path, *path.parents) if exists(str(each))), path)
    if exists(str(there)) and not there.is_dir():
        raise UserError(f"{flag} {path} cannot be written, since {there} is a file; name another folder")
    try_file(there, f"{flag} {path}")


def try_file(folder: Path, named: str) -> None:
    """Makes a file in a folder that is there, and removes it.

    Args:
        named: the flag and its value, for the sentence.

    Raises:
        UserError: it cannot be made, for another reason than a full disk.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".config.json."):  # a name that `check_new` passes over
            pass
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        told = f"{named} cannot be written: no file can be made in {folder} ({error.strerror or error})"
        raise UserError(f"{told}; name another folder") from error


def with_folder(config: TrainConfig) -> TrainConfig:
    """Returns the config with a folder for the run; where none is named, `runs/<time>-<model>-<algorithm>`."""
    if config.run.output_dir is not None:
        return config
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.run.model).name[:80]}-{config.run.algorithm}"
    return with_options(config, output_dir=str(Path("runs") / name))


def page_path(output: str, name: str, flag: str = "--output") -> Path:
    """Returns the file that `--output` names for a page.

    Raises:
        UserError: it is a folder, in which the page would be called `name`, or it lies in none, or in one that takes
            no files.
    """
    path = Path(output)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file, as in {path / name}")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    try_file(path.parent, f"{flag} {path}")
    return path


def named_runs(text: str) -> str:
    """Puts the newest run's folder in place of each `latest` of a comma-separated list of runs.

    Raises:
        UserError: there is no run yet.
    """
    parts = listed_paths(text)
    return ",".join(latest_run() if part == "latest" else part for part in parts) if "latest" in parts else text


def latest_run() -> str:
    """Returns the folder below runs/ in which a run was begun last.

    Raises:
        UserError: there is none.
    """
    begun = {path.parent: path.stat().st_mtime for path in Path("runs").glob("*/config.json")}
    if not begun:
        raise UserError("latest: there is no run below runs/ yet; name a run's folder")
    return str(max(begun, key=begun.__getitem__))
