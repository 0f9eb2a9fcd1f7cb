"""The cache of corpora and indexes, of which nobody ever reads half of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from searchr1_mini.core.errors import UserError
from searchr1_mini.storage.lock import aside_folder


def cache_dir() -> Path:
    """Returns the folder of corpora and indexes: $SEARCHR1_CACHE, ~/.cache/searchr1_mini, or a temporary one."""
    if given := os.environ.get("SEARCHR1_CACHE"):
        return Path(given)
    home = os.path.expanduser("~")
    if home == "~":  # neither $HOME nor an entry for this user
        return Path(tempfile.gettempdir()) / f"searchr1_mini-{os.getuid()}"
    return Path(home) / ".cache" / "searchr1_mini"


@contextmanager
def kept_at(path: Path) -> Iterator[Path]:
    """Gives a path to write a file or folder to, renamed to `path` once complete: nobody ever reads half of it.

    Raises:
        UserError: the cache folder cannot be written, or its disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside_folder(path.parent, "making") as aside:
            yield aside / path.name
            try:
                os.replace(aside / path.name, path)
            except OSError:
                if not path.exists():  # else another process was faster
                    raise
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); point $SEARCHR1_CACHE at a folder with room") from error


def new_memmap(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """Opens a .npy file to write through memory, with all of its room taken at once.

    Without the room, a disk that fills up later would end the process by SIGBUS, with no word.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
