"""What a step learns from its rollouts, computed once, before the weights move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import explained_variance, gae, kl_penalty, token_rewards, whiten
from searchr1_mini.core.batch import Batch, mini_batches
from searchr1_mini.core.config import ObjectiveConfig, OptimizationConfig, PPOConfig
from searchr1_mini.core.critic import Critic
from searchr1_mini.core.logprobs import token_logprobs
from searchr1_mini.core.micro_batches import MicroBatches
from searchr1_mini.core.packing import batch_hidden
from searchr1_mini.core.policy import Policy


@dataclass
class Experience:
    """A batch and all that its update needs. Tensors are (N, T-1).

    Attributes:
        batch: N trajectories; its `old_logprobs` are those of `old_and_sampled`.
        advantages: of each policy token; GRPO's are equal along a row.
        sampled_logprobs: what the sampler gave, to be compared with the update's own forward.
        ref_logprobs: of the reference, for a KL term in the loss.
        importance: importance weights of the trainer over the sampler.
        values, returns: of PPO's critic.
        weights, value_weights: what each token counts in the losses of its optimizer step, see `loss_weights`.
        metrics: of what was prepared, for the log.
    """

    batch: Batch
    advantages: Tensor | None = None
    sampled_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    importance: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    weights: Tensor | None = None
    value_weights: Tensor | None = None
    metrics: dict[str, float] | None = None

    def select(self, rows: list[int]) -> Experience:
        """Returns some rows, with the padding trimmed to the longest of them."""
        batch = self.batch.select(rows)
        width = batch.targets.shape[1]
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("batch", "metrics")}
        return Experience(batch, **{name: None if t is None else t[rows, :width] for name, t in tensors.items()})


def policy_logprobs(
    policy: Policy, batch: Batch, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Computes log-probs and entropies (B, T-1) of the targets; 0 where the loss mask is False."""
    hidden = batch_hidden(policy, batch)[:, :-1]
    return token_logprobs(
        hidden, policy.lm_head, batch.targets, batch.loss_mask, temperature, entropy_gradient=entropy_gradient
    )


def all_logprobs(policy: Policy, batch: Batch, temperature: float, micro_batches: MicroBatches) -> Tensor:
    """Computes log-probs (N, T-1) of a whole batch under the weights as they are now, in micro-batches."""
    return micro_batches.whole(batch, lambda part: policy_logprobs(policy, part, temperature)[0])


def all_values(critic: Critic, batch: Batch, micro_batches: MicroBatches) -> Tensor:
    """Computes V (N, T-1) of a whole batch under the critic as it is now, in micro-batches."""
    with critic.active():
        return micro_batches.whole(batch, lambda part: critic.values(part.input_ids, part.position_ids))


def update_logprobs(
    policy: Policy, batch: Batch, temperature: float, micro_batches: MicroBatches, parts: Sequence[list[int]]
) -> Tensor:
    """Computes log-probs (N, T-1) under the present weights, in 16 bits rounded as in the update of these parts."""
    if policy.dtype == torch.float32:
        return all_logprobs(policy, batch, temperature, micro_batches)
    out = torch.zeros_like(batch.old_logprobs)
    with policy.training():
        for rows in parts:
            part = batch.select(rows)
            out[rows, : part.targets.shape[1]] = all_logprobs(policy, part, temperature, micro_batches)
    return out


@torch.no_grad()
def prepare_grpo(
    policy: Policy,
    batch: Batch,
    advantages: Tensor,
    objective: ObjectiveConfig,
    temperature: float,
    micro_batches: MicroBatches,
    passes: Sequence[Sequence[list[int]]],
    needs_old: bool,
) -> Experience:
    """Prepares GRPO's update: pi_old and the log-probs of the reference (GRPO, equation 3).

    Args:
        batch: N trajectories.
        advantages: (N, T-1) of each token, or wider.
        passes: the rows of each optimizer step of each pass.
        needs_old: whether pi_old is needed even where there is one update alone, see `old_and_sampled`.
    """
    needs_old = needs_old or sum(map(len, passes)) > 1
    how = temperature, micro_batches, passes[0]
    batch, _, sampled = old_and_sampled(policy, batch, objective, *how, needs_old=needs_old)
    advantages = advantages[:, : batch.targets.shape[1]].to(policy.device)
    reference = reference_logprobs(policy, batch, objective, *how)
    return Experience(batch, advantages, sampled, reference, metrics={})


