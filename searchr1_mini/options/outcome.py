"""How a command ends: what a user can fix is one sentence and exit code 2; Ctrl-C, a full disk, a reader that left."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable

from searchr1_mini.core.errors import FULL_DISK, UserError, is_out_of_memory
from searchr1_mini.options.entry import INTERRUPTED, is_reader_gone, lost_output, signals_raise
from searchr1_mini.storage import status
from searchr1_mini.storage.printable import plain

UNWRITABLE = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY),
)


def run_command(command: Callable[[], None]) -> None:
    """Runs a command; what a user can fix becomes one sentence on stderr and exit code 2, Ctrl-C exit code 130.

    Where the output goes nowhere (a full disk, `head`), the work is done all the same, and the exit code tells.
    """
    signals_raise()
    try:
        try:
            command()
        finally:  # whatever comes next is printed, or is the shell's
            status.now(None)
    except UserError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        what = f"the disk is full ({error}); what was saved is intact: free some space"
        if (number := errno_of(error)) in UNWRITABLE:
            named = f"cannot use {error.filename or 'a file'} ({os.strerror(number)})"
            what = f"{named}; what was saved is intact: fix that"
        _leave(f"{what}, and run it again (train.py with --resume, if it had begun)", 2)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        preset = "" if "--preset 12gb" in " ".join(sys.argv).replace("=", " ") else ", or try --preset 12gb"
        _leave(
            f"out of memory; lower --tokens-per-micro-batch, --rollout-batch-size or --max-total-tokens{preset}; a run "
            "with checkpoints goes on with --resume",
            2,
        )
    if error := lost_output():
        if is_reader_gone(error):
            raise SystemExit(141)
        _leave(f"the output could not be written ({error.strerror}), but the work is done; send it elsewhere", 2)


def errno_of(error: OSError) -> int | None:
    """Returns the system's number of an error; that of a copied folder (`shutil.Error`) has it in words alone."""
    told = re.search(r"\[Errno (\d+)\]", str(error)) if error.errno is None else None
    return int(told[1]) if told else error.errno


def is_of_the_disk(error: BaseException) -> bool:
    """Tells whether an error says that the disk is full, or that a file cannot be written; not one of a connection."""
    return isinstance(error, OSError) and errno_of(error) in FULL_DISK + UNWRITABLE


def _leave(sentence: str, code: int) -> None:
    sentence = plain(sentence).strip().replace("\n", "\\n")  # it may quote a file or a server
    print(f"error: {sentence}" if code == 2 else sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)
