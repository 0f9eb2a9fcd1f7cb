"""Checkpoints at the real boundary: kill -9, a full disk, flipped bits, and a resume that changes nothing."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.files import write_lines
from helpers.sessions import session_of

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.evaluation.plan import chosen_checkpoint
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.run import opening
from searchr1_mini.run.opening import open_run
from searchr1_mini.storage import commit
from searchr1_mini.storage.checkpoint import (
    best_checkpoint,
    checkpoint_step,
    is_full_disk,
    is_whole,
    latest_checkpoint,
    prepare_run_dir,
    prune_checkpoints,
    save_checkpoint,
)
from searchr1_mini.storage.files import read_jsonl
from searchr1_mini.storage.training_state import capture_rng, read_tensors, restore_rng

MEASURED = {"n": 4, "em": 0.25, "searches": 1.0, "response_tokens": 9.0, "by_source": {}}


def write_some(folder, size=1000):
    (folder / "model").mkdir()
    (folder / "model" / "adapter.bin").write_bytes(bytes(size))
    (folder / "state.pt").write_bytes(b"x" * size)


def steps(run_dir):
    return [checkpoint_step(path) for path in sorted((run_dir / "checkpoints").glob("step-*"))]


def test_the_newest_checkpoint_is_found_and_old_ones_go(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, write_some)
    assert checkpoint_step(latest_checkpoint(tmp_path)) == 15
    prune_checkpoints(tmp_path, keep=2)
    assert steps(tmp_path) == [10, 15]


def test_the_best_checkpoint_stays_and_is_found(tmp_path):
    """Of equal scores the newest; a step without an evaluation has none."""
    assert best_checkpoint(tmp_path) is None
    write_lines(tmp_path / "metrics.jsonl", [{"step": s, "eval/em": em} for s, em in ((5, 0.7), (10, 0.7), (20, 0.6))])
    for step in (5, 10, 15, 20, 25):
        save_checkpoint(tmp_path, step, write_some)
    prune_checkpoints(tmp_path, keep=2)
    assert steps(tmp_path) == [10, 20, 25]
    assert checkpoint_step(best_checkpoint(tmp_path)) == 10
    assert chosen_checkpoint(EvalConfig(checkpoint="best"), tmp_path) == best_checkpoint(tmp_path)
    with pytest.raises(UserError, match="give the number of a step, or best"):
        chosen_checkpoint(EvalConfig(checkpoint="last"), tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_skipped_and_a_good_one_kept(tmp_path, damage, capsys):
    for step in (5, 10):
        save_checkpoint(tmp_path, step, write_some)
    newest = tmp_path / "checkpoints" / "step-000010"
    victim = newest / ("manifest.json" if damage == "manifest" else "model/adapter.bin")
    content = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "truncate":
        victim.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    assert checkpoint_step(latest_checkpoint(tmp_path)) == 5
    assert "step-000010 is damaged" in capsys.readouterr().err
    prune_checkpoints(tmp_path, keep=1)
    assert is_whole(tmp_path / "checkpoints" / "step-000005")


def test_kill_9_in_the_midst_of_saving_never_tears_a_checkpoint(tmp_path):
    """A child saves one checkpoint after another and is killed at a random moment, several times over."""
    child = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from searchr1_mini.storage.checkpoint import save_checkpoint

        def write_files(folder):
            for name in ("a", "b", "c"):
                (folder / name).write_bytes(bytes(200_000))
            print("writing", flush=True)

        first = int(sys.argv[2])
        for step in range(first, first + 500):
            save_checkpoint(Path(sys.argv[1]), step, write_files)
        """
    )
    rng, last = random.Random(0), 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", child, str(tmp_path), str(last + 1)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(rng.randint(1, 6)):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        newest = latest_checkpoint(tmp_path)
        if newest is not None:
            assert {path.name for path in newest.iterdir()} == {"a", "b", "c", "manifest.json"}
            assert checkpoint_step(newest) >= last
            last = checkpoint_step(newest)
    assert last > 0


def test_a_full_disk_is_told_and_leaves_the_earlier_checkpoint(tmp_path):
    """RLIMIT_FSIZE makes the system refuse the write, as a full disk does."""
    child = textwrap.dedent(
        """
        import resource, signal, sys
        import torch
        from pathlib import Path
        from searchr1_mini.storage.checkpoint import latest_checkpoint, save_checkpoint
        from searchr1_mini.core.errors import UserError

        run_dir = Path(sys.argv[1])
        save_checkpoint(run_dir, 1, lambda folder: torch.save(torch.zeros(10), folder / "x.pt"))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save_checkpoint(run_dir, 2, lambda folder: torch.save(torch.zeros(100_000), folder / "x.pt"))
        except UserError as error:
            print(error)
        print(latest_checkpoint(run_dir).name, sorted(p.name for p in (run_dir / "checkpoints").iterdir()))
        """
    )
    out = subprocess.run([sys.executable, "-c", child, str(tmp_path)], capture_output=True, text=True)
    assert "the disk is full" in out.stdout and "--resume" in out.stdout, out.stderr
    assert "step-000001 ['step-000001']" in out.stdout


def new_training():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    return layer, optimizer, torch.amp.GradScaler("cpu", enabled=False)


