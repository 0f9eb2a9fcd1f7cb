"""Entry points on hostile terminals: streams that are closed, full, ASCII or unread, and Ctrl-C at any time."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

from searchr1_mini.options.entry import Forgiving
from searchr1_mini.storage.files import read_metrics

ENTRIES = (
    ["train.py"], ["eval.py"],
    *(["-m", f"searchr1_mini.{name}"] for name in
      ("export", "report", "server", "retrieval_metrics", "preflight", "ablate", "make_questions", "pretrain",
       "classroom", "race")),
)  # fmt: skip
# what is imported, by whoever imports it first: the interrupt comes as `how` says, as a person's would by chance
INJECTED = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            {how}
sys.meta_path.insert(0, Interrupt())
"""
STATUS = re.compile(rb".+, \d+:\d\d")  # where a phase takes half a minute, as on a slow machine
RAISED, SENT = "raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIG{})"
TINY = (
    "--steps 2 --questions-per-step 1 --group-size 2 --mini-batches 1 --eval-questions 1 --max-new-tokens 3 "
    "--max-turns 1 --no-tensorboard --no-memory-check"
).split()


def started(words: list[str], folder: Path, injected: str = "", **options) -> subprocess.Popen:
    (folder / "sitecustomize.py").write_text(injected)
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path} | options.pop("env", {})
    closing = options.pop(
        "closing", ""
    )  # by a shell: a preexec_fn forks this process, with the threads of its libraries
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def interrupted(entries: list[list[str]], module: str, how: str, folder: Path) -> dict[str, tuple[int, bytes]]:
    """(exit code, stderr) of entry points that are interrupted as they import a module."""
    processes = {}
    for entry in entries:
        own = folder / entry[-1]
        own.mkdir()
        words = [*entry, *arguments_of(entry[-1], folder)]
        processes[entry[-1]] = started(words, own, INJECTED.format(name=module, how=how), stdout=subprocess.DEVNULL)
    return {name: (process.wait(300), process.stderr.read()) for name, process in processes.items()}


@pytest.mark.parametrize("how", [RAISED, SENT.format("INT"), SENT.format("TERM")], ids=["raised", "ctrl-c", "term"])
def test_an_interrupt_before_our_first_import_prints_one_line(tmp_path, how):
    """Of every entry point for Ctrl-C; the handler of SIGTERM is the same."""
    entries = ENTRIES[:: 4 if how != RAISED else 1]
    found = interrupted(entries, "searchr1_mini.core.errors", how, tmp_path)
    assert found == dict.fromkeys(found, (130, b"interrupted\n")) and len(found) == len(entries)


@pytest.mark.parametrize(
    ("how", "names"), [(RAISED, ("train.py", "searchr1_mini.pretrain")), (SENT.format("INT"), ("train.py", "eval.py"))]
)
def test_an_interrupt_while_torch_is_imported_is_one_line(tmp_path, how, names):
    found = interrupted([entry for entry in ENTRIES if entry[-1] in names], "torch", how, tmp_path)
    assert found == dict.fromkeys(names, (130, b"interrupted\n"))


def arguments_of(entry: str, folder: Path) -> list[str]:
    """Arguments with which an entry point comes to its heavy imports."""
    run = folder / "run"
    if not run.exists():
        from searchr1_mini.options.config import TrainConfig
        from searchr1_mini.options.nested import flat
        from searchr1_mini.options.resolve import resolve
        from searchr1_mini.storage.files import write_json_atomic

        run.mkdir()
        write_json_atomic(run / "config.json", flat(resolve(TrainConfig())))
        (run / "metrics.jsonl").touch()
    return {
        "searchr1_mini.export": [str(run)],
        "searchr1_mini.report": [str(run)],
        "searchr1_mini.ablate": ["topk", "--output-dir", str(folder / "study")],
        "searchr1_mini.race": ["--output-dir", str(folder / "race")],
        "searchr1_mini.classroom": [str(folder)],
        "searchr1_mini.pretrain": ["--output", str(folder / "base")],
        "train.py": ["--output-dir", str(folder / "new")],
    }.get(entry, [])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, int, bytes, bytes]]:
    """Trainings at the same time: (folder, exit code, stdout, stderr) on each terminal."""
    folder = tmp_path_factory.mktemp("terminals")
    full = open("/dev/full", "wb")  # noqa: SIM115
    terminals = {
        "ascii": {"env": {"PYTHONIOENCODING": "ascii"}},
        "all closed": {"closing": "<&- >&- 2>&-", "stdout": None, "stderr": None},
        "full": {"stdout": full},
        "unread": {},
    }
    processes = {}
    for name, options in terminals.items():
        (folder / name).mkdir()
        out = folder / name / "\u00e9\u4e2d\U0001f600"
        program = ["-m", "searchr1_mini", "train"] if name == "full" else ["train.py"]
        processes[name] = started([*program, *TINY, "--output-dir", str(out)], folder / name, **options)
    processes["unread"].stdout.close()
    processes["unread"].stdout = None
    found = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=300)
        found[name] = (folder / name / "\u00e9\u4e2d\U0001f600", process.returncode, out or b"", err or b"")
    full.close()
    return found


