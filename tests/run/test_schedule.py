"""The learning rate counts steps: with groups left out, updates thrown away, a critic, imitation, and a resumed run."""

from __future__ import annotations

import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.faults import config_of
from helpers.sessions import session_of, train_step
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core import training
from searchr1_mini.core.optimizer import Optimizer
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.imitation import demonstrations, imitation_step
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import joined_by_step, read_jsonl

RATES = {"steps": 6, "warmup_steps": 2, "decay_steps": 3, "mini_batches": 2, "learning_rate": 0.01}
# what each step ends with: up over 2 steps of 2 updates, down over 3, to 1/6 of the peak
LAST_RATES = [0.01 * share for share in (2 / 4, 4 / 4, 1, 5 / 6, 3 / 6, 1 / 6)]


@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 8), st.integers(1, 3), st.integers(1, 2))
def test_with_nothing_left_out_rates_match_torchs_schedule(steps, warmup, decay, minis, epochs):
    """To the bit those of torch's LambdaLR, which counts updates."""
    config = resolve(
        make(TrainConfig, steps=steps, warmup_steps=warmup, decay_steps=decay, mini_batches=minis, epochs=epochs)
    )
    a_step = minis * epochs
    total, fall = steps * a_step, decay * a_step
    weight = torch.zeros(1, requires_grad=True)
    policy = SimpleNamespace(trainable=lambda: [weight], device=torch.device("cpu"), dtype=torch.float32)
    ours = Optimizer(policy, None, config.optimization)
    theirs = torch.optim.AdamW([weight], config.optimization.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        theirs,
        lambda made: min(1.0, (made + 1) / max(warmup * a_step, 1), max(total - made, 0) / fall if fall else 1.0),
    )
    for step in range(1, steps + 1):
        ours.begin(step, a_step)
        for made in range(a_step):
            ours.logs = [{}] * made
            assert ours.learning_rates() == [theirs.param_groups[0]["lr"]]
            theirs.step()
            schedule.step()


SHORT = {"max_new_tokens": 16, "max_turns": 1, "group_size": 2, "drop_zero_variance": False}
GROUPS_LEFT = {1: 2, 2: 1, 3: 0, 4: 2, 5: 1, 6: 1}  # of 2, at each step


def train_with_groups_left_out(config: TrainConfig, first_step: int = 1) -> list[dict]:
    """Trains, as if all but `GROUPS_LEFT` groups of each step were flat; returns what metrics.jsonl holds then."""
    steps = iter(range(first_step, config.optimization.steps + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "rows_to_train_on", lambda *_: range(GROUPS_LEFT[next(steps)] * config.optimization.group_size)
        )
        return read_jsonl(train(config) / "metrics.jsonl")


@pytest.fixture(scope="module")
def thinned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "thinned"
    config = config_of(
        folder, **RATES | {"save_every": 3, "keep_checkpoints": 9, "memory_check": False, "entropy_coef": 0.001}
    )
    return config, train_with_groups_left_out(config)


def test_groups_that_are_left_out_stretch_nothing(thinned):
    rates = [row.get("learning_rate") for row in joined_by_step(thinned[1])]
    assert rates[2] is None, "a step without a group has an update"
    assert rates[:2] + rates[3:] == pytest.approx(LAST_RATES[:2] + LAST_RATES[3:], rel=1e-12)


def test_resuming_after_left_out_groups_keeps_the_same_rates(thinned, tmp_path):
    config, rows = thinned
    resumed = shutil.copytree(config.run.output_dir, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "step-000006")
    went_on = train_with_groups_left_out(with_options(config, resume=True, output_dir=str(resumed)), first_step=4)
    keys = ("step", "learning_rate", "loss", "grad_norm", "reward")
    assert [[row.get(key) for key in keys] for row in went_on] == [[row.get(key) for key in keys] for row in rows]


def test_updates_that_are_thrown_away_count_too(tmp_path, monkeypatch):
    run = session_of(tmp_path, **RATES | SHORT, entropy_coef=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_weights", lambda mask, *_: mask * math.nan)
        assert train_step(run, 1)["skipped_updates"] == 1
    rates = [train_step(run, step)["learning_rate"] for step in (2, 3)]
    assert rates == pytest.approx(LAST_RATES[1:3])


def test_the_critic_warms_up_by_itself(tmp_path):
    flags = {"algorithm": "ppo", "critic_learning_rate": 0.02, "critic_warmup_steps": 4, "group_size": 1, "epochs": 2}
    run = session_of(tmp_path, **RATES | SHORT | flags)
    for step in (1, 3):
        train_step(run, step)
        rates = [group["lr"] for group in run.optimizer.adamw.param_groups]
        assert rates == pytest.approx([0.01 * min(step / 2, 1), 0.02 * step / 4])


def test_imitation_ends_at_the_same_rates(tmp_path):
    """The first update of a step has the rate before its second's; one demonstration makes one update, the last."""
    run = session_of(
        tmp_path, **RATES | {"algorithm": "sft", "group_size": 1, "demonstration_questions": 4, "reward": "em"}
    )
    shown = demonstrations(run)
    for step, wanted in enumerate(LAST_RATES, start=1):
        told = imitation_step(run.policy, run.optimizer, shown[: 1 + step % 2], step, run.config.optimization)
        assert told["learning_rate"] == pytest.approx(wanted)
