"""The mathematics of GRPO on tensors, one equation a function. Per-token tensors are (B, T), aligned with targets."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0  # exp(20) = 5e8: beyond it float32 sums lose everything else


def group_advantages(rewards: Tensor, group_ids: Tensor, normalize_std: bool = True, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + eps) over the rollouts of one question (GRPO, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: (N,).
        group_ids: (N,), equal within a group.
        normalize_std: False leaves the division out (Dr. GRPO, arXiv 2503.20783).

    Returns:
        (N,). The std is the unbiased one, as in the public code. A group of one keeps its reward: REINFORCE.
    """
    advantages = torch.empty_like(rewards)
    for group in group_ids.unique():
        rows = group_ids == group
        r = rewards[rows]
        if len(r) == 1:
            advantages[rows] = r
        else:
            scale = r.std() + eps if normalize_std else 1.0
            advantages[rows] = (r - r.mean()) / scale
    return advantages


def zero_variance(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """(N,) bool: rows of groups of two or more whose rewards are all equal, and whose advantages are therefore 0."""
    flat = torch.zeros_like(rewards, dtype=torch.bool)
    for group in group_ids.unique():
        rows = group_ids == group
        flat[rows] = bool(rows.sum() > 1) and bool((rewards[rows] == rewards[rows][0]).all())
    return flat


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(pi || pi_ref) per token, k3: exp(d) - d - 1 with d = log pi_ref - log pi (GRPO, equation 4; Schulman, 2020).

    Never negative, and unbiased under samples of pi. d is clamped before exp, which would otherwise overflow.
    """
    d = (ref_logprobs - logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return d.exp() - d - 1


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float
) -> tuple[Tensor, Tensor]:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps_high) A), rho = pi / pi_old (PPO, arXiv 1707.06347, equation 7).

    Args:
        logprobs, old_logprobs: (B, T).
        advantages: broadcastable to (B, T).

    Returns:
        The loss per token (B, T), and where the clip took the gradient away (B, T) bool.
    """
    ratio = (logprobs - old_logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_eps, 1 + clip_eps_high) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def loss_weights(loss_mask: Tensor, how: str) -> Tensor:
    """Weights (B, T) of an optimiser step's tokens in its mean; they sum to 1, and are 0 on masked tokens.

    `token`: every policy token counts the same, mask / sum(mask). `sequence`: every trajectory counts the same,
    mask / (B * tokens of its row), as in GRPO's equation 3. Computed once for the whole step, so that the gradients of
    its micro-batches add up to exactly that of the step.

    Raises:
        ValueError: `how` is neither.
    """
    mask = loss_mask.float()
    if how == "token":
        return mask / mask.sum().clamp(min=1)
    if how == "sequence":
        return mask / (len(mask) * mask.sum(1, keepdim=True).clamp(min=1))
    raise ValueError(f"unknown loss aggregation {how!r}; it is token or sequence")


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_eps: float,
    clip_eps_high: float,
    kl_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over tokens of weight * (clipped surrogate + kl_coef * k3): GRPO's equation 3 with the paper's mask I(y_t).

    Args:
        logprobs, old_logprobs, ref_logprobs, weights: (B, T); no reference, no KL term.
        advantages: (B,), one for every token of a trajectory.

    Returns:
        The loss, and weighted sums for the log: `policy_loss`, `clip_fraction`, `kl` (to the reference), `approx_kl`
        (to the policy that sampled), and the largest ratio `ratio_max`. Tokens of weight 0 are taken out before any
        arithmetic: they get a gradient of exactly 0 even where their values are not finite.
    """
    is_in = weights > 0
    zero = torch.zeros_like(weights)
    new = torch.where(is_in, logprobs, zero)
    old = torch.where(is_in, old_logprobs, zero)
    per_token, is_clipped = clipped_surrogate(new, old, advantages[:, None], clip_eps, clip_eps_high)
    policy_loss = (weights * per_token).sum()
    kl = zero.sum()
    if ref_logprobs is not None:
        kl = (weights * kl_k3(new, torch.where(is_in, ref_logprobs, zero))).sum()
    with torch.no_grad():
        stats = {
            "policy_loss": policy_loss.detach(),
            "kl": kl.detach(),
            "clip_fraction": (weights * is_clipped).sum(),
            "approx_kl": (weights * kl_k3(old, new)).sum(),
            "ratio_max": torch.where(is_in, (new - old).exp(), zero).max(),
        }
    return policy_loss + kl_coef * kl, stats
