"""The mathematics of GRPO, its relatives and PPO on tensors, one equation a function.

Per-token tensors are (B, T) and aligned with targets. What stands where `loss_mask` is False never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LogRatio = Callable[[Tensor, Tensor], Tensor]
Surrogate = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
Penalty = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

LARGEST_LOG_RATIO = 20.0  # exp(20) = 5e8: beyond it float32 sums lose everything else


def group_advantages(
    rewards: Tensor, group_ids: Tensor, baseline: str = "group", normalize_std: bool = True, eps: float = 1e-6
) -> Tensor:
    """Compares each rollout with the other rollouts of its question.

    `group`: A_i = (r_i - mean(r)) / (std(r) + eps) (GRPO, arXiv 2402.03300, section 4.1.2; without the division:
    Dr. GRPO, arXiv 2503.20783). `leave-one-out`: A_i = r_i - mean of the other r_j (RLOO, arXiv 2402.14740,
    equation 7). `none`: A_i = r_i (REINFORCE).

    Args:
        rewards: (N,).
        group_ids: (N,), equal within a group.
        normalize_std: divide; for `group` only. The std is the unbiased one, as in the public code.

    Returns:
        (N,). A group of one has nothing to be compared with and keeps its reward: REINFORCE.

    Raises:
        ValueError: an unknown baseline.
    """
    if baseline not in ("group", "leave-one-out", "none"):
        raise ValueError(f"unknown baseline {baseline!r}; it is group, leave-one-out or none")
    advantages = rewards.clone()
    for group in group_ids.unique() if baseline != "none" else ():
        rows = group_ids == group
        r, n = rewards[rows], int(rows.sum())
        if n == 1:
            continue
        if (r == r[0]).all():  # the mean of equal numbers is rounded, and a std of 0 would blow that up
            advantages[rows] = 0
        elif baseline == "leave-one-out":
            advantages[rows] = r - (r.sum() - r) / (n - 1)
        else:
            advantages[rows] = (r - r.mean()) / (r.std() + eps if normalize_std else 1.0)
    return advantages


def zero_variance(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Marks (N,) the rows of groups of two or more whose rewards are all equal: their advantages are 0."""
    flat = torch.zeros_like(rewards, dtype=torch.bool)
    for group in group_ids.unique():
        rows = group_ids == group
        flat[rows] = bool(rows.sum() > 1) and bool((rewards[rows] == rewards[rows][0]).all())
    return flat


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Estimates KL(pi || pi_ref) per token from samples of pi (Schulman, "Approximating KL divergence", 2020).

    With d = log pi_ref - log pi: `k1` is -d, unbiased and noisy, and as a loss its expected gradient is 0, so that it
    belongs in the reward; `k2` is d^2 / 2, biased, with the right gradient as a loss; `k3` is exp(d) - d - 1,
    unbiased and never negative (GRPO, equation 4); beyond d = 20, where exp would overflow, it has no gradient.

    Raises:
        ValueError: an unknown estimator.
    """
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        d = d.clamp(max=LARGEST_LOG_RATIO)
        return d.exp() - d - 1
    raise ValueError(f"unknown KL estimator {estimator!r}; it is k1, k2 or k3")


def token_rewards(rewards: Tensor, loss_mask: Tensor, kl: Tensor | None, kl_coef: float) -> Tensor:
    """Computes r_t = [t is the last policy token] r - kl_coef * KL_t (N, T): the KL in the reward (paper, equation 2).

    Args:
        rewards: (N,).
        loss_mask: (N, T) bool.
        kl: (N, T), or None for no KL.
    """
    positions = torch.arange(loss_mask.shape[1], device=loss_mask.device)
    last = torch.where(loss_mask, positions, -1).max(1, keepdim=True).values
    at_end = (positions == last) * rewards[:, None]
    return at_end if kl is None else at_end - kl_coef * torch.where(loss_mask, kl, 0.0)


def gae(
    rewards: Tensor, values: Tensor, loss_mask: Tensor, gamma: float = 1.0, gae_lambda: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Computes A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t (arXiv 1506.02438, eq. 16).

    t runs over policy tokens alone: an observation is a jump, not a step, so that its tokens carry neither reward, nor
    value, nor discount, whatever stands in their places. The value after the last policy token is 0.

    Args:
        rewards, values: (N, T).
        loss_mask: (N, T) bool.

    Returns:
        advantages and returns (advantage + value), both (N, T) and 0 where masked.
    """
    advantages = torch.zeros_like(values)
    next_value, next_advantage = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        is_policy = loss_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(is_policy, delta + gamma * gae_lambda * next_advantage, next_advantage)
        next_value = torch.where(is_policy, values[:, t], next_value)
        advantages[:, t] = torch.where(is_policy, next_advantage, 0.0)
    return advantages, advantages + torch.where(loss_mask, values, 0.0)


