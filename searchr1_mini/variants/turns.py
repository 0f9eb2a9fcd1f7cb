"""An advantage for each turn (GiGPO): turns that were taken in the same state are compared with each other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import group_advantages
from searchr1_mini.core.batch import Batch
from searchr1_mini.core.training import Rollouts
from searchr1_mini.core.trajectory import Trajectory


def states(trajectory: Trajectory) -> list[Hashable]:
    """Lists what stood before each policy turn: everything that the engine had shown, in order.

    A state of GiGPO is the environment's, without what the policy thought on the way to it.
    """
    shown: list[str] = []
    before: list[Hashable] = []
    for segment in trajectory.segments:
        if segment.kind == "policy":
            before.append(tuple(shown))
        elif segment.kind == "observation":
            shown.append(segment.text)
    return before


def turn_advantages(
    trajectories: Sequence[Trajectory],
    rewards: Tensor,
    group_ids: Sequence[int],
    gamma: float = 0.95,
    normalize_std: bool = True,
) -> list[list[float]]:
    """Computes A^S of every turn (GiGPO, arXiv 2505.10978, its step-level advantage).

    The return of turn t of n is gamma^(n - 1 - t) r. Turns of one question that were taken in one state (an anchor
    state) are a group, and are compared as GRPO compares rollouts. A turn whose state nobody else came to gets 0.

    Args:
        trajectories: N rollouts.
        rewards: (N,).
        group_ids: N numbers of the questions.
        gamma: discount per turn.

    Returns:
        N lists, a number for each policy turn.
    """
    keys, returns = [], []
    before = [states(trajectory) for trajectory in trajectories]
    for turns, group, value in zip(before, group_ids, rewards.tolist(), strict=True):
        keys += [(group, state) for state in turns]
        returns += [value * gamma ** (len(turns) - 1 - t) for t in range(len(turns))]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    anchors = torch.tensor([number_of[key] for key in keys], dtype=torch.long)
    advantages = group_advantages(torch.tensor(returns), anchors, "group", normalize_std)
    advantages[torch.bincount(anchors)[anchors] == 1] = 0.0  # a group of one keeps its reward in `group_advantages`
    of_turns = iter(advantages.tolist())
    return [[next(of_turns) for _ in turns] for turns in before]


def add_turn_advantages(rollouts: Rollouts, batch: Batch, *, coef: float, gamma: float, normalize_std: bool) -> Tensor:
    """Lays coef * A^S on the tokens of each turn; GiGPO adds it to the advantage of the whole trajectory.

    Args:
        rollouts: N of a step.
        batch: built from them.

    Returns:
        (N, T-1), 0 where the policy did not write.
    """
    of_turns = turn_advantages(rollouts.trajectories, batch.rewards, rollouts.group_ids, gamma, normalize_std)
    laid = torch.zeros(batch.input_ids.shape)
    for row, (trajectory, values) in enumerate(zip(rollouts.trajectories, of_turns, strict=True)):
        at, left = 0, iter(values)
        for segment in trajectory.segments:
            if segment.kind == "policy":
                laid[row, at : at + len(segment.token_ids)] = coef * next(left)
            at += len(segment.token_ids)
    return laid[:, 1:] * batch.loss_mask
