"""The status line: what is going on, how far it is and for how long, kept below what is printed.

On a terminal it is drawn anew twice a second, whatever the main thread does. In a log a phase of half a minute
is a line, and one more for each minute that it takes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm
from tqdm.utils import disp_trim

from searchr1_mini.core import progress
from searchr1_mini.storage.printable import one_line

EVERY = 0.5  # seconds between two drawings
FIRST, AGAIN = 30.0, 60.0  # seconds until a phase is a line of a log, and until the next one
ERASE = "\r\x1b[2K"
STDERR = 2


@dataclass
class _Phase:
    name: str
    began: float = field(default_factory=time.monotonic)
    is_logged: int = 0  # how many lines of a log it has

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class _Status:
    """The line of one process, drawn by a thread of its own.

    Attributes:
        base: what the command as a whole is doing, shown where no phase is.
        phases: what is going on, from the outermost to the innermost.
        update: which of a step's several updates is at hand, as text.
        part: how far the innermost is, as text.
        left: seconds until the command is done, where that is known, and when it was said.
        is_drawn: whether the line stands on the terminal.
        is_open: whether somebody has printed a line that does not end yet; nothing is drawn behind it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.base: _Phase | None = None
        self.phases: list[_Phase] = []
        self.update = self.part = ""
        self.left: tuple[float, float] | None = None
        self.is_terminal = self.is_drawn = self.is_open = self.is_started = False

    def start(self) -> None:
        if not self.is_started:
            self.is_started, self.is_terminal = True, os.isatty(STDERR)
            progress.listen(self.hear)
            threading.Thread(target=self.keep_drawing, daemon=True).start()

    def hear(self, what: str, done: int, total: int, note: str) -> None:
        if what == "updates":  # each tells of its micro-batches next
            self.update, self.part = f"update {done + 1}/{total}: " if total > 1 else "", ""
        else:
            self.part = f"{self.update}{what} {done}/{total}" + (f", {note}" if note else "")

    def forget_part(self) -> None:
        self.update = self.part = ""

    def keep_drawing(self) -> None:
        while self.is_started:
            self.draw()
            time.sleep(EVERY)

    def draw(self) -> None:
        with self.lock:
            phase = self.phases[-1] if self.phases else self.base
            if phase is None or self.is_open or not self.is_started:
                return
            if self.is_terminal:
                self.write(ERASE, disp_trim(self.text(phase), max(_width() - 1, 1)))
                self.is_drawn = True
            elif phase.seconds > FIRST + AGAIN * phase.is_logged:
                phase.is_logged += 1
                self.write(self.text(phase), "\n")

    def erase(self) -> None:
        if self.is_drawn:
            self.write(ERASE)
            self.is_drawn = False

    def text(self, phase: _Phase) -> str:
        parts = [one_line(": ".join(one.name for one in self.phases) or phase.name)]  # it may name a file
        parts[0] += f": {self.part}" if self.part else ""
        parts.append(tqdm.format_interval(phase.seconds))
        if self.left:
            seconds, said = self.left
            parts.append(f"{tqdm.format_interval(max(seconds - (time.monotonic() - said), 0))} left")
        return ", ".join(parts)

    def write(self, *text: str) -> None:
        try:
            os.write(STDERR, "".join(text).encode(sys.stderr.encoding, "backslashreplace"))
        except OSError:  # nobody can read it; what matters is printed, and whoever prints will be told
            self.is_started = False


def _width() -> int:
    try:
        return os.get_terminal_size(STDERR).columns or 80
    except OSError:
        return 80


_status = _Status()


def start() -> None:
    """Begins to show the status line, of this process alone."""
    _status.start()


def now(doing: str | None) -> None:
    """Says what the command as a whole is doing; None hands the terminal over, as to a chat."""
    with _status.lock:
        _status.base = _Phase(doing) if doing else None
        _status.forget_part()
        _status.erase()
    _status.draw()


@contextmanager
def meanwhile(doing: str | None) -> Iterator[None]:
    """Says what the command as a whole is doing inside, see `now`; then what it was doing before."""
    before = _status.base
    now(doing)
    try:
        yield
    finally:
        now(before and before.name)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Shows `name` as what is going on inside."""
    with _status.lock:
        _status.phases.append(_Phase(name))
        _status.forget_part()
    _status.draw()
    try:
        yield
    finally:
        with _status.lock:
            _status.phases.pop()
            _status.forget_part()


def say_left(seconds: float | None) -> None:
    """Says how many seconds the command will still take; None where nobody knows."""
    _status.left = None if seconds is None else (seconds, time.monotonic())


@contextmanager
def printing(data: bytes, is_terminal: bool) -> Iterator[None]:
    """Gives the status line's place to what is printed inside."""
    if not (is_terminal and _status.is_terminal):
        yield
        return
    with _status.lock:
        _status.erase()
        yield
        _status.is_open = bytes(data[-1:]) != b"\n"
