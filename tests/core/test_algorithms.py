"""Each equation against a hand-computed example or an obvious second implementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.algorithms import (
    clipped_surrogate,
    explained_variance,
    group_advantages,
    kl_penalty,
    loss_weights,
    policy_loss,
    token_rewards,
    whiten,
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


def test_zero_variance_groups_exclude_single_rollouts():
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
    value, clipped = clipped_surrogate(torch.tensor([[math.log(ratio)]]), torch.tensor([[advantage]]), 0.2, 0.3)
    assert value.item() == pytest.approx(loss, rel=1e-5)
    assert clipped.item() is is_clipped


@given(st.floats(-200, 0), st.floats(-200, 0))
def test_k3_is_finite_and_never_negative(logprob, ref_logprob):
    value = kl_penalty(torch.tensor(logprob), torch.tensor(ref_logprob), "k3").item()
    assert math.isfinite(value)
    assert value >= -1e-6


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_estimates_of_the_kl(estimator):
    torch.manual_seed(0)
    policy, reference = torch.randn(6).log_softmax(-1), torch.randn(6).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    assert torch.allclose((policy.exp() * kl_penalty(policy, reference, estimator)).sum(), exact, atol=1e-6)


@pytest.mark.parametrize(("estimator", "gradient"), [("k1", 1.0), ("k2", 25.0), ("k3", 1.0)])
def test_a_token_far_from_the_reference_is_pulled_back(estimator, gradient):
    logprob = torch.tensor(-0.5, requires_grad=True)
    kl_penalty(logprob, torch.tensor(-25.5), estimator).backward()
    assert logprob.grad.item() == pytest.approx(gradient)


def test_gradients_of_the_estimators_as_losses():
    """Under samples of pi, k1 as a loss has no expected gradient, k2 has that of the KL."""
    torch.manual_seed(0)
    logits, reference = torch.randn(6, dtype=torch.float64, requires_grad=True), torch.randn(6).double().log_softmax(-1)
    policy = logits.log_softmax(-1)
    probs = policy.detach().exp()
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    gradients = {
        name: torch.autograd.grad((probs * kl_penalty(policy, reference, name)).sum(), logits, retain_graph=True)[0]
        for name in ("k1", "k2", "k3")
    }
    torch.testing.assert_close(gradients["k1"], torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradients["k2"], exact)
    assert not torch.allclose(gradients["k3"], exact)


def test_loss_weights_sum_to_one_and_mean_what_they_say():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]]).bool()
    assert loss_weights(mask, "token").tolist() == [[0.25, 0.25, 0.25, 0.0], [0.0, 0.25, 0.0, 0.0]]
    torch.testing.assert_close(loss_weights(mask, "sequence").sum(1), torch.tensor([0.5, 0.5]))


def test_policy_loss_by_hand():
    """Two tokens, ratios e^0.1 and 1, advantage 1; reference 0.2 below on the second."""
    new, old, ref = torch.tensor([[-0.9, -1.0]]), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-0.9, -1.2]])
    loss, stats = policy_loss(new, old, torch.ones(1, 2), torch.full((1, 2), 0.5), ref_logprobs=ref, **SETTINGS)
    surrogate = -(math.exp(0.1) + 1) / 2
    kl = (math.exp(-0.2) + 0.2 - 1) / 2
    assert loss.item() == pytest.approx(surrogate + 0.5 * kl, rel=1e-5)
    assert stats["policy_loss"].item() == pytest.approx(surrogate, rel=1e-5)
    assert stats["kl"].item() == pytest.approx(kl, rel=1e-4)
    assert stats["ratio_max"].item() == pytest.approx(math.exp(0.1), rel=1e-5)
    assert stats["clip_fraction"].item() == 0


def test_without_a_reference_no_kl_is_told():
    new, weights = torch.tensor([[-0.9, -1.0]]), torch.full((1, 2), 0.5)
    _, stats = policy_loss(new, new - 0.1, torch.ones(1, 2), weights, **SETTINGS)
    assert "kl" not in stats and "approx_kl" in stats


def test_micro_batch_gradients_sum_to_the_gradient_of_the_step():
    torch.manual_seed(0)
    new = torch.randn(5, 7).clamp(-2, 0).requires_grad_()
    old, ref, advantages = new.detach() + 0.1 * torch.randn(5, 7), torch.randn(5, 7), torch.randn(5, 7)
    for how in ("token", "sequence", "constant"):
        weights = loss_weights(torch.rand(5, 7) > 0.4, how, constant=9)
        loss, _ = policy_loss(new, old, advantages, weights, ref_logprobs=ref, **SETTINGS)
        full = torch.autograd.grad(loss, new)[0]
        parts = torch.zeros_like(full)
        for rows in ([0, 3], [1, 2, 4]):
            pieces = (x[rows] for x in (new, old, advantages, weights))
            loss, _ = policy_loss(*pieces, ref_logprobs=ref[rows], **SETTINGS)
            parts += torch.autograd.grad(loss, new)[0]
        torch.testing.assert_close(parts, full)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_masked_values_that_are_not_finite_change_nothing(poison):
    new = torch.tensor([[-1.0, poison, -2.0]], requires_grad=True)
    old, ref = torch.tensor([[-1.1, poison, -2.0]]), torch.tensor([[-1.0, poison, -2.5]])
    weights = loss_weights(torch.tensor([[True, False, True]]), "token")
    loss, stats = policy_loss(new, old, torch.ones(1, 3), weights, ref_logprobs=ref, **SETTINGS)
    loss.backward()
    assert math.isfinite(loss.item())
    assert new.grad[0, 1].item() == 0
    assert new.grad.isfinite().all()
    assert all(value.isfinite() for value in stats.values())


def test_other_baselines_by_hand():
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 5.0]), torch.tensor([0, 0, 0, 1])
    assert group_advantages(rewards, groups, "leave-one-out").tolist() == [1.0, -0.5, -0.5, 5.0]
    assert group_advantages(rewards, groups, "none").tolist() == rewards.tolist()
    with pytest.raises(ValueError, match="leave-one-out"):
        group_advantages(rewards, groups, "mean")


def test_the_reward_lands_on_the_last_policy_token():
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), mask, None, 0.0)
    assert rewards.tolist() == [[0, 0, 1, 0], [0, 0, 0, 2], [0, 0, 0, 0]]
    with_kl = token_rewards(torch.tensor([1.0, 2.0, 3.0]), mask, torch.ones(3, 4), 0.5)
    assert with_kl.tolist() == [[-0.5, 0, 0.5, 0], [0, -0.5, -0.5, 1.5], [0, 0, 0, 0]]


def test_whitening_and_explained_variance_by_hand():
    mask = torch.tensor([[True, False, True], [True, False, False]])
    values = torch.tensor([[1.0, 99.0, 2.0], [3.0, 99.0, 99.0]])
    assert whiten(values, mask).tolist() == [[-1, 0, 0], [1, 0, 0]]
    assert explained_variance(values, values, mask).item() == 1
    assert explained_variance(torch.zeros(2, 3), values, mask).item() == 0
    assert explained_variance(-values, values, mask).item() == -3


@pytest.mark.parametrize("change", [60.0, 200.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_beyond_all_numbers_leaves_the_loss_finite(change, advantage):
    """exp(89) is inf in float32; one such token would throw the whole update away."""
    log_ratios = torch.tensor([[change, -change, 0.1]], requires_grad=True)
    loss, _ = clipped_surrogate(log_ratios, torch.tensor([[advantage]]), 0.2, 0.3)
    loss.sum().backward()
    assert loss.isfinite().all() and log_ratios.grad.isfinite().all()
    assert log_ratios.grad[0, 2].item() == pytest.approx(-advantage * math.exp(0.1))


@given(st.floats(-2, 2, width=32), st.integers(2, 8), st.sampled_from(["group", "leave-one-out"]))
def test_equal_rewards_teach_nothing_whatever_they_are(value, size, baseline):
    """Their mean is rounded, and what is left over must not be divided by a std of 0."""
    advantages = group_advantages(torch.full((size,), value), torch.zeros(size), baseline)
    assert advantages.tolist() == [0.0] * size
