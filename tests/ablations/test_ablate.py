"""Studies as one command: arms, seeds, resuming, the report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from safetensors.torch import load_file, save_file

from searchr1_mini import ablate as command
from searchr1_mini.ablate import arm_config, check_trained, main, take_over
from searchr1_mini.ablations import alike, side_by_side, studies
from searchr1_mini.ablations.findings import table
from searchr1_mini.ablations.studies import STUDIES, fitted
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import flat, get, make
from searchr1_mini.storage.commit import keep_commit
from searchr1_mini.storage.files import read_metrics, write_json_atomic


@pytest.fixture
def ablate(monkeypatch, capfd):
    """Runs a study on fewer questions, whose runs are forks of what has loaded torch already; returns what it said."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in {"eval_questions": 8, "questions_per_step": 2, "group_size": 4}.items():
        monkeypatch.setitem(studies.SMALL_STEP, name, value)

    def run(*words: object) -> str:
        main(list(map(str, words)))
        return capfd.readouterr().out

    return run


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_valid_run_and_differs_from_the_first(name, tmp_path):
    study = STUDIES[name]
    configs = {arm: arm_config(study, arm, 0, tmp_path, None, "tiny") for arm in study.arms}
    first, *others = configs.values()
    assert all(isinstance(config, TrainConfig) for config in configs.values())
    assert len({config.run.output_dir for config in configs.values()}) == len(configs)
    for other in others:
        differing = {name for name in flat(first) if get(first, name) != get(other, name)}
        assert differing - {"output_dir"}
        assert first.optimization.steps == other.optimization.steps
        n_rollouts = [one.optimization.questions_per_step * one.optimization.group_size for one in (first, other)]
        assert n_rollouts[0] - n_rollouts[1] in range(-4, 5)


@pytest.mark.parametrize(
    ("study", "arm", "name", "tiny", "real"),
    [
        ("rloo-why", "RLOO, half the rate", "learning_rate", 1.5e-3, 1e-5),
        ("mask-why", "masked, a third of the rate", "learning_rate", 1e-3, 6.66667e-6),
        ("topk", "5", "max_observation_tokens", 400, 781), ("topk", "5", "max_total_tokens", 1024, 6554),
        ("mask", "masked, noise", "max_total_tokens", 1024, 6554),
    ],
)  # fmt: skip
def test_an_arm_is_what_its_name_says_with_any_model(tmp_path, random_qwen2, study, arm, name, tiny, real):
    for model, value in (("tiny", tiny), (str(random_qwen2), real)):
        config = arm_config(STUDIES[study], arm, 0, tmp_path, None, model)
        assert get(config, name) == value == fitted(STUDIES[study], model).arms[arm][name]


def test_a_study_runs_resumes_and_reports(tmp_path, ablate, monkeypatch):
    out = tmp_path / "study"
    flags = ["max-turns", "--seeds", 2, "--steps", 1, "--output-dir", out]
    told = ablate(*flags)
    assert "[6/6]" in told and "| 4 |" in told and "The paper" in told
    report = (out / "report.md").read_text()
    assert "95 % interval over 2 seeds, the mean alone where all agree" in report
    assert table(json.loads((out / "results.json").read_text())["results"]) in report and "curves.svg" in report
    assert "<polyline" in (out / "curves.svg").read_text()
    assert "`python -m searchr1_mini.ablate max-turns --seeds 2 --steps 1`" in report
    written = json.loads((out / "results.json").read_text())
    results, settings = written["results"], written["settings"]
    assert (settings["common"]["steps"], settings["seeds"], settings["model"]) == (1, 2, "tiny")
    assert written["machine"]["threads"] == [1]  # what OMP_NUM_THREADS says
    assert {arm: len(runs) for arm, runs in results.items()} == {"4": 2, "2": 2, "1": 2}
    assert json.loads((out / "1" / "seed-1" / "config.json").read_text())["max_turns"] == 1

    (out / "2" / "seed-0" / "summary.json").unlink()  # as if it had been killed at its end
    kept = (out / "4" / "seed-0" / "summary.json").stat().st_mtime_ns
    again = ablate(*flags)
    assert "[6/6] 2, seed 0" in again and "[5/6]" not in again
    assert (out / "4" / "seed-0" / "summary.json").stat().st_mtime_ns == kept
    assert [row["step"] for row in read_metrics(out / "2" / "seed-0" / "metrics.jsonl")] == [1]

    saved = json.loads((out / "4" / "seed-0" / "config.json").read_text())
    write_json_atomic(out / "4" / "seed-0" / "config.json", saved | {"git_commit": "a" * 40})
    monkeypatch.setattr(command, "git_commit", lambda: "a" * 40)  # whatever state the working tree is in
    copied = ablate("reward", "--seeds", 1, "--steps", 1, "--output-dir", tmp_path / "reward")
    assert "[2/5]" in copied and "[1/5]" not in copied  # EM is GRPO as it is
    taken, made = (path / "seed-0" / "metrics.jsonl" for path in (tmp_path / "reward" / "em", out / "4"))
    assert taken.read_bytes() == made.read_bytes()

    (out / "2" / "seed-1" / "summary.json").unlink()
    write_json_atomic(out / "2" / "seed-1" / "diverged.json", {"why": "its loss was no number"})
    assert "| 2 (1 of 2 diverged) |" in ablate(*flags)
    write_json_atomic(out / "study.json", {"study": "max-turns", "steps": None, "model": "tiny"})  # of an older version
    with pytest.raises(UserError, match="was trained with another steps than the arm has now"):
        main(["max-turns", "--seeds", "2", "--steps", "2", "--output-dir", str(out)])
    assert json.loads((out / "study.json").read_text())["steps"] is None  # what is refused leaves nothing
    write_json_atomic(out / "study.json", {"study": "max-turns", "steps": 1, "model": "tiny"})
    with pytest.raises(UserError, match=r"holds the study \{'steps': 1\}, not \{'steps': 40\}; name another"):
        main(["max-turns", "--output-dir", str(out)])
    with pytest.raises(UserError, match="name another --output-dir"):
        main(["topk", "--output-dir", str(out)])


