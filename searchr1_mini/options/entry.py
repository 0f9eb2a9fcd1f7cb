"""What an entry point does before its imports: streams that cannot fail, one line for Ctrl-C, a sign of life.

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import shlex
import signal
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

INTERRUPTED = 130
COLOR = re.compile(rb"\x1b\[[0-9;]*m")
_is_begun = False


class Forgiving(io.FileIO):
    """Standard output or error of which a write never fails: work goes on where nobody reads, or the disk is full.

    Attributes:
        error: why nothing is written any more.
        printing: what a write stands in: the status line makes room for it.
        log: takes the same again, without colors.
    """

    error: OSError | None = None
    printing: Callable[[bytes], contextlib.AbstractContextManager] = staticmethod(contextlib.nullcontext)
    log: io.FileIO | None = None

    def write(self, data) -> int:
        """Writes; the first time that it cannot, what is at the other end is replaced by nothing."""
        if Forgiving.log is not None and self is not Forgiving.log:
            Forgiving.log.write(COLOR.sub(b"", bytes(data)))
        with self.printing(data):
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
                return len(data)


def begin(is_child: bool = False) -> None:
    """Makes the streams forgiving, and leaves at once, with one line and 130, on Ctrl-C or SIGTERM.

    Characters that a stream's encoding does not have are written as escapes. A stream that is closed is nowhere, so
    that no file is opened under its number. From here on the status line shows that something is going on, and what
    libraries say beside their errors is shown with `--verbose` alone, which every command takes.

    Args:
        is_child: of a process of this kind, which says nothing itself.
    """
    global _is_begun
    _is_begun = True
    _open_what_is_closed()
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout, sys.stderr = _forgiving(sys.stdout, 1), _forgiving(sys.stderr, 2)

    def leave(*_) -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            if not is_child:
                print("interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    def hook(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            leave()
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
    _on_signals(leave)
    is_verbose = "--verbose" in sys.argv[1:]
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--verbose"]
    if not is_verbose:
        quiet_libraries()
    _wait_briefly()
    if not is_child and os.environ.get("RANK", "0") == "0":  # of torchrun's processes the first
        _show_status()


def quiet_libraries() -> None:
    """Keeps what libraries say to their developers from the user's terminal."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _wait_briefly() -> None:
    """Has threads that wait for each other sleep soon; else a program beside this one slows it down several times."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # iterations; read as torch is loaded, see docs/performance.md


def _show_status() -> None:
    from searchr1_mini.storage import status

    for stream in (sys.stdout, sys.stderr):
        raw = stream.buffer.raw
        raw.printing = partial(status.printing, is_terminal=raw.isatty())
    status.start()
    status.now("starting")


def _open_what_is_closed() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _forgiving(stream: io.TextIOWrapper | None, descriptor: int) -> io.TextIOWrapper:
    """A stream in place of another one, of the same encoding."""
    raw = Forgiving(descriptor, "w", closefd=False)
    by_lines = descriptor == 2 or raw.isatty()
    encoding = stream.encoding if stream is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_lines)


def _on_signals(handler) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and a shell's background jobs ask for
            signal.signal(number, handler)


def signals_raise() -> None:
    """Makes signals raise KeyboardInterrupt from here on, so that what is open is closed; but not inside an import.

    Half-imported modules turn it into errors of their own, and there is nothing to close yet.
    """
    if not _is_begun:
        return
    leave = signal.getsignal(signal.SIGTERM)

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        at = frame
        while at is not None:
            if at.f_code.co_filename == "<frozen importlib._bootstrap>":
                leave(number, frame)
            at = at.f_back
        raise KeyboardInterrupt

    _on_signals(interrupt)


def keep_log(path: Path) -> None:
    """Has everything that is printed from here on stand in a file too, below the command line, until `end_log`.

    Where the streams are not this program's own, as in a notebook, nothing is kept.
    """
    if _is_begun:
        Forgiving.log = Forgiving(path, "a")
        Forgiving.log.write(f"$ {shlex.join(_command())}\n".encode("utf-8", "backslashreplace"))


def _command() -> list[str]:
    """The words that start this program again; a module has its file's path in `sys.argv`, and is found by name."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]
    return [Path(sys.executable).name, *program, *sys.argv[1:]]


def end_log(
    kind: type[BaseException] | None = None, error: BaseException | None = None, _: types.TracebackType | None = None
) -> None:
    """Closes the file of `keep_log`, as an exit of a `with`; what breaks the work off is its last line."""
    if Forgiving.log is not None:
        if kind is not None:
            Forgiving.log.write(f"{kind.__name__}: {error}\n".encode("utf-8", "backslashreplace"))
        Forgiving.log.close()
        Forgiving.log = None


def lost_output() -> OSError | None:
    """Returns why standard output takes nothing any more; None while it does."""
    with contextlib.suppress(AttributeError):  # a stream of another kind, as a test's
        sys.stdout.flush()
        return sys.stdout.buffer.raw.error
    return None


def is_reader_gone(error: OSError) -> bool:
    """Tells whether whoever read the output has left, as `head` does."""
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)
