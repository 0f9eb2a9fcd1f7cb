"""All commands behind one: what it lists, what it hands on, and the newest run by the name of `latest`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module

import pytest
from helpers.paths import ROOT

from searchr1_mini import __version__
from searchr1_mini.__main__ import COMMANDS
from searchr1_mini.classroom import ClassroomConfig
from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluate import output_folder
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.paths import folders_first
from searchr1_mini.options.resolve import resolve
from searchr1_mini.train import banner


def said(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "searchr1_mini", *words], cwd=ROOT, capture_output=True, text=True)


def test_it_lists_every_command_and_each_is_there():
    listed = said()
    assert listed.returncode == 0 and listed.stdout == said("--help").stdout
    for name, (module, _, does) in COMMANDS.items():
        assert f"{name} " in listed.stdout and does in listed.stdout
        assert callable(import_module(f"searchr1_mini.{module}").main)
    assert said("--version").stdout == f"searchr1_mini {__version__}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evl",), "there is no command 'evl'; did you mean eval?"),
        (("eval", "no/run"), "no/run holds no run"),
        (("chat", "no/run"), "no/run holds no run"),
        (("chat", "no/run", "--web"), "no/run holds no run"),
        (("ask", "--run", "no/run", "who?"), "name the question first"),
        (("report", "no/run"), "no/run is not the folder of a run"),
        (("train", "--model", "./nowhere"), "there is no folder ./nowhere"),
    ],
)
def test_the_words_reach_the_command(words, told):
    done = said(*words)
    assert done.returncode == 2 and done.stdout == "" and told in done.stderr


def test_latest_is_the_run_that_was_begun_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run below runs/"):
        parse(EvalConfig, "eval.py", "", ["--run", "latest"])
    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").touch()
        os.utime(tmp_path / "runs" / name / "config.json", (10_000 - age, 10_000 - age))
    (tmp_path / "runs" / "no run").mkdir()
    new = os.path.join("runs", "new")
    assert parse(EvalConfig, "eval.py", "", ["--run", "latest"]).run == new
    assert parse(EvalConfig, "eval.py", "", ["--run", "runs/old, latest"]).run == f"runs/old,{new}"
    assert parse(EvalConfig, "eval.py", "", ["--run", "runs/latest,a"]).run == "runs/latest,a"
    assert parse(ClassroomConfig, "classroom", "", folders_first(["latest"], "--folders")).folders == new


def test_one_step_is_told_as_one():
    told = [banner(resolve(make(TrainConfig, steps=steps, cold_start=steps, output_dir="x"))) for steps in (1, 2)]
    assert "a cold start on 1 episode, then 1 step of search-r1 by GRPO on world, in x" in told[0]
    assert "a cold start on 2 episodes, then 2 steps of search-r1" in told[1]


def test_an_evaluation_lies_in_its_run_or_beside_all_runs():
    assert str(output_folder(EvalConfig(run="runs/a"))) == os.path.join("runs", "a", "evaluation")
    assert str(output_folder(EvalConfig(run="runs/a,runs/b"))) == os.path.join("evaluations", "runs-a-runs-b")
    assert str(output_folder(EvalConfig(model="tiny"))) == os.path.join("evaluations", "tiny")
    assert str(output_folder(EvalConfig(run="runs/a", output_dir="x"))) == "x"
