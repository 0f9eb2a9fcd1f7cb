"""The one exception that a user is meant to read, and what the system's own mean."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what CUDA and MPS, Windows, Linux and cuBLAS say
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class UserError(Exception):
    """Bad input or a bad environment, told in one sentence that names the thing, its value and the remedy.

    `train.py` and `eval.py` print it without a traceback and exit with code 2.
    """


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tells whether memory ran out: torch.OutOfMemoryError is a RuntimeError, and only some devices raise it."""
    return any(words in str(error) for words in OUT_OF_MEMORY)


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean X?`, or nothing if nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
