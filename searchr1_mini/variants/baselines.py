"""What a reward is compared with beyond its own group."""

from __future__ import annotations

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import group_advantages


def batch_advantages(rewards: Tensor, group_ids: Tensor, normalize_std: bool, within_groups: bool) -> Tensor:
    """Computes (r - mean) / (std + 1e-6) over all rollouts of the step: REINFORCE++ (arXiv 2501.03262, equation 10).

    The paper has the KL in the reward; here it is in the loss.

    Args:
        rewards: (N,).
        group_ids: (N,), equal within a group.
        normalize_std: divide.
        within_groups: take the mean of its group off each reward first (the paper's REINFORCE++ with a baseline).
    """
    if within_groups:
        rewards = group_advantages(rewards, group_ids, normalize_std=False)
    return group_advantages(rewards, torch.zeros_like(group_ids), normalize_std=normalize_std)
