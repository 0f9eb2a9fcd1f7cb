"""Every advantage, estimator and loss against an obvious loop over Python numbers, on random ragged batches with masks.

Then: gradients against finite differences, and an observation put anywhere into a trajectory changes nothing.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
import torch
from helpers.ragged import Rows, compare_with_differences, lay_out, ragged, seeded_rows
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.algorithms import (
    explained_variance,
    gae,
    group_advantages,
    kl_penalty,
    loss_weights,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from searchr1_mini.variants.losses import llds_penalty
from searchr1_mini.variants.ratios import sequence_log_ratio


def per_token(rows: Rows, values: list[list[float]]) -> torch.Tensor:
    """Numbers for policy tokens, laid out as (N, T), 0 elsewhere."""
    out = torch.zeros(rows.mask.shape, dtype=torch.float64)
    for i, row in enumerate(values):
        out[i, rows.mask[i]] = torch.tensor(row, dtype=torch.float64)
    return out


def kl_by_hand(new: float, ref: float, estimator: str) -> float:
    ratio = math.exp(ref - new)
    return {"k1": math.log(1 / ratio), "k2": 0.5 * math.log(ratio) ** 2, "k3": ratio - 1 - math.log(ratio)}[estimator]


@given(ragged(), st.sampled_from(["k1", "k2", "k3"]))
def test_kl(rows, estimator):
    expected = per_token(rows, [[kl_by_hand(t["new"], t["ref"], estimator) for t in row] for row in rows.tokens])
    got = kl_penalty(rows.tensors["new"], rows.tensors["ref"], estimator)
    torch.testing.assert_close(torch.where(rows.mask, got, 0.0), expected)


def gae_by_hand(rows: Rows, gamma: float, gae_lambda: float, kl_coef: float) -> tuple[list, list]:
    """A_t as the sum over later steps of (gamma lambda)^l delta_{t+l}, written out."""
    advantages, returns = [], []
    for row, reward in zip(rows.tokens, rows.rewards, strict=True):
        n = len(row)
        r = [-kl_coef * kl_by_hand(t["old"], t["ref"], "k1") for t in row]
        r[-1] += reward
        v = [t["value"] for t in row] + [0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        a = [sum((gamma * gae_lambda) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
        advantages.append(a)
        returns.append([x + y for x, y in zip(a, v, strict=False)])
    return advantages, returns


def ppo_targets(rows: Rows, gamma: float, gae_lambda: float, kl_coef: float):
    kl = kl_penalty(rows.tensors["old"], rows.tensors["ref"], "k1")
    rewards = token_rewards(torch.tensor(rows.rewards, dtype=torch.float64), rows.mask, kl, kl_coef)
    return gae(rewards, rows.tensors["value"], rows.mask, gamma, gae_lambda)


@given(ragged(), st.sampled_from([1.0, 0.9]), st.sampled_from([1.0, 0.95, 0.0]), st.sampled_from([0.0, 0.1]))
def test_gae_with_the_kl_in_the_reward(rows, gamma, gae_lambda, kl_coef):
    advantages, returns = ppo_targets(rows, gamma, gae_lambda, kl_coef)
    expected = gae_by_hand(rows, gamma, gae_lambda, kl_coef)
    torch.testing.assert_close(advantages, per_token(rows, expected[0]))
    torch.testing.assert_close(returns, per_token(rows, expected[1]))


@given(ragged())
def test_whitening(rows):
    numbers = [t["advantage"] for row in rows.tokens for t in row]
    if len(numbers) < 2 or stdev(numbers) < 1e-6:
        return
    mean, std = fmean(numbers), stdev(numbers)
    expected = per_token(rows, [[(t["advantage"] - mean) / std for t in row] for row in rows.tokens])
    torch.testing.assert_close(whiten(rows.tensors["advantage"], rows.mask), expected, atol=1e-6, rtol=1e-5)


@given(ragged())
def test_explained_variance(rows):
    returns = [t["advantage"] for row in rows.tokens for t in row]
    rest = [t["advantage"] - t["value"] for row in rows.tokens for t in row]
    if len(returns) < 2 or stdev(returns) < 1e-3:
        return
    got = explained_variance(rows.tensors["value"], rows.tensors["advantage"], rows.mask)
    assert got.item() == pytest.approx(1 - stdev(rest) ** 2 / stdev(returns) ** 2, rel=1e-6, abs=1e-9)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=9),
    st.sampled_from(["group", "leave-one-out", "none"]),
    st.booleans(),
)
def test_group_advantages(members, baseline, normalize_std):
    expected = []
    for index, (group, reward) in enumerate(members):
        others = [r for other, (g, r) in enumerate(members) if g == group and other != index]
        everyone = [*others, reward]
        if baseline == "none" or not others:
            expected.append(reward)
        elif baseline == "leave-one-out":
            expected.append(reward - fmean(others))
        else:
            scale = stdev(everyone) + 1e-6 if normalize_std else 1.0
            expected.append((reward - fmean(everyone)) / scale)
    groups, rewards = zip(*members, strict=True)
    got = group_advantages(torch.tensor(rewards).double(), torch.tensor(groups), baseline, normalize_std)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def weights_by_hand(rows: Rows, how: str) -> list[float]:
    """One weight for every token of a row."""
    n_rows, n_tokens = len(rows.tokens), sum(map(len, rows.tokens))
    options = {"token": lambda row: 1 / n_tokens, "sequence": lambda row: 1 / n_rows / len(row)}
    options["constant"] = lambda row: 1 / n_rows / 7
    return [options[how](row) for row in rows.tokens]


SETTINGS = {"clip_eps": 0.2, "clip_eps_high": 0.3, "kl_coef": 0.5, "entropy_coef": 0.1}
SETTINGS |= {"penalties": {"llds": (0.4, llds_penalty)}}


RATIOS = {"token": None, "sequence": sequence_log_ratio}


def loss_by_hand(rows: Rows, aggregation: str, ratio: str, estimator: str) -> float:
    total = 0.0
    for row, weight in zip(rows.tokens, weights_by_hand(rows, aggregation), strict=True):
        falls = [t["old"] - t["new"] for t in row]
        for t, fall in zip(row, falls, strict=True):
            rho = math.exp(t["new"] - t["old"] if ratio == "token" else -fmean(falls))
            surrogate = min(rho * t["advantage"], min(max(rho, 0.8), 1.3) * t["advantage"])
            total -= weight * t["importance"] * surrogate
            total += weight * 0.5 * kl_by_hand(t["new"], t["ref"], estimator)
            total -= weight * 0.1 * t["entropy"]
            if t["advantage"] >= 0 and sum(falls) > 0:
                total += weight * 0.4 * max(0.0, fall)
    return total


def loss_of(rows: Rows, aggregation: str, ratio: str, estimator: str, new: torch.Tensor | None = None) -> torch.Tensor:
    x = rows.tensors
    weights = loss_weights(rows.mask, aggregation, constant=7).double()
    return policy_loss(
        x["new"] if new is None else new, x["old"], x["advantage"], weights, ratio=RATIOS[ratio],
        importance=x["importance"], ref_logprobs=x["ref"], kl_estimator=estimator, entropy=x["entropy"], **SETTINGS,
    )[0]  # fmt: skip


shapes = (
    st.sampled_from(["token", "sequence", "constant"]),
    st.sampled_from(["token", "sequence"]),
    st.sampled_from(["k1", "k2", "k3"]),
)


@given(ragged(), *shapes)
def test_policy_loss(rows, aggregation, ratio, estimator):
    expected = loss_by_hand(rows, aggregation, ratio, estimator)
    assert loss_of(rows, aggregation, ratio, estimator).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(ragged(), st.sampled_from(["token", "sequence"]), st.floats(0.1, 1))
def test_value_loss(rows, aggregation, clip):
    total = 0.0
    for row, weight in zip(rows.tokens, weights_by_hand(rows, aggregation), strict=True):
        for t in row:
            v, old, target = t["value"], t["old_value"], t["advantage"]
            clipped = min(max(v, old - clip), old + clip)
            total += weight * max((v - target) ** 2, (clipped - target) ** 2) / 2
    weights = loss_weights(rows.mask, aggregation).double()
    got = value_loss(rows.tensors["value"], rows.tensors["old_value"], rows.tensors["advantage"], weights, clip)
    assert got.item() == pytest.approx(total, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradients_of_the_policy_loss_are_finite_differences(aggregation, ratio, estimator):
    """Central differences in float64; the seed keeps every ratio away from the corners of the clip."""
    rows = seeded_rows()
    new = rows.tensors["new"].clone().requires_grad_()
    loss_of(rows, aggregation, ratio, estimator, new).backward()
    compare_with_differences(rows, new, lambda x: loss_of(rows, aggregation, ratio, estimator, x))


def test_gradients_of_the_value_loss_are_finite_differences():
    rows = seeded_rows()
    weights = loss_weights(rows.mask, "token").double()

    def loss(values: torch.Tensor) -> torch.Tensor:
        return value_loss(values, rows.tensors["old_value"], rows.tensors["advantage"], weights, 0.5)

    values = rows.tensors["value"].clone().requires_grad_()
    loss(values).backward()
    compare_with_differences(rows, values, loss)


@given(ragged(), st.data())
def test_observations_change_nothing_for_the_policy_tokens(rows, data):
    """GAE, whitening, KL and losses of the policy tokens, with other gaps between them and other rubbish inside."""
    gaps = [[data.draw(st.integers(0, 3)) for _ in row] for row in rows.tokens]
    other = lay_out(rows.tokens, gaps, rows.rewards)
    for how in ("token", "sequence", "constant"):
        for ratio in ("token", "sequence"):
            torch.testing.assert_close(loss_of(rows, how, ratio, "k3"), loss_of(other, how, ratio, "k3"))
    for kl_coef in (0.0, 0.1):
        before, after = ppo_targets(rows, 0.9, 0.95, kl_coef), ppo_targets(other, 0.9, 0.95, kl_coef)
        for one, two in zip(before, after, strict=True):
            torch.testing.assert_close(one[rows.mask], two[other.mask])
        torch.testing.assert_close(whiten(before[0], rows.mask)[rows.mask], whiten(after[0], other.mask)[other.mask])
        losses = [
            value_loss(r.tensors["value"], r.tensors["old_value"], t[1], loss_weights(r.mask, "token").double(), 0.5)
            for r, t in ((rows, before), (other, after))
        ]
        torch.testing.assert_close(*losses)
