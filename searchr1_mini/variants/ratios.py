"""The ratio of two policies in other forms: of a whole trajectory, and as a weight on what was sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import LARGEST_LOG_RATIO


def sequence_log_ratio(log_ratios: Tensor, loss_mask: Tensor) -> Tensor:
    """Computes log s_i, the mean of log rho_t over a trajectory's policy tokens (GSPO, arXiv 2507.18071).

    s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|) stands at every token of trajectory i.

    Args:
        log_ratios: (B, T), 0 where masked.
        loss_mask: (B, T) bool.
    """
    mean = log_ratios.sum(1, keepdim=True) / loss_mask.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratios)


def importance_weights(trainer_logprobs: Tensor, sampler_logprobs: Tensor, cap: float, mode: str) -> Tensor:
    """Weighs tokens by rho = pi_trainer / pi_sampler: corrects for a sampler that computes a little differently.

    `truncate`: min(rho, cap), truncated importance sampling (Ionides, 2008; Yao et al., "Your efficient RL framework
    secretly brings you off-policy RL training", 2025). `mask`: rho where 1 / cap <= rho <= cap, and 0 elsewhere, so
    that such a token is left out (the masking of IcePop, arXiv 2510.18855). Per token, without gradient.

    Raises:
        ValueError: an unknown mode.
    """
    rho = (trainer_logprobs - sampler_logprobs).detach().clamp(max=LARGEST_LOG_RATIO).exp()
    if mode == "truncate":
        return rho.clamp(max=cap)
    if mode == "mask":
        return torch.where((rho >= 1 / cap) & (rho <= cap), rho, 0.0)
    raise ValueError(f"unknown importance mode {mode!r}; it is truncate or mask")
