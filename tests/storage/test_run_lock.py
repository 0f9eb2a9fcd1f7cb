"""One process a run: a second one is told who holds it, a killed one frees it, and what it left is swept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.sessions import SMALL

from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.export import whole as whole_export
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_metrics
from searchr1_mini.storage.lock import aside_folder, only_one

HOLD = """
import sys
from pathlib import Path
from searchr1_mini.storage.lock import only_one
with only_one(Path(sys.argv[1]), ""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_which_one_holds_the_folder(tmp_path, holder):
    told = rf"in use by process {holder.pid} on .*; wait for it to end, or go away"
    with pytest.raises(UserError, match=told), only_one(tmp_path, "go away"):
        pass
    holder.kill()
    holder.wait()
    with only_one(tmp_path, "go away"):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("lock") / "run"
    config = resolve(make(TrainConfig, **SMALL, steps=1, output_dir=str(folder)))
    train(config)
    return config


def test_a_run_that_is_being_trained_is_not_resumed_by_another(whole):
    """And nothing of it is touched; once it is free, it goes on."""
    folder = Path(whole.run.output_dir)
    before = (folder / "metrics.jsonl").read_bytes()
    with only_one(folder, ""), pytest.raises(UserError, match="is in use by"):
        train(with_options(whole, resume=True, steps=2))
    assert (folder / "metrics.jsonl").read_bytes() == before
    train(with_options(whole, resume=True, steps=2))
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]


def test_two_evaluations_do_not_write_into_one_folder(tmp_path):
    with only_one(tmp_path, ""), pytest.raises(UserError, match=r"is in use by process .* name another --output-dir"):
        evaluate_command(EvalConfig(model="tiny", limit=2, output_dir=str(tmp_path)))


def test_two_exports_do_not_fill_one_folder(tmp_path):
    """The second is told before it begins, and nothing of the lock stays."""
    with whole_export(tmp_path / "out") as aside:
        (aside / "mine").touch()
        told = r"out is in use by process .* name another --output-dir"
        with pytest.raises(UserError, match=told), whole_export(tmp_path / "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_file_system_without_locks_is_told_and_gone_on_with(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with only_one(tmp_path, ""):
        pass
    assert "cannot be locked ([Errno 37] No locks available)" in capsys.readouterr().err


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_dead_processes_wrote_aside_is_swept(tmp_path):
    dead = dead_pid()
    names = {f".summary.json.{dead}": False, f".summary.json.{os.getpid()}": True, "metrics.jsonl": True,
             ".hidden": True, f"notes.{dead}": True}  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    rollouts = tmp_path / "rollouts"
    rollouts.mkdir()
    (rollouts / f".step-000001.jsonl.{dead}").touch()
    with only_one(tmp_path, ""):
        assert {name: (tmp_path / name).exists() for name in names} == names
        assert not list(rollouts.iterdir())


def test_the_next_process_removes_a_dead_ones_temporary_folder(tmp_path):
    with aside_folder(tmp_path, "making") as mine:
        left = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{dead_pid()}-")
        left.mkdir()
        (left / "half").touch()
        with aside_folder(tmp_path, "making"):
            assert mine.is_dir() and not left.exists()
    assert not mine.exists()
