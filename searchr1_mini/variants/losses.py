"""Terms of the loss that later papers put beside GRPO's clipped surrogate, or in its place. Per token, (B, T)."""

from __future__ import annotations

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import LARGEST_LOG_RATIO


def cispo(log_ratios: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float) -> tuple[Tensor, Tensor]:
    """Computes -sg(min(rho, 1 + eps_high)) A log rho: CISPO (MiniMax-M1, arXiv 2506.13585, equations 4 and 5).

    The weight is clipped, not the update: every token keeps a gradient, that of log pi. As in the paper's runs, nothing
    bounds the weight below. It writes log pi where this has log rho = log pi - log pi_old, of the same gradient.

    Args:
        log_ratios: (B, T).
        advantages: broadcastable to (B, T).
        clip_eps: not used.

    Returns:
        The loss per token (B, T), and where the weight was clipped (B, T) bool.
    """
    ratio = log_ratios.detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    weight = ratio.clamp(max=1 + clip_eps_high)
    return -weight * advantages * log_ratios, weight != ratio


def sapo_penalty(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, threshold: float = 1.0
) -> Tensor:
    """Computes max(0, log pi_old - log pi) where A > 0 and pi / pi_old < threshold: SAPO for search (arXiv 2603.10069).

    The KL of pi_old from pi, of one sample, on tokens of trajectories that were better than their group and that have
    become less likely. Of the paper only the abstract and others' summaries were at hand: they say which tokens are
    held ("positive tokens with low probabilities where the policy has shifted excessively"), but not the threshold.

    Args:
        logprobs, old_logprobs, advantages: (B, T).
        loss_mask: (B, T) bool.
        threshold: of the ratio, at most 1.
    """
    fall = (old_logprobs - logprobs) * loss_mask
    is_held = (advantages > 0) & ((-fall).detach().exp() < threshold)
    return torch.where(is_held, fall, 0.0)


def llds_penalty(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor) -> Tensor:
    """Computes max(0, log pi_old - log pi) where a trajectory that was no worse than its group lost likelihood.

    The likelihood-preserving regularizer LLDS (arXiv 2512.04220): it acts only on trajectories with A >= 0 whose
    log-likelihood fell as a whole (the response-level gate), and in them only on the tokens that fell.

    Args:
        logprobs, old_logprobs, advantages: (B, T); advantages of GRPO, one value a row (the options see to it).
        loss_mask: (B, T) bool.
    """
    fall = (old_logprobs - logprobs) * loss_mask
    is_kept = (advantages >= 0) & (fall.detach().sum(1, keepdim=True) > 0)
    return fall.clamp(min=0) * is_kept
