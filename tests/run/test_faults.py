"""Faults of disks and files, through train and eval: one sentence, exit code 2, and the last good state goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.faults import ADAPTER, config_of, evaluation_of, sentence_of, sign
from helpers.paths import ROOT

from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.evaluation import cells
from searchr1_mini.export import ExportConfig, export_run
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.pages import report
from searchr1_mini.pages.report import write_report
from searchr1_mini.run import run as run_module
from searchr1_mini.run.log import Tracker
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.run import Run
from searchr1_mini.run.training import train
from searchr1_mini.storage import checkpoint
from searchr1_mini.storage.files import append_jsonl, read_jsonl, read_metrics


@contextmanager
def mounted(folder: Path, size: int):
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    """A disk of its own of 6 MiB."""
    with mounted(tmp_path / "disk", 6 * 2**20) as folder:
        yield folder


def fill(disk: Path, leaving: int = 0) -> None:
    """Takes all of a disk but some bytes, rounded down to pages."""
    with (disk / "filler").open("wb", buffering=0) as file:
        file.write(bytes(max(shutil.disk_usage(disk).free - leaving, 0)))


def remount(disk: Path, mode: str) -> None:
    """Makes a disk read-only (ro), by a second mount on top of it, or writable again (rw).

    The first mount cannot be made read-only while any file of it is open for writing, by whichever process.
    """
    if mode == "ro":
        subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
    elif os.statvfs(disk).f_flag & os.ST_RDONLY:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def just_before(monkeypatch, owner, name: str, happen, is_due=lambda *_: True) -> None:
    """Has something happen to the disk right before a function of the program runs."""
    real = getattr(owner, name)

    def wrapped(*arguments):
        if is_due(*arguments):
            happen()
        return real(*arguments)

    monkeypatch.setattr(owner, name, wrapped)


BULKY = {f"key {number}": 0.0 for number in range(400)}  # a row of metrics that needs a page of its own
MEETS = {  # what the disk fails -> owner and name of the function that meets it, and whether it is due
    "rollouts": (run_module, "write_rollouts", lambda _run, step, _rows: step == 2),
    "metrics": (Tracker, "log", lambda _self, step, _metrics: step == 2),
    "checkpoint": (Run, "save", lambda _run, step: step == 2),
    "report": (report, "write_report", lambda _run: True),
}


def trained(config) -> Path:
    return train(config, lambda folder: report.write_report(folder))


def test_a_disk_that_fails_costs_nothing_that_was_saved(disk, whole_run, capsys, monkeypatch):
    """Full at one file after another, read-only at one; each time a sentence, in the end the undisturbed weights."""
    config, saved = config_of(disk / "run"), 0
    full, read_only = (lambda: fill(disk), "the disk is full"), (lambda: remount(disk, "ro"), "Read-only")
    for file in MEETS:
        for happen, words in (full, read_only) if file == "checkpoint" else (full,):
            with monkeypatch.context() as patch:
                if file == "metrics":
                    patch.setattr(Tracker, "log", lambda self, step, row, log=Tracker.log: log(self, step, row | BULKY))
                just_before(patch, *MEETS[file][:2], happen, MEETS[file][2])
                told = sentence_of(capsys, trained, with_options(config, resume=saved > 0))
            assert words in told and "--resume" in told, file
            assert [row["step"] for row in read_metrics(disk / "run" / "metrics.jsonl")] in ([1], [1, 2])
            saved = checkpoint.checkpoint_step(checkpoint.latest_checkpoint(disk / "run"))
            assert saved == (2 if file == "report" else 1)
            remount(disk, "rw")
            (disk / "filler").unlink(missing_ok=True)
    trained(with_options(config, resume=True))
    assert [row["step"] for row in read_metrics(disk / "run" / "metrics.jsonl")] == [1, 2]
    assert (disk / "run" / "report.html").is_file()
    last = Path("checkpoints") / "step-000002" / ADAPTER
    assert (disk / "run" / last).read_bytes() == (whole_run / last).read_bytes()


def test_a_checkpoint_needs_all_of_its_room(disk, capsys):
    """The disk is full at another byte each time: in the adapter, the tokenizer, the optimizer, the manifest."""
    run = open_run(config_of(disk / "run"))
    first = run.save(1)
    size = sum(path.stat().st_size for path in first.rglob("*") if path.is_file())
    for part in range(12):
        fill(disk, leaving=size * part // 12)
        with pytest.raises(UserError, match=r"the disk is full: checkpoint .*step-000002 was not saved"):
            run.save(2)
        assert [path.name for path in first.parent.iterdir()] == ["step-000001"] and checkpoint.is_whole(first)
    (disk / "filler").unlink()
    assert checkpoint.is_whole(run.save(2))


def test_lines_are_whole_on_a_full_disk_and_after_a_power_cut(disk):
    path = disk / "metrics.jsonl"
    row = {"step": 1, "words": "w" * 1000}
    fill(disk, leaving=20_000)
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            append_jsonl(path, [row])
    lines = path.read_text().splitlines(keepends=True)
    assert 10 < len(lines) < 20 and all(json.loads(line) == row and line.endswith("\n") for line in lines)
    (disk / "filler").unlink()
    path.write_text("".join(lines) + '{"step": 2, "wo')
    append_jsonl(path, [row, row])
    assert read_jsonl(path) == [row] * (len(lines) + 2)


def test_lines_are_whole_after_kill_9(tmp_path):
    """A child appends long lines and is killed in the midst, again and again; the next one fixes what it finds."""
    code = (
        "import sys; from pathlib import Path; from searchr1_mini.storage.files import append_jsonl\n"
        "while True: append_jsonl(Path(sys.argv[1]), [{'step': 1, 'words': 'w' * 3_000_000}]); print(flush=True)"
    )
    path, n_told = tmp_path / "metrics.jsonl", 0
    for n_lines in (1, 4, 2, 5):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
        n_told += len([child.stdout.readline() for _ in range(n_lines)])
        child.kill()
        child.communicate()
    append_jsonl(path, [])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) >= n_told and all(len(row["words"]) == 3_000_000 for row in rows)


def test_a_full_disk_costs_no_finished_chunk_of_an_evaluation(disk, capsys, monkeypatch):
    config = EvalConfig(model="tiny", methods="direct", limit=6, output_dir=str(disk / "eval"))
    with monkeypatch.context() as patch:
        patch.setattr(cells, "CHUNK", 2)
        just_before(patch, cells, "append_jsonl", lambda: fill(disk), lambda part, _rows: part.stat().st_size > 0)
        assert "the disk is full" in sentence_of(capsys, evaluate_command, config)
        (disk / "filler").unlink()
        (part,) = (disk / "eval" / "cells").iterdir()
        assert part.suffix == ".part" and len(read_jsonl(part)) == 2
    evaluate_command(config)
    assert len(read_jsonl(part.with_suffix(".jsonl"))) == 6 and not part.exists()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_goes_on_without_tensorboard_on_a_full_disk(run, capfd):
    """Full from its first byte, or from the second page that TensorBoard needs, which its own thread writes."""
    for size, steps in ((4096, 3), (8192, 7)):
        with mounted(run / "tensorboard", size) as folder:
            (folder / "filler").write_bytes(bytes(4096))
            train(with_options(config_of(run), steps=steps, resume=True, tensorboard=True))
        told = capfd.readouterr().err
        assert told.count("TensorBoard is left out") == 1 and "Traceback" not in told
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(1, 8))


def test_an_index_is_refused_room_before_it_is_written(disk):
    """Without the room taken first, writing to the mapped file would end the process by SIGBUS."""
    code = (
        "import sys; from pathlib import Path; from searchr1_mini.core.errors import UserError;"
        "from searchr1_mini.retrievers.index import build_store; from searchr1_mini.core.retrieval import Passage\n"
        "words = [f'w{n}' for n in range(400)]\n"
        "passages = (Passage(str(n), f't{n}', ' '.join(words[:300 + n])) for n in range(100))\n"
        "try: build_store(passages, Path(sys.argv[1]))\n"
        "except UserError as error: print(error)"
    )
    fill(disk, leaving=700_000)  # passages and counts take 610 kB, the scores 290 kB more
    out = subprocess.run([sys.executable, "-c", code, str(disk / "index")], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0 and "No space left" in out.stdout and "$SEARCHR1_CACHE" in out.stdout, out.stderr
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("kind", ["read-only", "file in the way", "below a file", "no place for files"])
def test_an_output_folder_that_cannot_be_written_is_told(kind, tmp_path, request, capsys):
    (tmp_path / "file").write_text("")
    folder = {"file in the way": tmp_path / "file", "below a file": tmp_path / "file" / "run"}.get(kind)
    if kind == "read-only":
        folder = request.getfixturevalue("disk") / "run"
        remount(folder.parent, "ro")
    folder = folder or Path("/proc/run")
    for command, config in (
        (train, config_of(folder)),
        (evaluate_command, EvalConfig(model="tiny", methods="direct", limit=2, output_dir=str(folder))),
    ):
        told = sentence_of(capsys, command, config)
        assert f"{folder} cannot be written" in told and "--output-dir" in told
    if kind == "read-only":
        remount(folder.parent, "rw")


def test_a_run_that_was_killed_as_it_began_begins_again(tmp_path):
    (tmp_path / ".config.json.4711").write_text("{")
    checkpoint.prepare_run_dir(tmp_path, False, {"model": "tiny"}, [])
    assert json.loads((tmp_path / "config.json").read_text()) == {"model": "tiny"}


@pytest.mark.parametrize("content", [b"", b'{"model": "ti', b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_config_of_a_run_is_told(run, content, capsys):
    (run / "config.json").write_bytes(content)
    commands = [(evaluate_command, evaluation_of(run)), (export_run, ExportConfig(run=str(run), what="adapter"))]
    if content != b"{}":
        commands.append((train, with_options(config_of(run), resume=True)))
    for command, config in commands:
        told = sentence_of(capsys, command, config)
        assert f"{run / 'config.json'} is damaged" in told and "put back a copy" in told


@pytest.mark.parametrize("line", [b"[]", b"\xff{", b'{"step": 1'])
def test_a_damaged_line_of_metrics_is_told(run, line, capsys):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    number = (run / "metrics.jsonl").read_bytes().count(b"\n")
    told = sentence_of(capsys, train, with_options(config_of(run), resume=True))
    assert f"line {number} of {run / 'metrics.jsonl'} is damaged" in told and "remove it" in told


def test_a_damaged_summary_harms_nothing_but_itself(run, capsys):
    (run / "summary.json").write_bytes(b'{"before"')
    assert "summary.json is damaged" in sentence_of(capsys, write_report, run)
    train(with_options(config_of(run), resume=True))
    assert "after" in json.loads((run / "summary.json").read_text())


def test_the_checkpoint_before_a_damaged_one_is_taken(run, whole_run, capsys):
    newest = run / "checkpoints" / "step-000002"
    (newest / ADAPTER).write_bytes(b"")
    train(with_options(config_of(run), resume=True))
    assert "step-000002 is damaged and passed over" in capsys.readouterr().err
    assert (newest / ADAPTER).read_bytes() == (whole_run / "checkpoints" / "step-000002" / ADAPTER).read_bytes()


def test_a_run_with_only_damaged_checkpoints_is_left_alone(run, capsys):
    for path in (run / "checkpoints").iterdir():
        (path / "manifest.json").write_text("{}")
    before = (run / "metrics.jsonl").read_bytes()
    assert "every checkpoint" in sentence_of(capsys, train, with_options(config_of(run), resume=True))
    assert "no whole checkpoint" in sentence_of(capsys, evaluate_command, evaluation_of(run))
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("other", ["no scaler", "more groups", "no tensors", "no updates"])
def test_a_checkpoint_of_another_version_is_told(run, other, capsys):
    newest = run / "checkpoints" / "step-000002"
    if other == "no updates":
        progress = json.loads((newest / "progress.json").read_text())
        (newest / "progress.json").write_text(json.dumps({"step": progress["step"]}))
    else:
        state = torch.load(newest / "state.pt", weights_only=True)
        state["optimizer"]["param_groups"] *= 2 if other == "more groups" else 1
        state.pop("scaler" if other == "no scaler" else "x", None)
        torch.save({"state": Path("x")} if other == "no tensors" else state, newest / "state.pt")
    sign(newest)
    told = sentence_of(capsys, train, with_options(config_of(run), resume=True))
    assert str(newest) in told and "of another form than this version writes" in told
    evaluate_command(evaluation_of(run))


def test_damaged_results_of_an_evaluation_are_answered_again(run, capsys, monkeypatch):
    monkeypatch.setattr(cells, "CHUNK", 2)
    config = replace(evaluation_of(run), limit=6)
    evaluate_command(config)
    (cell,) = (Path(config.output_dir) / "cells").iterdir()
    whole = cell.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (b"".join(lines[:4]), b"".join([*lines[:2], b"{}\n", *lines[3:]]), b"".join(lines[1:]), whole[:-9]):
        cell.write_bytes(damaged)
        evaluate_command(config)
        assert f"{cell} is damaged or cut" in capsys.readouterr().err
        assert cell.read_bytes() == whole


def test_a_full_disk_is_told_of_a_copied_folder_too(capsys):
    """`shutil.copytree` tells the system's error in words alone."""

    def copy():
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    assert "the disk is full" in sentence_of(capsys, copy)
