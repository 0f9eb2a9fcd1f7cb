"""One process a folder, and what a killed process left beside its files swept away."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from searchr1_mini.core.errors import UserError

LOCK = ".lock"
_ASIDE = re.compile(r"\..+\.(\d+)$")  # a file that is written aside, see files.write_text_atomic


@contextmanager
def only_one(folder: Path, remedy: str) -> Iterator[None]:
    """Keeps other processes with the same folder out while inside; the system frees it however this one ends.

    On entering, what killed processes left in it and in its folders is swept away.

    Args:
        folder: one that exists.
        remedy: what to do instead, for the error.

    Raises:
        UserError: another process holds it; names it.
    """
    with _locked(folder / LOCK, folder, remedy):
        for part in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
            sweep(part)
        yield


@contextmanager
def only_writer(path: Path, remedy: str) -> Iterator[None]:
    """Does as `only_one` for a folder still to be made: the lock lies beside it, and is gone afterwards.

    Raises:
        UserError: another process holds it; names it.
    """
    lock = path.with_name(f".{path.name}.lock")
    with _locked(lock, path, remedy):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


@contextmanager
def _locked(file: Path, what: Path, remedy: str) -> Iterator[None]:
    """Holds a lock file, which names its holder; a system that knows no such locks is told, and gone on with.

    The file is opened for reading alone, so that a disk with a run on it can still be made read-only.
    """
    descriptor = None
    try:
        import fcntl  # not on Windows

        file.touch()
        descriptor = os.open(file, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        who = file.read_text(encoding="utf-8").strip() or "another process"
        raise UserError(f"{what} is in use by {who}; wait for it to end, or {remedy}") from None
    except (ImportError, OSError) as error:
        print(f"warning: {what} cannot be locked ({error}); start no second process on it", file=sys.stderr)
    try:
        with suppress(OSError):  # only for the sentence above
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Removes files that processes of this machine, which are no more, were writing aside in a folder."""
    for path in folder.iterdir():
        written = _ASIDE.fullmatch(path.name)
        if written and path.is_file() and not is_alive(int(written[1])):
            path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Tells whether a process of this number runs on this machine; one that cannot be asked about counts as running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def aside_folder(parent: Path, name: str) -> Iterator[Path]:
    """Makes a temporary folder in `parent`, gone afterwards; those left by killed processes are removed first.

    Args:
        name: what is written, for the folder's name.
    """
    start = f".{name}-{re.sub(r'[^A-Za-z0-9]', '_', socket.gethostname())}-"
    for path in parent.iterdir():
        pid = path.name.removeprefix(start).partition("-")[0] if path.name.startswith(start) else ""
        if pid.isdecimal() and not is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{start}{os.getpid()}-") as folder:
        yield Path(folder)