@pytest.mark.parametrize(("terminal", "code"), [("ascii", 0), ("all closed", 0), ("full", 2), ("unread", 141)])
def test_a_run_is_whole_whatever_becomes_of_its_output(runs, terminal, code):
    folder, returned, out, err = runs[terminal]
    assert b"Traceback" not in out + err, (out + err).decode()
    assert returned == code
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    assert all(
        (folder / name).is_file() for name in ("summary.json", "report.html", "checkpoints/step-000002/state.pt")
    )
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(
        path.name for path in runs["ascii"][0].iterdir() if path.is_file()
    )


def test_output_degrades_to_escapes_and_a_full_disk_is_told(runs):
    assert b"\\xe9\\u4e2d\\U0001f600" in runs["ascii"][2] and runs["ascii"][2].isascii()
    told = runs["full"][3].splitlines()
    assert told[-1].startswith(b"error: the output could not be written (No space left on device)")
    assert runs["unread"][3].count(b"interrupted") == 0


def test_a_runs_log_holds_its_command_and_what_was_printed(runs):
    folder, _, out, err = runs["ascii"]
    command, *lines = (folder / "train.log").read_bytes().splitlines()
    assert command.startswith(b"$ python") and b" train.py --steps 2" in command
    assert [line for line in out.splitlines() if line not in lines] == out.splitlines()[:2]
    assert not [line for line in err.splitlines() if not STATUS.fullmatch(line)]
    log = (runs["full"][0] / "train.log").read_bytes()
    assert b" -m searchr1_mini train --steps 2 " in log.splitlines()[0] and log.count(b"\nstep 2/2 ") == 1


NAMES_NOTHING = (
    "train.py --model ./nowhere", "train.py --dataset jsonl --data-path nowhere.jsonl", "train.py --init nowhere",
    "train.py --corpus nowhere --dataset nq", "train.py --resume --output-dir nowhere", "train.py --kl-coef -1",
    "train.py --demonstrations nowhere.jsonl --cold-start 5", "eval.py --run nowhere", "eval.py --model ./nowhere",
    "eval.py --datasets nowhere.jsonl", "eval.py --run nowhere --chat", "eval.py --methods nothing",
    "eval.py --adapter nowhere", "-m searchr1_mini.export nowhere", "-m searchr1_mini.report nowhere",
    "-m searchr1_mini.preflight --model ./nowhere", "-m searchr1_mini.server --corpus nowhere.jsonl",
    "-m searchr1_mini.pretrain --seed x", "-m searchr1_mini.ablate nothing", "-m searchr1_mini.classroom nowhere",
    "-m searchr1_mini.make_questions nowhere", "-m searchr1_mini.make_questions docs --model nope",
    "train.py --output-dir docs", "train.py --output-dir README.md/x", "train.py --model a/b/c",
    "train.py --eval-questions 5000", "eval.py --model tiny --host x", "eval.py --model tiny --output-dir README.md",
    "eval.py --model a/b/c", "-m searchr1_mini.retrieval_metrics --dataset nq --corpus nowhere",
    "-m searchr1_mini.race --seed 3", "-m searchr1_mini.race --reward nowhere.py:odd",
    "-m searchr1_mini.race --output-dir README.md", "-m searchr1_mini.ablate mask --output-dir README.md/x",
    "-m searchr1_mini.pretrain --output README.md", "train.py --output-dir /proc/x",
    "eval.py --model tiny --output-dir /proc/x", "-m searchr1_mini.ablate mask --output-dir /proc/x",
    "-m searchr1_mini.race --output-dir /proc/x", "-m searchr1_mini.pretrain --output /proc/x",
    "-m searchr1_mini.make_questions docs --model tiny --out /proc/x.jsonl",
)  # fmt: skip


def test_what_names_nothing_is_told_before_torch_is_imported(tmp_path):
    for command in NAMES_NOTHING:
        process = started(command.split(), tmp_path, INJECTED.format(name="torch", how="os._exit(99)"))
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (2, b"") and err.startswith(b"error: "), (command, err)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[-1])
def test_every_command_says_what_is_wrong_on_a_bad_terminal(tmp_path, entry):
    """Closed output, ASCII errors with characters that are none, and nobody who reads the help."""
    flag = {"searchr1_mini.ablate": "--model", "searchr1_mini.pretrain": "--init"}.get(entry[-1], "--\u00e9\u4e2d")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    closed = started([*entry, flag, "\u4e2d"], tmp_path, closing=">&-", stdout=None, env=ascii_only)
    _, err = closed.communicate(timeout=120)
    assert closed.returncode == 2 and b"Traceback" not in err and err.isascii()
    unread = started([*entry, "--help"], tmp_path)
    unread.stdout.close()
    assert b"Traceback" not in unread.stderr.read() and unread.wait(120) in (0, 141)


def test_a_stream_that_broke_is_quiet_from_then_on():
    read, write = os.pipe()
    os.close(read)
    stream = Forgiving(write, "w", closefd=True)
    assert stream.write(b"x") == 1 and stream.error.errno == errno.EPIPE
    assert stream.write(b"more") == 4
    stream.close()


@pytest.mark.parametrize(
    ("asked", "found"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["nothing", "another count", "a policy"],
)
def test_threads_wait_as_long_as_the_user_asks(asked, found):
    """The OpenMP runtime reads it as torch is loaded, so it is set before."""
    code = (
        "import os, sys; from searchr1_mini.options.entry import begin; begin();"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=kept | asked)
    assert done.stdout == f"{found} False\n", done.stderr
