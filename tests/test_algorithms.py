"""Each equation against a hand-computed example or an obvious second implementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.algorithms import (
    clipped_surrogate,
    group_advantages,
    grpo_loss,
    kl_k3,
    loss_weights,
    zero_variance,
)

SETTINGS = {"clip_eps": 0.2, "clip_eps_high": 0.2, "kl_coef": 0.5}


def test_group_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 7.0])
    groups = torch.tensor([3, 3, 3, 3, 8, 8, 9])
    std = math.sqrt(4 * 0.25 / 3)
    expected = [0.5 / std, -0.5 / std, -0.5 / std, 0.5 / std, 0.0, 0.0, 7.0]
    torch.testing.assert_close(group_advantages(rewards, groups), torch.tensor(expected), atol=1e-5, rtol=0)
    plain = [0.5, -0.5, -0.5, 0.5, 0.0, 0.0, 7.0]
    assert group_advantages(rewards, groups, normalize_std=False).tolist() == plain


def test_equal_ids_make_a_group_wherever_they_stand():
    rewards, groups = torch.tensor([1.0, 9.0, 0.0, 3.0]), torch.tensor([0, 1, 0, 1])
    assert group_advantages(rewards, groups, normalize_std=False).tolist() == [0.5, 3.0, -0.5, -3.0]


def test_zero_variance_groups_are_named_and_single_rollouts_are_not():
    rewards, groups = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1, 2])
    assert zero_variance(rewards, groups).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.6, True),  # clipped at 1 + 0.3
        (0.5, 2.0, -1.0, False),  # a worse ratio is never clipped away
        (0.5, -2.0, 1.6, True),  # clipped at 1 - 0.2
        (1.5, -2.0, 3.0, False),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, is_clipped):
    value, clipped = clipped_surrogate(
        torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2, 0.3
    )
    assert value.item() == pytest.approx(loss, rel=1e-5)
    assert clipped.item() is is_clipped


@given(st.floats(-200, 0), st.floats(-200, 0))
def test_k3_is_finite_and_never_negative(logprob, ref_logprob):
    value = kl_k3(torch.tensor(logprob), torch.tensor(ref_logprob)).item()
    assert math.isfinite(value)
    assert value >= -1e-6


def test_k3_is_an_unbiased_estimate_of_the_kl():
    torch.manual_seed(0)
    policy, reference = torch.randn(6).log_softmax(-1), torch.randn(6).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    assert torch.allclose((policy.exp() * kl_k3(policy, reference)).sum(), exact, atol=1e-6)


def test_loss_weights_sum_to_one_and_mean_what_they_say():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]]).bool()
    assert loss_weights(mask, "token").tolist() == [[0.25, 0.25, 0.25, 0.0], [0.0, 0.25, 0.0, 0.0]]
    torch.testing.assert_close(loss_weights(mask, "sequence").sum(1), torch.tensor([0.5, 0.5]))


def test_grpo_loss_by_hand():
    """Two tokens, ratios e^0.1 and 1, advantage 1; reference 0.2 below on the second."""
    new, old, ref = torch.tensor([[-0.9, -1.0]]), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-0.9, -1.2]])
    loss, stats = grpo_loss(new, old, ref, torch.ones(1), torch.full((1, 2), 0.5), **SETTINGS)
    surrogate = -(math.exp(0.1) + 1) / 2
    kl = (math.exp(-0.2) + 0.2 - 1) / 2
    assert loss.item() == pytest.approx(surrogate + 0.5 * kl, rel=1e-5)
    assert stats["policy_loss"].item() == pytest.approx(surrogate, rel=1e-5)
    assert stats["kl"].item() == pytest.approx(kl, rel=1e-4)
    assert stats["ratio_max"].item() == pytest.approx(math.exp(0.1), rel=1e-5)
    assert stats["clip_fraction"].item() == 0


def test_micro_batch_gradients_add_up_to_the_gradient_of_the_step():
    torch.manual_seed(0)
    new = torch.randn(5, 7).clamp(-2, 0).requires_grad_()
    old, ref, advantages = new.detach() + 0.1 * torch.randn(5, 7), torch.randn(5, 7), torch.randn(5)
    for how in ("token", "sequence"):
        weights = loss_weights(torch.rand(5, 7) > 0.4, how)
        full = torch.autograd.grad(grpo_loss(new, old, ref, advantages, weights, **SETTINGS)[0], new)[0]
        parts = torch.zeros_like(full)
        for rows in ([0, 3], [1, 2, 4]):
            loss, _ = grpo_loss(new[rows], old[rows], ref[rows], advantages[rows], weights[rows], **SETTINGS)
            parts += torch.autograd.grad(loss, new)[0]
        torch.testing.assert_close(parts, full)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_masked_values_that_are_not_finite_change_nothing(poison):
    new = torch.tensor([[-1.0, poison, -2.0]], requires_grad=True)
    old, ref = torch.tensor([[-1.1, poison, -2.0]]), torch.tensor([[-1.0, poison, -2.5]])
    weights = loss_weights(torch.tensor([[True, False, True]]), "token")
    loss, stats = grpo_loss(new, old, ref, torch.ones(1), weights, **SETTINGS)
    loss.backward()
    assert math.isfinite(loss.item())
    assert new.grad[0, 1].item() == 0
    assert new.grad.isfinite().all()
    assert all(value.isfinite() for value in stats.values())
