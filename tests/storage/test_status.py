"""The status line: below what is printed, trimmed to the terminal, gone in the end, silent where it would be noise."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from helpers.paths import ROOT

from searchr1_mini.core import progress
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.pages.report import write_report
from searchr1_mini.run.training import train
from searchr1_mini.storage import status

ERASE = "\r\x1b[2K"
PRINTING = """
from searchr1_mini.options.entry import begin
begin()
import sys
from searchr1_mini.core import progress
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.outcome import run_command
from searchr1_mini.storage import status

def command():
    print("one")
    with status.phase("a \x1b[31m name"):
        pass
    with status.phase("counting the questions of a long, long corpus"):
        progress.tell("questions", 3, 9)
        print("two", end="", flush=True)
        with status.phase("behind an open line"):
            print(" three")
        print("a warning", file=sys.stderr)
        with status.phase("inner"):
            status.say_left(75)
    print("four")
run_command(command)
"""


def on_terminal(script: str, columns: int, is_good: bool = True) -> str:
    """What a script writes to a terminal of that width."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.environ.pop("COLUMNS", None)
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.execv(sys.executable, [sys.executable, "-c", script])
    written = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            data = b""
        if not data:
            break
        written += data
    assert (os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0) == is_good, written
    return written.decode().replace("\r\n", "\n")


def shown(written: str) -> str:
    """What stands on the terminal in the end, where a line may have been drawn and erased many times."""
    return "\n".join(line.rsplit(ERASE, 1)[-1] for line in written.split("\n"))


def drawn(written: str) -> list[str]:
    return [line for part in written.split("\n") for line in part.split(ERASE)[1:] if line]


def test_what_is_printed_stands_alone_and_the_line_is_gone():
    written = on_terminal(PRINTING, 100)
    assert shown(written) == "one\ntwo three\na warning\nfour\n"
    assert "starting, 00:00" in drawn(written)
    assert any(line.startswith("counting the questions of a long, long corpus, 0") for line in drawn(written))
    assert any("corpus: inner, 0" in line for line in drawn(written))
    assert any(line.startswith(r"a \x1b[31m name, 0") for line in drawn(written))
    assert not any("behind an open line" in line for line in drawn(written))


def test_no_line_is_left_behind_by_help_or_a_command_that_fails():
    for ends in ("raise SystemExit(1)", "raise UserError('no')", "1 / 0"):
        script = PRINTING.replace('    print("one")', f"    {ends}")
        last = shown(on_terminal(script, 60, is_good=False)).split("\n")[-1]
        assert last == "", (ends, last)


def test_the_line_is_trimmed_to_the_terminal():
    lines = drawn(on_terminal(PRINTING, 24))
    assert max(map(len, lines)) == 23 and "counting the questions " in lines


def test_a_log_holds_what_is_printed_and_no_quick_status():
    done = subprocess.run([sys.executable, "-c", PRINTING], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("one\ntwo three\nfour\n", "a warning\n")


def test_it_tells_how_far_the_work_is_and_what_is_left():
    line = status._Status()
    line.hear("rollouts", 12, 48, "410 tokens/s")
    line.phases = [status._Phase("step 1/24"), status._Phase("again")]
    line.left = (75.0, status.time.monotonic())
    text = line.text(line.phases[-1])
    assert text.startswith("step 1/24: again: rollouts 12/48, 410 tokens/s, 00:00, 01:1") and text.endswith(" left")


def test_a_step_of_several_updates_tells_which_is_at_hand(tmp_path, monkeypatch, capsys):
    """From the optimizer of a real step to the line; the ratios after the updates belong to none of them."""
    told = []

    def hear(*what) -> None:
        status._status.hear(*what)
        told.append((status._status.phases[-1].name, status._status.part))

    monkeypatch.setattr(progress, "_listeners", [hear])
    small = {"steps": 1, "questions_per_step": 2, "group_size": 2, "eval_questions": 2, "tensorboard": False}
    options = small | {"mini_batches": 2, "drop_zero_variance": False, "entropy_coef": 0.01}  # there is an update
    train(resolve(make(TrainConfig, output_dir=str(tmp_path / "run"), **options)), write_report)
    parts = [part for _, part in told]
    assert parts.count("update 1/2: micro-batches 0/1") == parts.count("update 2/2: micro-batches 0/1") == 1
    assert ("after the updates", "micro-batches 0/1") in told


def test_a_single_update_needs_no_number():
    line = status._Status()
    for n_updates, wanted in ((1, "micro-batches 0/3"), (8, "update 1/8: micro-batches 0/3")):
        line.hear("updates", 0, n_updates, "")
        line.hear("micro-batches", 0, 3, "")
        assert line.part == wanted
    line.forget_part()
    line.hear("micro-batches", 0, 2, "")
    assert line.part == "micro-batches 0/2"
