"""What an entry point does before its imports: streams that cannot fail, and one line for Ctrl-C.

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import types

INTERRUPTED = 130
_is_begun = False


class Forgiving(io.FileIO):
    """Standard output or error of which a write never fails: work goes on where nobody reads, or the disk is full.

    Attributes:
        error: why nothing is written any more.
    """

    error: OSError | None = None

    def write(self, data) -> int:
        """Writes; the first time that it cannot, what is at the other end is replaced by nothing."""
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
    that no file is opened under its number.

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
    """From here on a signal raises KeyboardInterrupt, so that what is open is closed; but not inside of an import.

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


def lost_output() -> OSError | None:
    """Why standard output takes nothing any more; None while it does."""
    with contextlib.suppress(AttributeError):  # a stream of another kind, as a test's
        sys.stdout.flush()
        return sys.stdout.buffer.raw.error
    return None


def is_reader_gone(error: OSError) -> bool:
    """Whether whoever read the output has left, as `head` does."""
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)
