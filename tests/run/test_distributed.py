"""Data parallel training in real processes (gloo, started by torchrun) against one process with the same batch."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.programs import Program
from safetensors.torch import load_file

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import joined_by_step, read_jsonl

SMALL = {
    "steps": 3,
    "questions_per_step": 4,
    "group_size": 4,
    "eval_questions": 5,
    "learning_rate": 1e-4,
}
SMALL |= {"save_every": 1, "keep_checkpoints": 3, "eval_every": 3, "tensorboard": False, "world_difficulty": "infobox"}
RATE_OF_CRITIC = {"grpo": (), "ppo": ("--critic-learning-rate", "1e-5")}


def words_of(folder: Path, *flags: str, **changes) -> list[str]:
    """The command of a run in this folder, without `python`."""
    settings = {name: value for name, value in (SMALL | changes).items() if value not in (None, False)}
    values = {f"--{name.replace('_', '-')}": str(value) for name, value in settings.items()}
    words = [word for pair in values.items() for word in pair]
    return ["train.py", *words, "--no-tensorboard", "--output-dir", str(folder), *flags]


def torchrun(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def in_two_processes(*words: str) -> subprocess.CompletedProcess:
    """What torchrun does, but for what it says itself: the processes have torch imported already."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [Program(*words, environment={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    done = [rank.wait() for rank in ranks]
    out, err = ("".join(getattr(one, name) for one in done) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, max(one.returncode for one in done), out, err)


def in_one_process(folder: Path, algorithm: str, resume: bool = False) -> Path:
    critic = {"critic_learning_rate": 1e-5} if algorithm == "ppo" else {}
    return train(
        resolve(make(TrainConfig, **SMALL, **critic, output_dir=str(folder), algorithm=algorithm, resume=resume))
    )


@pytest.fixture(scope="module", params=["grpo", "ppo"])
def runs(request, tmp_path_factory) -> tuple[Path, Path]:
    """The same run in one process, and in two.

    Rates are low: Adam makes steps of the size of its rate even of gradients that are all rounding.
    """
    folder = tmp_path_factory.mktemp(request.param)
    words = words_of(folder / "two", "--algorithm", request.param, *RATE_OF_CRITIC[request.param])
    done = in_two_processes(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out questions") == 1  # the summary, printed once
    return in_one_process(folder / "one", request.param), folder / "two"


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = run / "checkpoints" / f"step-{step:06d}"
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_weights(one: Path, two: Path, step: int) -> None:
    ours, theirs = weights(one, step), weights(two, step)
    assert ours.keys() == theirs.keys() and ours
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5, msg=lambda text, name=name: name + text)


def test_two_processes_learn_what_one_does(runs):
    one, two = runs
    assert_same_weights(one, two, 3)
    changes = [(tensor - weights(one, 3)[name]).abs().max() for name, tensor in weights(one, 1).items()]
    assert max(changes) > 3e-5  # there was something to learn


def test_two_processes_sample_what_one_does_and_log_it_once(runs):
    for step in (1, 2, 3):
        ours, theirs = (
            [json.loads(line) for line in (run / "rollouts" / f"step-{step:06d}.jsonl").open()] for run in runs
        )
        assert len(ours) == len(theirs) == 16
        for row, other in zip(ours, theirs, strict=True):
            assert row["reward"] == other["reward"]
            assert [s["token_ids"] for s in row["segments"]] == [s["token_ids"] for s in other["segments"]]
    ours, theirs = (read_jsonl(run / "metrics.jsonl") for run in runs)
    assert [row["step"] for row in theirs] == [1, 2, 3, 3]  # the last is evaluated
    for row, other in zip(*map(joined_by_step, (ours, theirs)), strict=True):
        assert row.keys() == other.keys()
        for name in ("loss", "grad_norm", "entropy", "ratio_max", "reward"):
            assert row[name] == pytest.approx(other[name], abs=1e-5, rel=1e-3), name
    summaries = [json.loads((run / "summary.json").read_text())["after"]["by_source"] for run in runs]
    assert summaries[0] == summaries[1]


def test_two_processes_ask_a_judge_once_per_rollout(tmp_path):
    """A judge is dear, and says something else when asked again: all processes go by the one answer."""
    (tmp_path / "judge.py").write_text(
        "import pathlib, random\n"
        "def judged(trajectory, example):\n"
        "    paid = random.SystemRandom().random()\n"
        "    with pathlib.Path(__file__).with_name('paid').open('a') as file:\n"
        "        file.write(f'{paid}\\n')\n"
        "    return paid\n"
    )
    run = tmp_path / "run"
    done = in_two_processes(*words_of(run, "--reward", f"{tmp_path / 'judge.py'}:judged", steps=1, eval_every=1))
    assert done.returncode == 0, done.stderr
    paid = [float(line) for line in (tmp_path / "paid").read_text().splitlines()]
    logged = [row["reward"] for row in read_jsonl(run / "rollouts" / "step-000001.jsonl")]
    assert len(logged) == 16 and sorted(logged) == sorted(paid)


def test_a_run_of_two_processes_goes_on_in_one(runs, tmp_path):
    one, two = runs
    resumed = tmp_path / "resumed"
    shutil.copytree(two, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000003")
    in_one_process(resumed, json.loads((two / "config.json").read_text())["algorithm"], resume=True)
    assert_same_weights(one, resumed, 3)
    assert [row["step"] for row in read_jsonl(resumed / "metrics.jsonl")] == [1, 2, 3, 3]


def test_a_folder_in_use_is_said_by_every_process_and_ends_them(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    assert_told(torchrun(*words_of(tmp_path / "full")), "is not empty; add --resume")


def test_questions_that_are_not_there_are_said_by_every_process(tmp_path):
    flags = "--dataset", "hotpotqa", "--data-path", str(tmp_path / "none.json"), "--device", "cpu"
    done = in_two_processes(*words_of(tmp_path / "run", *flags, world_difficulty=None))
    assert_told(done, "there is no file")
    assert done.stderr.count("there is no file") == 2


def test_an_evaluation_is_not_done_twice(tmp_path):
    done = in_two_processes("eval.py", "--methods", "direct", "--limit", "2", "--output-dir", str(tmp_path / "out"))
    assert_told(done, "eval.py runs in one process, and 2 were started")
    assert not (tmp_path / "out").exists()


def assert_told(done: subprocess.CompletedProcess, sentence: str) -> None:
    assert done.returncode != 0
    assert sentence in done.stderr
    own = done.stderr.split("ChildFailedError")[0]
    assert "distributed.py" not in own and "processes.py" not in own
