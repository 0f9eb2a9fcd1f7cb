"""The loss-mask builder: trajectories -> one padded batch in which every token knows who wrote it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from searchr1_mini.core.trajectory import Trajectory

MOST_PADDING = 0.1  # share of a micro-batch


@dataclass
class Batch:
    """N trajectories, right-padded, so that causal attention needs no mask. Shifted once, here.

    `hidden[:, :-1]` predicts `targets`; every per-token tensor is (N, T-1) and aligned with its target.

    Attributes:
        input_ids: (N, T) long.
        position_ids: (N, T) long.
        lengths: (N,) long, tokens of each row.
        targets: (N, T-1) long, `input_ids` shifted by one.
        loss_mask: (N, T-1) bool, I(y_t) of the paper: True where the policy wrote the target.
        old_logprobs: (N, T-1) float32, log pi_old of the target at sampling time; 0 where there is none; nan on
            observation tokens that are trained on (no mask), to be filled from a forward before the update.
        group_ids: (N,) long.
        rewards: (N,) float32.
    """

    input_ids: Tensor
    position_ids: Tensor
    lengths: Tensor
    targets: Tensor
    loss_mask: Tensor
    old_logprobs: Tensor
    group_ids: Tensor
    rewards: Tensor

    def select(self, rows: Sequence[int] | Tensor) -> Batch:
        """Returns some rows, in that order, with the padding trimmed to the longest of them."""
        rows = torch.as_tensor(rows, dtype=torch.long, device=self.input_ids.device)
        width = int(self.lengths[rows].max())
        picked = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        for name in ("input_ids", "position_ids"):
            picked[name] = picked[name][:, :width]
        for name in ("targets", "loss_mask", "old_logprobs"):
            picked[name] = picked[name][:, : width - 1]
        return Batch(**picked)

    def to(self, device: torch.device) -> Batch:
        """Returns the same batch on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def build_batch(
    trajectories: Sequence[Trajectory],
    rewards: Sequence[float],
    group_ids: Sequence[int],
    pad_token_id: int,
    mask_observations: bool = True,
) -> Batch:
    """Lays trajectories side by side. The mask is read off the segments' kinds, never inferred from ids or text.

    Args:
        trajectories: N rollouts; the ids that were sampled are the ids that are trained on.
        rewards: N rewards.
        group_ids: N numbers, equal for the rollouts of one question in one step.
        pad_token_id: fills the right; a real token of the same id (EOS) keeps its place in the loss.
        mask_observations: False also trains on what the engine wrote: the paper's ablation (its section 5.4).
    """
    lengths = torch.tensor([len(trajectory.token_ids) for trajectory in trajectories])
    shape = (len(trajectories), int(lengths.max()))
    input_ids = torch.full(shape, pad_token_id)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    old_logprobs = torch.zeros(shape)
    for row, trajectory in enumerate(trajectories):
        at = 0
        for segment in trajectory.segments:
            span = slice(at, at + len(segment.token_ids))
            input_ids[row, span] = torch.tensor(segment.token_ids, dtype=torch.long)
            if segment.kind == "policy":
                loss_mask[row, span] = True
                old_logprobs[row, span] = torch.tensor(segment.logprobs, dtype=torch.float32)
            elif segment.kind == "observation" and not mask_observations:
                loss_mask[row, span] = True
                old_logprobs[row, span] = torch.nan
            at = span.stop
    return Batch(
        input_ids=input_ids,
        position_ids=torch.arange(shape[1]).expand(shape),
        lengths=lengths,
        targets=input_ids[:, 1:],
        loss_mask=loss_mask[:, 1:],
        old_logprobs=old_logprobs[:, 1:],
        group_ids=torch.tensor(group_ids, dtype=torch.long),
        rewards=torch.tensor(rewards, dtype=torch.float32),
    )


def micro_batches(lengths: Sequence[int], tokens_per_micro_batch: int) -> list[list[int]]:
    """Groups rows of similar length: rows x longest within the budget, with at most `MOST_PADDING` of padding.

    A row that is longer than the budget stands alone.
    """
    bins: list[list[int]] = []
    n_tokens = 0  # of the last bin, without padding
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        area = (len(bins[-1]) + 1) * lengths[row] if bins else math.inf
        n_tokens += lengths[row]
        if area > tokens_per_micro_batch or n_tokens < (1 - MOST_PADDING) * area:
            bins.append([])
            n_tokens = lengths[row]
        bins[-1].append(row)
    return bins


def mini_batches(group_ids: Sequence[int], n: int, generator: torch.Generator) -> list[list[int]]:
    """Splits the rows, shuffled, into `n` parts of nearly as many groups each; a group stays whole.

    With fewer groups than parts some parts are empty.
    """
    groups = sorted(set(group_ids))
    order = [groups[index] for index in torch.randperm(len(groups), generator=generator).tolist()]
    part_of = {group: position * n // len(order) for position, group in enumerate(order)}
    return [[row for row, group in enumerate(group_ids) if part_of[group] == part] for part in range(n)]
