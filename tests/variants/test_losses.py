"""Terms of the loss that came later, against loops over tokens and finite differences."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.ragged import Rows, compare_with_differences, ragged, seeded_rows
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.algorithms import loss_weights, policy_loss
from searchr1_mini.variants.losses import cispo, llds_penalty, sapo_penalty


def loss_of(rows: Rows, new: torch.Tensor | None = None, **how) -> torch.Tensor:
    """The policy's loss of a batch, without KL or entropy."""
    x, weights = rows.tensors, loss_weights(rows.mask, "token").double()
    bounds = {"clip_eps": 0.2, "clip_eps_high": 0.3}
    return policy_loss(x["new"] if new is None else new, x["old"], x["advantage"], weights, **bounds, **how)[0]


def sum_over_tokens(rows: Rows, value) -> float:
    """The mean over the policy's tokens of a function of one of them."""
    tokens = [token for row in rows.tokens for token in row]
    return sum(value(token) for token in tokens) / len(tokens)


@given(ragged())
def test_cispo_is_a_weighted_log_probability(rows):
    def of_token(t: dict[str, float]) -> float:
        return -min(math.exp(t["new"] - t["old"]), 1.3) * t["advantage"] * (t["new"] - t["old"])

    assert loss_of(rows, surrogate=cispo).item() == pytest.approx(sum_over_tokens(rows, of_token), rel=1e-5, abs=1e-6)


def test_cispo_has_the_gradient_of_log_pi_times_its_weight():
    """Differences of sum w A log pi, with w held: the weight has no gradient of its own, and no token lost its own."""
    rows = seeded_rows()
    new = rows.tensors["new"].clone().requires_grad_()
    loss_of(rows, new, surrogate=cispo).backward()
    weight = (rows.tensors["new"] - rows.tensors["old"]).exp().clamp(max=1.3) * loss_weights(rows.mask, "token")
    compare_with_differences(rows, new, lambda x: -(weight * rows.tensors["advantage"] * x)[rows.mask].sum())
    assert (new.grad[rows.mask] != 0).all()


def test_cispo_tells_which_weights_it_clipped():
    log_ratios = torch.tensor([[0.0, 0.2, 0.3, -3.0]])
    assert cispo(log_ratios, torch.ones(1, 1), 0.2, 0.3)[1].tolist() == [[False, False, True, False]]


@given(ragged(), st.sampled_from([0.5, 0.9, 1.0]))
def test_sapo_holds_tokens_of_better_rollouts_that_fell(rows, threshold):
    def of_token(t: dict[str, float]) -> float:
        is_held = t["advantage"] > 0 and math.exp(t["new"] - t["old"]) < threshold
        return 0.7 * (t["old"] - t["new"]) if is_held else 0.0

    penalties = {"sapo": (0.7, partial(sapo_penalty, threshold=threshold))}
    added = loss_of(rows, penalties=penalties).item() - loss_of(rows).item()
    assert added == pytest.approx(sum_over_tokens(rows, of_token), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("penalty", [partial(sapo_penalty, threshold=0.9), llds_penalty], ids=["sapo", "llds"])
def test_gradients_of_penalties_are_finite_differences(penalty):
    rows = seeded_rows()
    how = {"penalties": {"of": (0.7, penalty)}}
    new = rows.tensors["new"].clone().requires_grad_()
    loss_of(rows, new, **how).backward()
    assert loss_of(rows, **how) != loss_of(rows)
    compare_with_differences(rows, new, lambda x: loss_of(rows, x, **how))


def test_a_penalty_is_told_by_its_name():
    rows = seeded_rows()
    x, weights = rows.tensors, loss_weights(rows.mask, "token").double()
    how = {"clip_eps": 0.2, "clip_eps_high": 0.3, "penalties": {"sapo": (5.0, sapo_penalty)}}
    _, stats = policy_loss(x["new"], x["old"], x["advantage"], weights, **how)
    assert stats["sapo"].item() == pytest.approx((loss_of(rows, penalties=how["penalties"]) - loss_of(rows)).item() / 5)


def test_llds_acts_only_on_good_trajectories_made_less_likely():
    new = torch.tensor([[-2.0, -0.5], [-2.0, -0.5], [-1.2, -0.1]], requires_grad=True)
    old, mask = torch.full((3, 2), -1.0), torch.ones(3, 2, dtype=torch.bool)
    advantages = torch.tensor([[1.0], [-1.0], [1.0]]).expand(3, 2)
    penalty = llds_penalty(new, old, advantages, mask)
    assert penalty.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]  # bad advantage; more likely as a whole
    penalty.sum().backward()
    assert new.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert llds_penalty(new, old, torch.zeros(3, 2), mask)[:2].tolist() == [[1.0, 0.0]] * 2  # no worse than its group