def whiten(advantages: Tensor, loss_mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Computes (A - mean) / std over the unmasked tokens of a step (N, T); masked tokens become 0."""
    chosen = advantages[loss_mask]
    if len(chosen) < 2:
        return torch.where(loss_mask, advantages, 0.0)
    return torch.where(loss_mask, (advantages - chosen.mean()) / (chosen.std() + eps), 0.0)


def explained_variance(values: Tensor, returns: Tensor, loss_mask: Tensor) -> Tensor:
    """Computes 1 - Var(R - V) / Var(R) over policy tokens: 1 is a perfect critic, 0 one that knows only the mean."""
    v, r = values[loss_mask], returns[loss_mask]
    if len(r) < 2 or r.var() == 0:
        return torch.zeros(())
    return 1 - (r - v).var() / r.var()


def clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float
) -> tuple[Tensor, Tensor]:
    """Computes -min(rho A, clip(rho, 1 - eps, 1 + eps_high) A) (PPO, arXiv 1707.06347, eq. 7; eps_high > eps: DAPO).

    Args:
        log_ratios: (B, T).
        advantages: broadcastable to (B, T).

    Returns:
        The loss per token (B, T), and where the clip took the gradient away (B, T) bool.
    """
    ratio = log_ratios.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_eps, 1 + clip_eps_high) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def loss_weights(loss_mask: Tensor, how: str, constant: int = 1) -> Tensor:
    """Returns the weights (B, T) of an optimizer step's tokens in its loss, 0 on masked tokens.

    `token`: every policy token counts the same, mask / sum(mask) (DAPO, equation 8). `sequence`: every trajectory
    counts the same, mask / (B * tokens of its row) (GRPO, equation 3). `constant`: mask / (B * constant), which neither
    favors short right answers nor long wrong ones (Dr. GRPO, arXiv 2503.20783, section 3.1). Computed once for the
    whole step, so that the gradients of its micro-batches add up to exactly that of the step.

    Raises:
        ValueError: `how` is none of these.
    """
    mask = loss_mask.float()
    if how == "token":
        return mask / mask.sum().clamp(min=1)
    if how == "sequence":
        return mask / (len(mask) * mask.sum(1, keepdim=True).clamp(min=1))
    if how == "constant":
        return mask / (len(mask) * constant)
    raise ValueError(f"unknown loss aggregation {how!r}; it is token, sequence or constant")


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_eps: float,
    clip_eps_high: float,
    importance: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    ratio: LogRatio | None = None,
    surrogate: Surrogate = clipped_surrogate,
    penalties: Mapping[str, tuple[float, Penalty]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sums weight * (surrogate + kl_coef KL - entropy_coef H + penalties) over tokens, with the paper's mask.

    With a reference and KL in the loss this is GRPO's equation 3; without, PPO's equation 7.

    Args:
        logprobs, old_logprobs, advantages, weights: (B, T).
        ratio: of log pi - log pi_old and mask, both (B, T), what stands for log rho_t in the place of the first.
        surrogate: takes and returns what `clipped_surrogate` does.
        penalties: name -> coefficient, and a function of log-probs, old ones, advantages and mask to (B, T).
        importance: (B, T) factors on the surrogate, see variants/ratios.py.
        ref_logprobs: (B, T); no reference, no KL term.
        entropy: (B, T) nats.

    Returns:
        The loss, and weighted sums for the log: `policy_loss`, `clip_fraction`, `kl` (to the reference, if there is
        one), `approx_kl` (to the policy that sampled), each penalty, and the largest ratio `ratio_max`. Tokens of
        weight 0 are taken out before any arithmetic: their gradient is 0 even where their values are not finite.
    """
    is_in = weights > 0
    zero = torch.zeros_like(weights)
    new, old = torch.where(is_in, logprobs, zero), torch.where(is_in, old_logprobs, zero)
    ratios = ratio(new - old, is_in) if ratio else new - old
    per_token, is_clipped = surrogate(ratios, advantages, clip_eps, clip_eps_high)
    if importance is not None:
        per_token = per_token * torch.where(is_in, importance, zero)
    of_policy = (weights * per_token).sum()
    kl = zero.sum()
    if ref_logprobs is not None:
        kl = (weights * kl_penalty(new, torch.where(is_in, ref_logprobs, zero), kl_estimator)).sum()
    loss = of_policy + kl_coef * kl
    if entropy_coef:
        loss = loss - entropy_coef * (weights * torch.where(is_in, entropy, zero)).sum()
    sums = {}
    for name, (coefficient, penalty) in (penalties or {}).items():
        sums[name] = (weights * penalty(new, old, advantages, is_in)).sum()
        loss = loss + coefficient * sums[name]
    stats = sums | {
        "policy_loss": of_policy,
        "clip_fraction": (weights * is_clipped).sum(),
        "approx_kl": (weights * kl_penalty(old, new, "k3")).sum(),
        "ratio_max": torch.where(is_in, ratios.exp(), zero).max(),
    }
    if ref_logprobs is not None:  # a KL that nobody measured is not 0
        stats["kl"] = kl
    return loss, {name: value.detach() for name, value in stats.items()}


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, value_clip: float) -> Tensor:
    """Sums weight * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, all (B, T), as in PPO's public code.

    The clip keeps one step's update from carrying a value further than c = `value_clip` towards its return.
    """
    is_in = weights > 0
    v, old, r = (torch.where(is_in, x, torch.zeros_like(weights)) for x in (values, old_values, returns))
    clipped = old + (v - old).clamp(-value_clip, value_clip)
    return (weights * torch.maximum((v - r).square(), (clipped - r).square())).sum() / 2
