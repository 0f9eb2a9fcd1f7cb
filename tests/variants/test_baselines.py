"""REINFORCE++'s advantages against a loop over rollouts."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
import torch
from helpers.sessions import collect, session_of, train_step
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.variants.baselines import batch_advantages

MEMBERS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=9)


def by_hand(members: list[tuple[int, float]], normalize_std: bool, within_groups: bool) -> list[float]:
    """Each reward, less its group's mean where that is asked for and there is a group, against all of them."""
    values = []
    for group, reward in members:
        own = [r for g, r in members if g == group]
        values.append(reward - fmean(own) if within_groups and len(own) > 1 else reward)
    scale = stdev(values) + 1e-6 if normalize_std else 1.0
    return [(value - fmean(values)) / scale for value in values]


@given(MEMBERS, st.booleans(), st.booleans())
def test_rewards_are_compared_over_the_step(members, normalize_std, within_groups):
    groups, rewards = (torch.tensor(column) for column in zip(*members, strict=True))
    got = batch_advantages(rewards.double(), groups, normalize_std, within_groups)
    wanted = torch.tensor(by_hand(members, normalize_std, within_groups), dtype=torch.float64)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("baseline", ["batch", "group-batch"])
def test_a_step_of_reinforce_plus_plus(baseline, tmp_path):
    """Against the step a group of equal rewards teaches too, so that it is kept where the baseline is the step's."""
    run = session_of(tmp_path, baseline=baseline)
    rollouts = collect(run, 1)
    assert run.config.objective.drop_zero_variance == (baseline == "group-batch")
    for options in ({"baseline": "none"}, {"turn_coef": 1.0}, {"llds_coef": 0.1}):  # equal rewards teach there too
        assert not resolve(make(TrainConfig, **options)).objective.drop_zero_variance
    logged = train_step(run, 1)
    assert logged["grad_norm"] > 0 and len(set(rollouts.rewards)) > 1
    assert (logged["trained_on"] == 1) == (baseline == "batch")