@torch.no_grad()
def prepare_ppo(
    policy: Policy,
    critic: Critic,
    batch: Batch,
    ppo: PPOConfig,
    objective: ObjectiveConfig,
    temperature: float,
    micro_batches: MicroBatches,
    passes: Sequence[Sequence[list[int]]],
    needs_old: bool = True,
) -> Experience:
    """Computes values, rewards per token with the KL inside (paper, equation 2), GAE, whitening.

    The arguments are those of `prepare_grpo`; pi_old is always needed, for the KL.
    """
    how = temperature, micro_batches, passes[0]
    batch, old, sampled = old_and_sampled(policy, batch, objective, *how)
    mask = batch.loss_mask
    reference = reference_logprobs(policy, batch, objective, *how)
    kl = None if reference is None else kl_penalty(old, reference, objective.kl_estimator)
    values = all_values(critic, batch, micro_batches)
    rewards = token_rewards(batch.rewards, mask, kl, objective.kl_coef)
    advantages, returns = gae(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
    metrics = {
        "explained_variance": explained_variance(values, returns, mask).item(),
        "value_mean": values[mask].mean().item(),
    }
    if kl is not None:
        metrics["kl"] = kl[mask].mean().item()
    return Experience(batch, whiten(advantages, mask), sampled, values=values, returns=returns, metrics=metrics)


def reference_logprobs(policy: Policy, batch: Batch, objective: ObjectiveConfig, *how) -> Tensor | None:
    """Computes log-probs (N, T-1) of the reference, where the objective has a KL; `how` as of `update_logprobs`."""
    if objective.kl_coef <= 0:
        return None
    with policy.reference():
        return update_logprobs(policy, batch, *how)


def old_and_sampled(
    policy: Policy,
    batch: Batch,
    objective: ObjectiveConfig,
    temperature: float,
    micro_batches: MicroBatches,
    parts: Sequence[list[int]],
    needs_old: bool = True,
) -> tuple[Batch, Tensor, Tensor]:
    """Returns the batch on the policy's device, log pi_old of the update, and the sampler's log-probs, both (N, T-1).

    In float32 they are the same. In 16 bits sampler and update round differently, by more than the clip of a sequence's
    ratio allows, so that pi_old is the update's own forward, in its own mode and micro-batches: before a weight has
    moved every ratio is 1. Importance weights are about that difference and take the update's forward in any precision.
    What nobody sampled (observations that are trained on) has the update's log-probs in both. Where a step makes one
    update and nothing else needs pi_old, it is left nan: that update's own forward is pi_old, and is made only once.
    """
    batch = batch.to(policy.device)
    sampled, is_rounded = batch.old_logprobs, policy.dtype != torch.float32
    is_complete = not (objective.importance_cap or sampled.isnan().any())
    if is_complete and not is_rounded:
        return batch, sampled, sampled
    if is_complete and not needs_old:
        batch.old_logprobs = torch.full_like(sampled, torch.nan)
        return batch, batch.old_logprobs, sampled
    own = update_logprobs(policy, batch, temperature, micro_batches, parts)
    sampled = torch.where(sampled.isnan(), own, sampled)
    batch.old_logprobs = own if is_rounded or objective.importance_cap else sampled
    return batch, batch.old_logprobs, sampled


def update_rows(group_ids: Sequence[int], config: OptimizationConfig, updates: int) -> list[list[list[int]]]:
    """Draws, for each pass over the rollouts, the rows of its optimizer steps, by the seed and the updates before it.

    Args:
        group_ids: (N,) of the rollouts; a group stays whole, and with fewer groups there are fewer optimizer steps.
        updates: of the run so far.
    """
    passes: list[list[list[int]]] = []
    for _ in range(config.epochs):
        shuffle = torch.Generator().manual_seed((updates + sum(map(len, passes))) * 7919 + config.seed)
        passes.append([rows for rows in mini_batches(group_ids, config.mini_batches, shuffle) if rows])
    return passes