def take_step(layer, optimizer):
    layer(torch.randn(4, 3)).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_resumed_optimizer_takes_bit_equal_steps(tmp_path):
    layer, optimizer, scaler = new_training()
    for _ in range(3):
        take_step(layer, optimizer)
    weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "rng": capture_rng()}
    torch.save(state, tmp_path / "state.pt")
    for _ in range(3):
        take_step(layer, optimizer)
    other, optimizer, scaler = new_training()
    other.load_state_dict(weights)
    torch.randn(100)
    state = read_tensors(tmp_path / "state.pt")
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    restore_rng(state["rng"])
    for _ in range(3):
        take_step(other, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_a_folder_with_another_run_is_refused(tmp_path):
    config = {"model": "tiny", "seed": 0}
    prepare_run_dir(tmp_path / "a", False, config, ["model"])
    with pytest.raises(UserError, match="not empty"):
        prepare_run_dir(tmp_path / "a", False, config, ["model"])
    prepare_run_dir(tmp_path / "a", True, config | {"seed": 1}, ["model"])
    with pytest.raises(UserError, match="has seed 0, not 1"):
        prepare_run_dir(tmp_path / "a", True, config | {"seed": 1}, ["model", "seed"])
    with pytest.raises(UserError, match="holds no run"):
        prepare_run_dir(tmp_path / "b", True, config, ["model"])


def test_a_run_begins_where_there_is_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    run = session_of(tmp_path / "run")
    assert json.loads((run.folder / "config.json").read_text())["git_commit"] is None


def test_a_commit_says_whether_the_code_was_changed_since(tmp_path, monkeypatch):
    package = tmp_path / "searchr1_mini"
    (package / "storage").mkdir(parents=True)
    (package / "loss.py").write_text("COEF = 1\n")
    monkeypatch.setattr(commit, "__file__", str(package / "storage" / "commit.py"))
    assert commit.git_commit() is None
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = commit.git_commit()
    (tmp_path / "notes.md").write_text("beside the package")
    assert commit.git_commit() == clean and len(clean) == 40 and commit.short(clean) == clean[:9]
    (package / "loss.py").write_text("COEF = 2\n")
    assert commit.git_commit() == clean + "-dirty" and commit.short(clean + "-dirty") == clean[:9] + "-dirty"


def test_every_commit_that_a_run_is_resumed_at_is_kept(tmp_path, monkeypatch):
    """The rest of it was trained by other code than its config.json names."""
    monkeypatch.setattr(opening, "git_commit", lambda: "a" * 40)
    run = session_of(tmp_path / "run")
    assert commit.trained_at(run.folder) == ["a" * 40] and not (run.folder / commit.RESUMED).exists()
    for resumed_at in ("a" * 40, "b" * 40, None, "b" * 40):
        monkeypatch.setattr(opening, "git_commit", lambda at=resumed_at: at)
        open_run(with_options(run.config, resume=True)).tracker.__exit__()
    assert commit.trained_at(run.folder) == ["a" * 40, "b" * 40, None]
    assert json.loads((run.folder / "config.json").read_text())["git_commit"] == "a" * 40
    write_lines(tmp_path / "config.json", [{"git_commit": "0" * 40}])
    assert commit.all_trained_at([tmp_path, run.folder]) == [None, "0" * 40, "a" * 40, "b" * 40]
    (run.folder / commit.RESUMED).write_text('{"commits": [7]}')
    with pytest.raises(UserError, match=r"resumed_at\.json is damaged"):
        commit.trained_at(run.folder)


def test_the_seconds_of_all_processes_of_a_run_are_counted(tmp_path):
    run = session_of(tmp_path / "run")
    run.evaluations.before, run.clock.earlier_seconds = MEASURED, 1000.0
    run.save(1)
    assert 1000 < open_run(with_options(run.config, resume=True)).clock.total_seconds < 2000


def test_a_resumed_run_knows_all_that_it_knew(tmp_path):
    """What is counted over steps goes on: else two failures, a stop and two more would never be four in a row."""
    run = session_of(tmp_path / "run", max_skipped_updates=4)
    optimizer, evaluations = run.optimizer, run.evaluations
    optimizer.updates, optimizer.skipped_in_a_row, optimizer.micro_batches.tokens = 7, 2, 99
    run.clock.train_seconds, evaluations.before, evaluations.at_step = 12.5, MEASURED, 2
    segments = [Segment("prompt", [1], text="Q"), Segment("policy", [2], [-0.5], "A")]
    aside = Segment("policy", [3], [-1.0])
    evaluations.samples_before = [
        Trajectory("q", segments, "turns", None, ["a"], ["b"], [["c"]], [aside], invalid_actions=3)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "em": 0.5}}\n' for n in (1, 2, 3, 4)))
    run.save(3)
    again = open_run(with_options(run.config, resume=True))
    assert (again.first_step, again.whole_step, again.whole_updates, again.clock.train_seconds) == (4, 3, 7, 12.5)
    assert (again.optimizer.updates, again.optimizer.skipped_in_a_row) == (7, 2)
    assert again.optimizer.micro_batches.tokens == 99
    assert again.evaluations.state_dict() == evaluations.state_dict()
    assert [row["step"] for row in read_jsonl(run.folder / "metrics.jsonl")] == [1, 2, 3]


def test_a_disk_whose_folder_is_not_there_is_not_called_full(tmp_path):
    assert not is_full_disk(PermissionError("no"), tmp_path / "nowhere")
    assert is_full_disk(RuntimeError("file write failed"), tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc, which has no room and is not full")
def test_an_errors_own_number_tells_whether_the_disk_is_full():
    none = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    assert not is_full_disk(none, Path("/proc")) and is_full_disk(RuntimeError("odd"), Path("/proc"))
    assert is_full_disk(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Path("/"))
