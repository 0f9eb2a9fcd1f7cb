"""Runs in 16 bits: what the update calls old is its own forward; log and weights compare with what was sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.models import SHAPE
from helpers.sessions import losses_of, passes_of, session_of, step_of, train_step

from searchr1_mini.core import experience as experience_module
from searchr1_mini.core import training
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.experience import update_logprobs
from searchr1_mini.core.training import weighted
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run import memory
from searchr1_mini.run.invariants import check_agreement
from searchr1_mini.run.variant import configured_variant
from searchr1_mini.storage.files import read_jsonl
from searchr1_mini.variants.ratios import importance_weights

GSPO = {"ratio": "sequence", "loss_aggregation": "sequence", "clip_eps": 0.0001, "clip_eps_high": 0.00015}
REWARD = f"{Path(__file__).parents[1] / 'helpers' / 'parity.py'}:parity"
SMALL = {"drop_zero_variance": False, "max_new_tokens": 24, "max_turns": 2, "warmup_steps": 0, "reward": REWARD}


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def run(request, tmp_path_factory):
    flags = GSPO | SMALL | {"gradient_checkpointing": True, "mini_batches": 2, "importance_cap": 1.5}
    return session_of(tmp_path_factory.mktemp("run"), dtype=request.param, **flags)


@pytest.fixture(scope="module")
def step(run):
    return step_of(run)


def sampled_of(rollouts) -> list[float]:
    return [p for t in rollouts.trajectories for segment in t.of_kind("policy") for p in segment.logprobs]


def test_check_lets_rounding_pass_and_tells_another_temperature(run, step, monkeypatch):
    rollouts, _ = step
    batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, 0)
    check_agreement(run, batch)
    monkeypatch.setattr(run, "config", with_options(run.config, temperature=3.0))
    with pytest.raises(UserError, match="rollout and update agree on log-probs"):
        check_agreement(run, batch)


def test_before_a_weight_moves_no_trajectory_is_clipped(run, step, monkeypatch):
    """In neither mini-batch, against what was computed before the first; by rounding alone most would be."""
    _, experience = step
    batch = experience.batch
    rounding = (batch.old_logprobs - experience.sampled_logprobs) * batch.loss_mask
    of_rows = (rounding.sum(1) / batch.loss_mask.sum(1)).exp() - 1
    assert (
        (of_rows < -run.config.objective.clip_eps) | (of_rows > run.config.objective.clip_eps_high)
    ).sum() >= run.config.optimization.group_size
    losses, optimizer, (passed,) = losses_of(run, monkeypatch), run.optimizer, passes_of(run, batch)
    monkeypatch.setattr(optimizer, "learning_rates", lambda: [0.0])
    optimizer.begin(1, len(passed))
    for rows in passed:
        optimizer.step(weighted(experience.select(rows), run.config, configured_variant(run.config)), losses)
    assert len(optimizer.logs) == 2
    for logged in optimizer.logs:
        assert (logged["ratio_max"], logged["clip_fraction"], logged["approx_kl"]) == (1, 0, 0)


def test_the_log_and_the_weights_compare_with_what_was_sampled(run, step, monkeypatch):
    rollouts, experience = step
    mask, old = experience.batch.loss_mask, experience.batch.old_logprobs
    assert experience.sampled_logprobs[mask].tolist() == torch.tensor(sampled_of(rollouts)).tolist()
    torch.testing.assert_close(
        experience.importance[mask], importance_weights(old, experience.sampled_logprobs, 1.5, "truncate")[mask]
    )
    first = experience.select(passes_of(run, experience.batch)[0][0])
    rounding = (first.batch.old_logprobs - first.sampled_logprobs)[first.batch.loss_mask].abs()
    monkeypatch.setattr(training, "collect", lambda *_: rollouts)
    logged = train_step(run, 1)
    assert logged["logprob_diff_mean"] == pytest.approx(rounding.mean().item(), rel=1e-4)
    assert logged["logprob_diff_max"] == pytest.approx(rounding.max().item(), rel=1e-4)


def test_rollouts_on_disk_hold_what_was_sampled(tmp_path):
    run = session_of(tmp_path, dtype="bfloat16", **SMALL)
    sampled = sampled_of(step_of(run)[0])
    logged = train_step(run, 1)
    rows = read_jsonl(run.folder / "rollouts" / "step-000001.jsonl")
    assert [p for row in rows for segment in row["segments"] for p in segment["logprobs"]] == [
        round(p, 5) for p in sampled
    ]
    assert logged["logprob_diff_mean"] > 1e-4 and logged["ratio_max"] == 1


def test_the_kl_to_the_reference_is_0_before_the_first_update(tmp_path):
    """Of PPO, where it is inside the reward: both sides are the update's forward. The adapter begins at 0."""
    flags = SMALL | {"algorithm": "ppo", "group_size": 1, "mini_batches": 2}
    run = session_of(tmp_path, dtype="bfloat16", **flags)
    _, experience = step_of(run)
    with run.policy.reference():
        how = run.config.rollout.temperature, run.optimizer.micro_batches, passes_of(run, experience.batch)[0]
        reference = update_logprobs(run.policy, experience.batch, *how)
    assert torch.equal(reference, experience.batch.old_logprobs)


def test_unmasked_observations_get_the_updates_log_probs(tmp_path):
    run = session_of(tmp_path, dtype="bfloat16", mask_observations=False, **SMALL)
    logged = train_step(run, 1)
    assert logged["ratio_max"] == 1 and logged["clip_fraction"] == 0 and logged["logprob_diff_mean"] > 0


def test_in_float32_old_log_probs_are_those_that_were_sampled(tmp_path):
    rollouts, experience = step_of(session_of(tmp_path, **SMALL))
    old = experience.batch.old_logprobs
    assert old is experience.sampled_logprobs
    assert old[experience.batch.loss_mask].tolist() == torch.tensor(sampled_of(rollouts)).tolist()


@pytest.mark.parametrize("flags", [{}, {"ratio": "sequence", "kl_coef": 0.01}])
def test_one_update_alone_makes_its_forward_once(tmp_path, monkeypatch, flags):
    """And learns to the bit what it learns with pi_old computed before."""
    forwards, forward = [], training.policy_logprobs
    for module in (training, experience_module):
        monkeypatch.setattr(module, "policy_logprobs", lambda *a, **k: forwards.append(1) or forward(*a, **k))
    learned = []
    for name, eval_every in (("before", 1), ("once", 100)):  # a step that is evaluated writes ratios, which need pi_old
        run = session_of(tmp_path / name, dtype="bfloat16", eval_every=eval_every, **SMALL, **flags)
        forwards.clear()
        logged = train_step(run, 1)
        weights = torch.cat([parameter.flatten() for parameter in run.policy.trainable()])
        learned.append((len(forwards), weights, {k: v for k, v in logged.items() if "second" not in k}))
    assert learned[1][0] < learned[0][0] and learned[1][2] == learned[0][2]
    assert torch.equal(learned[0][1], learned[1][1])


def test_the_preflight_knows_of_the_forward():
    """Without a KL a step in float32 needs none before its update."""
    config = resolve(make(TrainConfig, model="Qwen2.5-3B", kl_coef=0.0))
    assert "log-probs" in memory.predict(config, SHAPE, 2, on_gpu=True).phases
    assert "log-probs" not in memory.predict(config, SHAPE, 4, on_gpu=True).phases
