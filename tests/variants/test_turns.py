"""GiGPO's advantages of turns, against a loop over turns, and where they are laid."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
import torch
from helpers.sessions import collect, session_of, train_step
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.training import Rollouts
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.variants.turns import add_turn_advantages, turn_advantages

SEEN = st.lists(st.sampled_from(["Falcon", "Heron"]), max_size=3)


def trajectory_of(seen: list[str], n_tokens: int = 2) -> Trajectory:
    """A prompt, then turns of `n_tokens` tokens, each but the last answered with what was seen."""
    segments = [Segment("prompt", [1, 2, 3])]
    for text in [*seen, None]:
        segments.append(Segment("policy", [7] * n_tokens, [-0.5] * n_tokens, "a turn"))
        segments += [Segment("observation", [8, 9], text=text)] if text else []
    return Trajectory("question", segments)


def by_hand(rows: list[tuple[int, float, list[str]]], gamma: float, normalize_std: bool) -> list[list[float]]:
    """Each turn against every turn, of any row of its question, that stood before the same observations."""

    def returned(row: tuple[int, float, list[str]], t: int) -> float:
        return row[1] * gamma ** (len(row[2]) - t)

    result = []
    for row in rows:
        of_row = []
        for t in range(len(row[2]) + 1):
            peers = [
                returned(other, at)
                for other in rows
                for at in range(len(other[2]) + 1)
                if other[0] == row[0] and other[2][:at] == row[2][:t]
            ]
            scale = stdev(peers) + 1e-6 if normalize_std and len(peers) > 1 else 1.0
            of_row.append((returned(row, t) - fmean(peers)) / scale if len(peers) > 1 else 0.0)
        result.append(of_row)
    return result


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 1.0]), SEEN), min_size=1, max_size=6),
    st.sampled_from([1.0, 0.95, 0.5]),
    st.booleans(),
)
def test_turns_in_one_state_are_compared(rows, gamma, normalize_std):
    trajectories = [trajectory_of(seen) for _, _, seen in rows]
    rewards = torch.tensor([reward for _, reward, _ in rows])
    got = turn_advantages(trajectories, rewards, [group for group, _, _ in rows], gamma, normalize_std)
    for of_row, wanted in zip(got, by_hand(rows, gamma, normalize_std), strict=True):
        assert of_row == pytest.approx(wanted, rel=1e-3, abs=1e-3)


def test_the_shorter_way_to_a_right_answer_is_the_better_turn():
    trajectories = [trajectory_of(["Falcon"]), trajectory_of(["Falcon", "Heron"])]
    first, last = turn_advantages(trajectories, torch.ones(2), [0, 0])
    assert first[0] > 0 > last[0] and first[1] > 0 > last[1] and last[2] == 0  # nobody else came that far


@pytest.mark.parametrize("coef", [1.0, 0.5])
def test_a_turns_advantage_lies_on_its_tokens(coef):
    trajectories = [trajectory_of(["Falcon"], n_tokens=2), trajectory_of([], n_tokens=3)]
    rollouts = Rollouts(trajectories, rewards=[1.0, 0.0], group_ids=[4, 4])
    batch = build_batch(trajectories, rollouts.rewards, rollouts.group_ids, 0)
    laid = add_turn_advantages(rollouts, batch, coef=coef, gamma=1.0, normalize_std=False)
    assert laid.tolist() == [
        [0, 0, 0.5 * coef, 0.5 * coef, 0, 0, 0, 0],  # its second turn was alone in its state
        [0, 0, -0.5 * coef, -0.5 * coef, -0.5 * coef, 0, 0, 0],
    ]


def test_a_step_learns_from_both_advantages_and_tells_them(tmp_path):
    settings = {"turn_coef": 1.0, "reward": "em", "learning_rate": 1e-3, "drop_zero_variance": False}
    run = session_of(tmp_path, **settings)
    rollouts = collect(run, 1)
    assert any(len(trajectory.queries) for trajectory in rollouts.trajectories)
    train_step(run, 1)
    plain = session_of(tmp_path / "plain", **settings | {"turn_coef": 0.0})
    train_step(plain, 1)
    pairs = zip(run.policy.trainable(), plain.policy.trainable(), strict=True)
    assert any(not torch.equal(one, two) for one, two in pairs)
