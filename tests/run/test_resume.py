"""What `--resume` goes on with: flags of an earlier one, another dtype, runs of older versions."""

from __future__ import annotations

import copy
import json

import torch
from helpers.faults import config_of, evaluation_of, sentence_of, sign

from searchr1_mini.core.optimizer import Optimizer
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.models.identity import BASE_FILE
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.resolve import resumed_config
from searchr1_mini.run.held_out import HELD_OUT
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.training import train
from searchr1_mini.storage import checkpoint
from searchr1_mini.train import main as train_command


def test_what_a_resume_changes_holds_for_the_next_one(run, capsys):
    """--steps too: without it the second would end at the steps that the run began with, below its weights."""
    began = (run / "config.json").read_text()
    go_on = ["--resume", "--output-dir", str(run)]
    train_command([*go_on, "--steps", "3", "--save-every", "2"])
    assert (run / "config.json").read_text() == began and resumed_config(run)["steps"] == 3
    train_command(go_on)
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    told = sentence_of(capsys, train_command, [*go_on, "--steps", "2"])
    assert "has trained 3 steps" in told
    train_command(go_on)  # what was refused is not kept
    (run / checkpoint.CHANGED).write_text('{"steps": "x"}')
    assert f"{checkpoint.CHANGED} is damaged" in sentence_of(capsys, train_command, go_on)


def test_a_run_goes_on_in_another_dtype(run, tiny_policy):
    """A run in float32 has no scaler of losses, and one in float16 needs one."""
    policy, config = copy.copy(tiny_policy), config_of(run).optimization
    optimizer = Optimizer(policy, None, config)
    state = optimizer.state_dict()
    assert not state["scaler"]
    policy.dtype = torch.float16
    again = Optimizer(policy, None, config)
    again.load_state_dict(state)
    assert again.scaler.is_enabled() and again.state_dict()["scaler"]


def test_a_run_killed_early_keeps_its_held_out_questions(run):
    """It is no run of an older version, which kept none and was measured on others."""
    kept = (run / HELD_OUT).read_text()
    (run / HELD_OUT).unlink()
    open_run(with_options(config_of(run), resume=True)).tracker.__exit__()
    assert (run / HELD_OUT).read_text() == kept
    saved = json.loads((run / "config.json").read_text())
    del saved["held_out_split"]
    (run / "config.json").write_text(json.dumps(saved))
    (run / HELD_OUT).unlink()
    open_run(with_options(config_of(run), resume=True)).tracker.__exit__()
    assert not (run / HELD_OUT).is_file()


def test_a_run_of_a_version_with_fewer_options_goes_on(run):
    saved = json.loads((run / "config.json").read_text())
    for name in ("data_hashes", "topk", "world_noise", "rollout_batch_size", "stemming"):
        del saved[name]
    (run / "config.json").write_text(json.dumps(saved))
    for path in run.rglob(BASE_FILE):
        path.unlink()
        sign(path.parent.parent)
    train(with_options(config_of(run), resume=True, steps=3))
    evaluate_command(evaluation_of(run))
