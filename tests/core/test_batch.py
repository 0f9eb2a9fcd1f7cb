"""The loss-mask builder, on literals drawn by hand and on any trajectory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.algorithms import loss_weights, policy_loss
from searchr1_mini.core.batch import build_batch, micro_batches, mini_batches
from searchr1_mini.core.trajectory import Segment, Trajectory

PAD = 0


def policy(*ids: int) -> Segment:
    return Segment("policy", list(ids), [-0.1 * id_ for id_ in ids])


@st.composite
def trajectories(draw):
    ids = st.lists(st.integers(0, 19), min_size=1, max_size=5)
    segments = [Segment("prompt", draw(ids))]
    for _ in range(draw(st.integers(1, 3))):
        segments += [policy(*draw(ids)), Segment("observation", draw(ids))]
    return Trajectory("q", [*segments, policy(*draw(ids))])


def test_mask_by_hand():
    #        prompt   policy     observation  policy (0 is EOS, and the pad id too)
    long = Trajectory("a", [Segment("prompt", [1, 2]), policy(3, 4), Segment("observation", [5, 6, 7]), policy(8, 0)])
    #        prompt   policy
    short = Trajectory("b", [Segment("prompt", [9]), policy(3, 0)])
    batch = build_batch([long, short], [1.0, 0.0], [0, 1], PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 0], [9, 3, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 4, 5, 6, 7, 8, 0], [3, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0]]
    expected = torch.tensor([[0, -0.3, -0.4, 0, 0, 0, -0.8, 0], [-0.3, 0, 0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(batch.old_logprobs, expected)
    assert batch.position_ids[0].tolist() == list(range(9))
    assert (batch.lengths.tolist(), batch.group_ids.tolist(), batch.rewards.tolist()) == ([9, 3], [0, 1], [1.0, 0.0])


def test_unmasked_observations_are_trained_on_but_never_prompts():
    #        prompt   policy  observation
    one = Trajectory("a", [Segment("prompt", [1, 2]), policy(3), Segment("observation", [5, 6])])
    batch = build_batch([one], [1.0], [0], PAD, mask_observations=False)
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 1]]
    assert batch.old_logprobs.isnan().int().tolist() == [[0, 0, 1, 1]]


def test_select_trims_to_the_longest_row():
    rows = [Trajectory("a", [Segment("prompt", [1] * n), policy(2)]) for n in (2, 6, 3)]
    part = build_batch(rows, [0.0, 1.0, 2.0], [0, 1, 2], PAD).select([2, 0])
    assert part.input_ids.tolist() == [[1, 1, 1, 2], [1, 1, 2, PAD]]
    assert part.targets.shape == part.loss_mask.shape == part.old_logprobs.shape == (2, 3)
    assert part.rewards.tolist() == [2.0, 0.0]


@given(st.lists(trajectories(), min_size=1, max_size=4))
def test_every_policy_token_and_no_other_is_in_the_mask(rows):
    batch = build_batch(rows, [0.0] * len(rows), list(range(len(rows))), PAD)
    for index, trajectory in enumerate(rows):
        ids = trajectory.token_ids
        assert batch.input_ids[index, : len(ids)].tolist() == ids
        kinds = [segment.kind for segment in trajectory.segments for _ in segment.token_ids]
        expected = [kind == "policy" for kind in kinds[1:]]
        assert batch.loss_mask[index, : len(expected)].tolist() == expected
        assert not batch.loss_mask[index, len(expected) :].any()


@given(st.lists(trajectories(), min_size=1, max_size=3), st.sampled_from(["token", "sequence"]), st.integers(0, 99))
def test_observation_tokens_never_receive_gradient(rows, how, seed):
    """The gradient of the loss with respect to the logits that predict an observation or prompt token is exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    batch = build_batch(rows, [0.0] * len(rows), [0] * len(rows), PAD)
    logits = torch.randn(*batch.targets.shape, 20, generator=generator, requires_grad=True)
    logprobs = logits.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    loss, _ = policy_loss(
        logprobs,
        batch.old_logprobs,
        torch.randn(len(rows), 1, generator=generator).expand(batch.targets.shape),
        loss_weights(batch.loss_mask, how),
        clip_eps=0.2,
        clip_eps_high=0.2,
        ref_logprobs=torch.randn(batch.targets.shape, generator=generator),
        kl_coef=0.1,
    )
    loss.backward()
    assert (logits.grad[~batch.loss_mask] == 0).all()
    assert (logits.grad[batch.loss_mask] != 0).any()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    bins = micro_batches(lengths, budget)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget for rows in bins)
    for rows in bins:
        area = len(rows) * max(lengths[row] for row in rows)
        assert sum(lengths[row] for row in rows) >= 0.9 * area  # padding stays below a tenth
    assert bins == micro_batches(lengths, budget)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 9))
def test_mini_batches_keep_groups_whole(group_ids, n, seed):
    parts = mini_batches(group_ids, n, torch.Generator().manual_seed(seed))
    assert len(parts) == n
    assert sorted(row for rows in parts for row in rows) == list(range(len(group_ids)))
    homes = [{group_ids[row] for row in rows} for rows in parts]
    assert sum(map(len, homes)) == len(set(group_ids))
    sizes = [len(home) for home in homes]
    assert max(sizes) - min(sizes) <= 1


def test_mini_batches_are_shuffled():
    splits = {str(mini_batches(list(range(8)), 2, torch.Generator().manual_seed(seed))) for seed in range(5)}
    assert len(splits) > 1


def test_an_unknown_aggregation_is_an_error():
    with pytest.raises(ValueError, match="aggregation"):
        loss_weights(torch.ones(1, 1, dtype=torch.bool), "mean")
