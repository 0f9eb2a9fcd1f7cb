"""Each invariant holds on real rollouts, and is seen broken when it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.sessions import session_of, step_of

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.training import Rollouts
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.invariants import check_advantages, check_step
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return session_of(tmp_path_factory.mktemp("run"), check=True)


@pytest.fixture(scope="module")
def step(run):
    rollouts, experience = step_of(run)
    return rollouts, experience.batch, experience.advantages.sum(1) / experience.batch.loss_mask.sum(1)


def check(run, batch, trajectories, kept, advantages):
    check_step(run, batch, Rollouts(trajectories=trajectories, kept=list(kept), advantages=advantages))


def clone(batch):
    return batch.select(range(len(batch.lengths)))


def test_a_sound_step_passes(run, step):
    rollouts, batch, advantages = step
    check(run, batch, rollouts.trajectories, range(len(batch.lengths)), advantages)
    check(run, batch, rollouts.trajectories, [3, 1], advantages)


def break_ids(batch):
    batch.input_ids[1, 4] += 1


def break_targets(batch):
    batch.targets[0, 7] += 1


def break_mask_by_one(batch):
    batch.loss_mask[2] = batch.loss_mask[2].roll(1)


def break_mask_of_padding(batch):
    row = int(batch.lengths.argmin())
    batch.loss_mask[row, -1] = True


def break_order_of_logprobs(batch):
    batch.old_logprobs[0] = batch.old_logprobs[0].roll(1)


def break_temperature(batch):
    batch.old_logprobs *= 1.1


def break_groups(batch):
    batch.group_ids = batch.group_ids.flip(0)[torch.arange(len(batch.group_ids)) % 7]


def break_reward(batch):
    batch.rewards[3] = torch.inf


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (break_ids, "trained ids are the sampled ids (question "),
        (break_targets, "targets are the ids shifted by one"),
        (break_mask_by_one, "the loss mask is that of the segments"),
        (break_mask_of_padding, "the loss mask is that of the segments"),
        (break_order_of_logprobs, "each log-prob stands beside its token"),
        (break_temperature, "each log-prob stands beside its token"),
        (break_groups, "holds rollouts of one question"),
        (break_reward, "rewards are finite"),
    ],
)
def test_a_batch_that_is_not_what_was_sampled_is_told(run, step, fault, told):
    rollouts, batch, advantages = step
    batch = clone(batch)
    fault(batch)
    with pytest.raises(UserError) as caught:
        check(run, batch, rollouts.trajectories, range(len(batch.lengths)), advantages)
    assert told in str(caught.value)


def test_an_advantage_of_a_token_that_is_no_number_is_told(run, step):
    """A variant adds to each token's, which those of the groups do not show."""
    rollouts, batch, _ = step
    rollouts = replace(rollouts, token_advantages=torch.where(batch.loss_mask, torch.nan, 0.0))
    with pytest.raises(UserError, match="token_advantages are finite"):
        check_step(run, batch, rollouts)


def test_log_probs_that_the_update_does_not_find_again_are_told(run, step):
    """Trajectories and batch agree with each other, so that only a forward can tell."""
    rollouts, batch, advantages = step
    other = session_of(run.folder.parent / "hot", check=True, temperature=1.5)
    with pytest.raises(UserError, match=r"rollout and update agree on log-probs .* but they differ by"):
        check(other, batch, rollouts.trajectories, range(len(batch.lengths)), advantages)


def test_texts_and_answers_are_those_of_the_ids(run, step):
    rollouts, batch, advantages = step
    for change in (
        {"answer": "forged"},
        {"segments": [replace(s, text="x" + s.text) for s in rollouts.trajectories[0].segments]},
    ):
        trajectories = [replace(rollouts.trajectories[0], **change), *rollouts.trajectories[1:]]
        with pytest.raises(UserError, match=r"the answer stands in the last turn|the text of a turn"):
            check(run, batch, trajectories, [], advantages)


def test_a_frozen_weight_that_moves_is_told(run, step):
    rollouts, batch, advantages = step
    check(run, batch, rollouts.trajectories, [], advantages)
    weight = run.policy.causal_lm.model.embed_tokens.weight
    old = weight.data.clone()
    weight.data[5, 3] += 1
    with pytest.raises(UserError, match="weights that are not trained"):
        check(run, batch, rollouts.trajectories, [], advantages)
    weight.data = old
    check(run, batch, rollouts.trajectories, [], advantages)


def test_advantages_have_mean_0_and_follow_the_rewards():
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 5.0, 6.0]), torch.tensor([0, 0, 0, 7, 7])
    check_advantages(torch.tensor([2.0, -1.0, -1.0, -1.0, 1.0]), rewards, groups, "group")
    check_advantages(rewards, rewards, groups, "none")
    for wrong, told in (([2.0, -1.0, -0.9, -1.0, 1.0], "mean 0"), ([-1.0, 2.0, -1.0, -1.0, 1.0], "better"),
                        ([torch.nan, 0, 0, 0, 0], "finite")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            check_advantages(torch.tensor(wrong), rewards, groups, "group")


def test_a_run_with_every_check_on_ends_as_one_without(tmp_path):
    """GRPO with every check; a fault in the loss mask stops it before the weights move, the steps before it saved."""
    runs = [session_of(tmp_path / name, check=name == "on", steps=2, eval_every=2) for name in ("on", "off")]
    rows = []
    for run in runs:
        train(with_options(run.config, resume=True))
        rows.append(read_metrics(run.folder / "metrics.jsonl"))
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]] and len(rows[0]) == 2


@pytest.mark.parametrize("flags", [{"bug": "retokenize"}, {"algorithm": "rejection-sampling"}])
def test_checks_of_what_is_broken_on_purpose_are_refused(tmp_path, flags):
    with pytest.raises(UserError, match=r"--check (is for sound steps|does nothing)"):
        session_of(tmp_path, check=True, **flags | ({"reward": "em"} if "algorithm" in flags else {}))