def test_runs_have_as_many_threads_at_every_start(tmp_path, monkeypatch):
    """A study that is resumed with one run left would else give that one the cores of all."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5, 7}, raising=False)  # of a machine with more
    opened = partial(side_by_side.open_folder, tmp_path / "a", {"study": "kl"})
    assert side_by_side.n_cores() == 4 and opened(jobs=2, n_runs=6) == 2
    assert opened(jobs=2, n_runs=1) == opened(jobs=4, n_runs=6) == 2
    assert json.loads((tmp_path / "a" / "study.json").read_text()) == {"study": "kl", "threads": 2}
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    with pytest.raises(UserError, match="have 2 threads each, and OMP_NUM_THREADS is 3; set it to 2, or name another"):
        opened(jobs=2, n_runs=6)
    assert side_by_side.open_folder(tmp_path / "b", {"study": "kl"}, 2, 6) == 3


def test_runs_end_with_a_study_that_is_killed(tmp_path):
    """A run that went on would write into the folder that the next start of the study resumes.

    The run's log is a pipe here: it opens when the run has begun, and it ends when the run's process has.
    """
    log = tmp_path / "4" / "seed-0.log"
    log.parent.mkdir()
    os.mkfifo(log)
    flags = ["max-turns", "--jobs", "1", "--steps", "2", "--output-dir", str(tmp_path)]
    command = [sys.executable, "-m", "searchr1_mini.ablate", *flags]
    study = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    with log.open() as reader:
        study.kill()
        study.wait()
        assert "step 2/2" not in reader.read()


# Ctrl-C, which reaches every process of a terminal, as the one that the runs are forked from loads its libraries
WHILE_LOADING = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "peft" and "forkserver" in sys.orig_argv[-1]:
            os.killpg(os.getpgrp(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="runs are forks on Linux alone")
def test_ctrl_c_while_libraries_are_loaded_is_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WHILE_LOADING)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "searchr1_mini.ablate", "max-turns", "--output-dir", str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, start_new_session=True)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.endswith("interrupted\n")


def test_runs_save_and_leave_when_a_study_is_told_to(tmp_path):
    """A signal to the study alone, as a scheduler sends it: nobody waits for its runs to end."""
    log = tmp_path / "4" / "seed-0.log"
    log.parent.mkdir()
    os.mkfifo(log)
    flags = ["max-turns", "--jobs", "1", "--seeds", "1", "--output-dir", str(tmp_path)]
    command = [sys.executable, "-m", "searchr1_mini.ablate", *flags]
    study = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with log.open() as reader:
        next(line for line in reader if line.startswith("step 1/"))
        study.terminate()
        said = reader.read()
    errors = study.stderr.read()
    assert (
        study.wait() == 130 and "stopping; runs that have begun save and leave" in errors and "Traceback" not in errors
    )
    assert "saved step" in said and "step 40/40" not in said
    assert "kernels" not in errors, "what a library says to developers, as in any other command"


@pytest.mark.parametrize("ending", ["summary.json", "diverged.json", "train.log"])
def test_a_run_of_other_options_is_no_arm_of_the_study(tmp_path, ending):
    """An arm that was edited since would else be reported with the figures of what it was, however the run ended."""
    config = arm_config(STUDIES["topk"], "5", 0, tmp_path, None, "tiny")
    folder = Path(config.run.output_dir)
    check_trained(config)
    folder.mkdir(parents=True)
    (folder / ending).write_text("{}")
    write_json_atomic(folder / "config.json", flat(config) | {"output_dir": "elsewhere", "save_every": 7})
    check_trained(config)
    for other in ({"topk": 4}, {"steps": 60}, {"decay_steps": 20}, {"learning_rate": 1.0, "device": "cuda"}):
        write_json_atomic(folder / "config.json", flat(config) | other)
        told = f"was trained with another {', '.join(sorted(other))} than the arm has now"
        with pytest.raises(UserError, match=told):
            check_trained(config)
    write_json_atomic(folder / "config.json", flat(config))
    write_json_atomic(folder / "resumed_with.json", {"steps": 60})
    with pytest.raises(UserError, match="another steps than"):
        check_trained(config)


def finished(config: TrainConfig, **saved: Any) -> Path:
    """The folder of a run that ended on this machine."""
    folder = Path(config.run.output_dir)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    on = alike.computed_on(config) | {"threads": 1, "git_commit": "a" * 40}
    write_json_atomic(folder / "config.json", flat(config) | on | saved)
    return folder


@pytest.mark.parametrize(
    ("commit", "is_taken"), [("a" * 40, True), ("a" * 40 + "-dirty", False), ("b" * 40, False), (None, False)]
)
def test_a_run_is_taken_over_from_the_same_code_alone(tmp_path, monkeypatch, commit, is_taken):
    """A student edits the loss and runs the study again: it must train with the edited one."""
    monkeypatch.setattr(command, "git_commit", lambda: commit)
    theirs, mine = (arm_config(STUDIES["topk"], "5", 0, tmp_path / name, None, "tiny") for name in ("a", "b"))
    finished(theirs, git_commit="a" * 40 if is_taken or commit == "b" * 40 else commit)
    take_over(mine, tmp_path / "b", 1)
    assert Path(mine.run.output_dir).exists() == is_taken


def test_a_run_that_went_on_at_another_commit_is_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "git_commit", lambda: "a" * 40)
    theirs, mine = (arm_config(STUDIES["topk"], "5", 0, tmp_path / name, None, "tiny") for name in ("a", "b"))
    keep_commit(finished(theirs), "b" * 40)
    take_over(mine, tmp_path / "b", 1)
    assert not Path(mine.run.output_dir).exists()


@pytest.mark.parametrize(
    "other",
    [{}, {"threads": 2}, {"resolved_device": "NVIDIA H100"}, {"resolved_dtype": "bfloat16"}, {"versions": {}}],
    ids=lambda other: "".join(other),
)
def test_a_run_is_taken_over_from_the_same_machine_alone(tmp_path, monkeypatch, other):
    """The arms of one study would else be rounded differently, and differ by that."""
    monkeypatch.setattr(command, "git_commit", lambda: "a" * 40)
    theirs, mine = (arm_config(STUDIES["topk"], "5", 0, tmp_path / name, None, "tiny") for name in ("a", "b"))
    finished(theirs, **other)
    take_over(mine, tmp_path / "b", 1)
    assert Path(mine.run.output_dir).exists() == (not other)


def test_a_run_is_taken_over_from_the_same_base_alone(tmp_path, monkeypatch, random_qwen2, random_policy):
    """A folder that --model names may hold other weights by now."""
    monkeypatch.setattr(command, "git_commit", lambda: "a" * 40)
    base = Path(shutil.copytree(random_qwen2, tmp_path / "base"))
    configs = [arm_config(STUDIES["kl"], "none", 0, tmp_path / name, None, str(base)) for name in "abc"]
    model = finished(configs[0]) / "checkpoints" / "step-000040" / "model"
    model.mkdir(parents=True)
    write_json_atomic(model / "base.json", random_policy.base_identity)
    take_over(configs[1], tmp_path / "b", 1)
    assert Path(configs[1].run.output_dir).exists()
    weights = {name: tensor + 1 for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    take_over(configs[2], tmp_path / "c", 1)
    assert not Path(configs[2].run.output_dir).exists()


@pytest.mark.parametrize(
    ("arguments", "told"), [(["masks"], "did you mean mask?"), (["mask", "--seeds", "0"], "at least 1")]
)
def test_bad_arguments_are_told_in_a_sentence(arguments, told):
    with pytest.raises(UserError, match=re.escape(told)):
        main(arguments)


@pytest.mark.parametrize("study", [study for study in STUDIES.values() if study.against], ids=lambda study: study.title)
def test_an_arm_differs_in_one_thing_from_what_it_is_against(study):
    for arm, reference in study.against.items():
        assert len(dict(study.arms[arm].items() ^ study.arms[reference].items())) == 1
    assert study.arms["unmasked"] == {"mask_observations": False} and set(study.against) < set(study.arms)


def test_the_noise_of_mask_is_the_worlds_with_any_model(tmp_path, random_qwen2):
    study = STUDIES["mask"]
    for arm in study.arms:
        assert arm_config(study, arm, 0, tmp_path, None, str(random_qwen2)).data.dataset == "world"


def test_a_run_whose_process_is_killed_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "train_one", killed)
    with pytest.raises(UserError, match="fewer --jobs"):
        side_by_side.in_a_process(make(TrainConfig, output_dir="runs/x"), False, get_context("fork"))


def killed(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
