"""Ratios of whole trajectories, weights on what was sampled, and the penalty of overlong rollouts, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.ragged import ragged
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.algorithms import loss_weights, policy_loss
from searchr1_mini.variants.ratios import importance_weights, sequence_log_ratio
from searchr1_mini.variants.rewards import soft_overlong


def test_gspo_with_a_sequence_mean_is_the_sequence_objective():
    """Sum over tokens of s_i A_i / (B |y_i|) = mean over trajectories of min(s_i A_i, clip(s_i) A_i)."""
    torch.manual_seed(0)
    mask = torch.rand(4, 6) > 0.3
    new, old, advantages = -torch.rand(4, 6), -torch.rand(4, 6), torch.randn(4)
    weights = loss_weights(mask, "sequence")
    loss, _ = policy_loss(
        new, old, advantages[:, None].expand(4, 6), weights, clip_eps=0.1, clip_eps_high=0.1, ratio=sequence_log_ratio
    )
    expected = 0.0
    for row in range(4):
        s = math.exp(sum((new[row] - old[row])[mask[row]].tolist()) / int(mask[row].sum()))
        expected -= min(s * advantages[row].item(), min(max(s, 0.9), 1.1) * advantages[row].item()) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "expected"), [("truncate", [1.0, 2.0, math.exp(-1), 1.5]), ("mask", [1.0, 0.0, 0.0, 1.5])]
)
def test_importance_weights_beyond_their_cap(mode, expected):
    trainer, sampler = torch.tensor([-1.0, -1.0, -2.0, math.log(0.6)]), torch.tensor([-1.0, -3.0, -1.0, math.log(0.4)])
    weights = importance_weights(trainer.requires_grad_(), sampler, 2.0, mode)
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert not weights.requires_grad  # a weight, not a second way for the gradient


@given(ragged(), st.sampled_from([1.1, 2.0, 5.0]), st.sampled_from(["truncate", "mask"]))
def test_importance_weights_are_a_loop_over_tokens(rows, cap, mode):
    """Of ragged batches, alone and as factors of the loss; what is not the policy's may be anything."""
    x = rows.tensors

    def weight(t: dict[str, float]) -> float:
        rho = math.exp(t["new"] - t["old"])
        return min(rho, cap) if mode == "truncate" else rho if 1 / cap <= rho <= cap else 0.0

    weights = importance_weights(x["new"], x["old"], cap, mode)
    wanted = [weight(t) for row in rows.tokens for t in row]
    assert weights[rows.mask].tolist() == pytest.approx(wanted, rel=1e-6)
    how = {"clip_eps": 0.2, "clip_eps_high": 0.2, "importance": weights}
    loss, _ = policy_loss(x["new"], x["new"], x["advantage"], loss_weights(rows.mask, "token").double(), **how)
    advantages = [t["advantage"] for row in rows.tokens for t in row]
    total = sum(rho * advantage for rho, advantage in zip(wanted, advantages, strict=True))
    assert loss.item() == pytest.approx(-total / len(wanted), rel=1e-5, abs=1e-6)


def test_the_overlong_penalty_by_hand():
    assert soft_overlong(torch.tensor([10, 80, 90, 100, 130]), 100, 20).tolist() == [0, 0, -0.5, -1, -1]
