"""What a step learns from its rollouts: log-probs, advantages, values; then the optimiser steps of GRPO or PPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import torch
from torch import Tensor

from searchr1_mini.ablations import museum
from searchr1_mini.core.algorithms import (
    explained_variance,
    gae,
    kl_penalty,
    loss_weights,
    policy_loss,
    token_rewards,
    truncated_importance,
    value_loss,
    whiten,
)
from searchr1_mini.core.batch import Batch, mini_batches
from searchr1_mini.core.distributed import gather, sum_gradients, sum_over_processes
from searchr1_mini.core.logprobs import token_logprobs
from searchr1_mini.core.optimizer import over_micro_batches
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.schedule import learning_rates, set_learning_rates
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.run.session import Session


@dataclass
class Experience:
    """A batch and all that its update needs, computed once, before the weights move. Tensors are (N, T-1).

    Attributes:
        batch: N trajectories; its `old_logprobs` are complete, see `old_and_sampled`.
        advantages: of each policy token; GRPO's are equal along a row.
        sampled_logprobs: what the sampler gave, to be compared with the update's own forward.
        ref_logprobs: of the reference, for a KL term in the loss.
        importance: truncated importance weights.
        values, returns: of PPO's critic.
    """

    batch: Batch
    advantages: Tensor
    sampled_logprobs: Tensor
    ref_logprobs: Tensor | None = None
    importance: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def select(self, rows: list[int]) -> Experience:
        """Some rows, with the padding trimmed to the longest of them."""
        batch = self.batch.select(rows)
        width = batch.targets.shape[1]
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "batch"}
        return Experience(batch, **{name: None if t is None else t[rows, :width] for name, t in tensors.items()})


@torch.no_grad()
def prepare(
    run: Session, batch: Batch, group_advantages: Tensor | None, needs_old: bool = True
) -> tuple[Experience, dict[str, float]]:
    """Log-probs under the reference, and for PPO values, per-token rewards, GAE and whitening.

    Args:
        batch: N trajectories.
        group_advantages: (N,), GRPO's; None for PPO.
        needs_old: whether pi_old is wanted although one update alone would do without, see `old_and_sampled`.

    Returns:
        What the update needs, and metrics of it.
    """
    config, policy = run.config, run.policy
    batch = batch.to(policy.device)
    mask = batch.loss_mask
    batch.old_logprobs, sampled = old_and_sampled(run, batch, needs_old or group_advantages is None)
    importance = ref_logprobs = None
    if config.objective.importance_cap:
        importance = truncated_importance(batch.old_logprobs, sampled, config.objective.importance_cap)
    if config.objective.kl_coef > 0:
        with policy.reference():
            ref_logprobs = own_logprobs(run, batch)
    if group_advantages is not None:
        advantages = group_advantages.to(policy.device)[:, None] * mask
        return Experience(batch, advantages, sampled, ref_logprobs, importance), {}
    kl = None if ref_logprobs is None else kl_penalty(batch.old_logprobs, ref_logprobs, config.objective.kl_estimator)
    values = all_values(run, batch)
    rewards = token_rewards(batch.rewards, mask, kl, config.objective.kl_coef)
    advantages, returns = gae(rewards, values, mask, config.ppo.gamma, config.ppo.gae_lambda)
    metrics = {
        "explained_variance": explained_variance(values, returns, mask).item(),
        "value_mean": values[mask].mean().item(),
    }
    if kl is not None:
        metrics["kl"] = kl[mask].mean().item()
    return Experience(batch, whiten(advantages, mask), sampled, None, importance, values, returns), metrics


def old_and_sampled(run: Session, batch: Batch, needs_old: bool = True) -> tuple[Tensor, Tensor]:
    """log pi_old of the update, and the sampler's log-probs, both (N, T-1).

    In float32 they are the same. In 16 bits sampler and update round differently, by more than the clip of a sequence's
    ratio allows, so that pi_old is the update's own forward, in its own mode and micro-batches: before a weight has
    moved every ratio is 1. Importance weights are about that difference and take the update's forward in any precision.
    What nobody sampled (observations that are trained on) has the update's log-probs in both. Where a step makes one
    update and nothing else needs pi_old, it is left nan: that update's own forward is pi_old, and is made only once.
    """
    sampled, is_rounded = batch.old_logprobs, run.policy.dtype != torch.float32
    is_complete = not (run.config.objective.importance_cap or sampled.isnan().any())
    if is_complete and not is_rounded:
        return sampled, sampled
    if is_complete and not needs_old and run.config.optimization.epochs == run.config.optimization.mini_batches == 1:
        return torch.full_like(sampled, torch.nan), sampled
    own = own_logprobs(run, batch)
    sampled = torch.where(sampled.isnan(), own, sampled)
    return own if is_rounded or run.config.objective.importance_cap else sampled, sampled


def own_logprobs(run: Session, batch: Batch) -> Tensor:
    """Log-probs (N, T-1) under the weights as they are now, in 16 bits rounded as in the update's next pass."""
    if run.policy.dtype == torch.float32:
        return all_logprobs(run, batch)
    out = torch.zeros_like(batch.old_logprobs)
    with run.policy.training(run.config.weights.gradient_checkpointing):
        for rows in next_pass(run, batch.group_ids.tolist()):
            part = batch.select(rows)
            out[rows, : part.targets.shape[1]] = all_logprobs(run, part)
    return out


def update(run: Session, experience: Experience) -> dict[str, float]:
    """`epochs` passes over the rollouts in `mini_batches` optimiser steps each; returns means of what they logged."""
    config, group_ids = run.config, experience.batch.group_ids.tolist()
    n_updates = config.optimization.epochs * min(config.optimization.mini_batches, len(set(group_ids)))
    logs: list[dict[str, float]] = []
    for _ in range(config.optimization.epochs):
        for rows in next_pass(run, group_ids):
            set_learning_rates(run.optimizer, learning_rates(config, run.step, n_updates - len(logs) - 1))
            logs.append(optimiser_step(run, experience.select(rows), is_first=not logs))
    return means_over_updates(logs)


def next_pass(run: Session, group_ids: Sequence[int]) -> list[list[int]]:
    """The rows of each optimiser step of the pass that comes next, drawn by the seed and the updates so far."""
    shuffle = torch.Generator().manual_seed(run.updates * 7919 + run.config.run.seed)
    return [rows for rows in mini_batches(group_ids, run.config.optimization.mini_batches, shuffle) if rows]


def means_over_updates(logs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of a step's optimiser steps the mean of each metric over those that logged it, and the last learning rate."""
    keys = dict.fromkeys(key for log in logs for key in log)
    metrics = {key: fmean(log[key] for log in logs if key in log) for key in keys}
    return metrics | {"learning_rate": logs[-1]["learning_rate"]}


def step_weights(config: TrainConfig, loss_mask: Tensor) -> Tensor:
    """The weight (B, T) of each token in an optimiser step's loss."""
    if config.museum.bug_masked_in_denominator:
        return museum.weights_over_all_tokens(loss_mask)
    if config.museum.bug_tool_tokens_in_length:
        return museum.weights_by_whole_length(loss_mask)
    return loss_weights(loss_mask, config.objective.loss_aggregation, config.rollout.max_new_tokens)


def optimiser_step(run: Session, experience: Experience, is_first: bool) -> dict[str, float]:
    """One optimiser step on these trajectories, gradients accumulated over micro-batches.

    On the first step after a rollout the weights are still those that sampled, so the difference between the sampled
    log-probs and this forward must be noise: it is logged as `logprob_diff_max` and `logprob_diff_mean`. On later
    steps the difference to pi_old, on right trajectories, tells what training did to their likelihood:
    `correct_loglik_change`.
    """
    config, batch = run.config, experience.batch
    weights = step_weights(config, batch.loss_mask)
    value_weights = loss_weights(batch.loss_mask, "token") if run.critic else None

    def backward(rows: list[int]) -> tuple[dict[str, float], Tensor]:
        part = experience.select(rows)
        width = part.advantages.shape[1]
        stats, logprobs = policy_backward(run, part, weights[rows, :width])
        if run.critic:
            stats["value_loss"] = critic_backward(run, part, value_weights[rows, :width])
        before, wanted = part.sampled_logprobs, part.batch.loss_mask
        if not is_first:
            before, wanted = part.batch.old_logprobs, wanted & (part.batch.rewards[:, None] > 0)
        return stats, (logprobs - before)[wanted].cpu()

    with run.policy.training(config.weights.gradient_checkpointing):
        logs = over_micro_batches(run, batch, backward, may_stop=is_first)
    parts, changes = zip(*gather(logs), strict=True)
    totals = {key: sum(part[key] for part in parts) for key in parts[0]}
    totals["ratio_max"] = max(part["ratio_max"] for part in parts)
    change = torch.cat(changes)
    if is_first:
        totals |= {"logprob_diff_max": change.abs().max().item(), "logprob_diff_mean": change.abs().mean().item()}
    elif len(change):
        totals["correct_loglik_change"] = change.mean().item()
    return totals | apply_gradients(run, totals["loss"])


def policy_backward(run: Session, part: Experience, weights: Tensor) -> tuple[dict[str, float], Tensor]:
    """Forward and backward of the policy; returns sums for the log and log pi (B, T-1)."""
    config, batch = run.config, part.batch
    logprobs, entropy = forward(
        run.policy, batch, config.rollout.temperature, entropy_gradient=config.objective.entropy_coef > 0
    )
    old_logprobs = torch.where(batch.old_logprobs.isnan(), logprobs.detach(), batch.old_logprobs)
    loss, stats = policy_loss(
        logprobs,
        old_logprobs,
        part.advantages,
        weights,
        clip_eps=config.objective.clip_eps,
        clip_eps_high=config.objective.clip_eps_high,
        ratio=config.objective.ratio,
        importance=part.importance,
        ref_logprobs=part.ref_logprobs,
        kl_coef=config.objective.kl_coef,
        kl_estimator=config.objective.kl_estimator,
        entropy=entropy,
        entropy_coef=config.objective.entropy_coef,
        llds_coef=config.objective.llds_coef,
    )
    run.scaler.scale(loss).backward()
    stats |= {"loss": loss.detach(), "entropy": (entropy * weights).sum().detach()}
    return {key: float(value) for key, value in stats.items()}, logprobs.detach()


def critic_backward(run: Session, part: Experience, weights: Tensor) -> float:
    """Forward and backward of the critic, both while its adapter is the active one; returns the value loss."""
    with run.critic.active():
        values = run.critic.values(part.batch.input_ids, part.batch.position_ids)
        loss = value_loss(values, part.values, part.returns, weights, run.config.ppo.value_clip)
        run.scaler.scale(loss).backward()
    return loss.item()


def apply_gradients(run: Session, loss: float) -> dict[str, float]:
    """Sums the gradients of all processes, clips those of policy and critic, each by its own norm, and steps.

    What is not finite is thrown away.
    """
    sum_gradients(parameter for group in run.optimizer.param_groups for parameter in group["params"])
    run.scaler.scale(torch.zeros((), device=run.policy.device))  # a process without a micro-batch has no scale yet
    run.scaler.unscale_(run.optimizer)
    groups = [group["params"] for group in run.optimizer.param_groups]
    norms = [torch.nn.utils.clip_grad_norm_(group, run.config.optimization.grad_clip).item() for group in groups]
    is_finite = math.isfinite(loss) and all(map(math.isfinite, norms))
    if is_finite or run.scaler.is_enabled():  # the scaler skips the step itself, and learns from it
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    learning_rate = run.optimizer.param_groups[0]["lr"]
    run.updates += 1
    run.skipped_in_a_row = 0 if is_finite else run.skipped_in_a_row + 1
    named = dict(zip(("grad_norm", "critic_grad_norm"), norms, strict=False))
    return named | {"skipped_updates": float(not is_finite), "learning_rate": learning_rate}


def forward(policy: Policy, batch: Batch, temperature: float, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (B, T-1) of the targets; 0 where the loss mask is False."""
    hidden = policy.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids)[:, :-1]
    return token_logprobs(
        hidden, policy.lm_head, batch.targets, batch.loss_mask, temperature, entropy_gradient=entropy_gradient
    )


def all_logprobs(run: Session, batch: Batch, may_stop: bool = True) -> Tensor:
    """Log-probs (N, T-1) of a whole batch under the weights as they are now, in micro-batches."""
    return of_whole_batch(
        run, batch, lambda part: forward(run.policy, part, run.config.rollout.temperature)[0], may_stop
    )


def all_values(run: Session, batch: Batch) -> Tensor:
    """V (N, T-1) of a whole batch under the critic as it is now, in micro-batches."""
    with run.critic.active():
        return of_whole_batch(run, batch, lambda part: run.critic.values(part.input_ids, part.position_ids))


@torch.no_grad()
def of_whole_batch(run: Session, batch: Batch, of: Callable[[Batch], Tensor], may_stop: bool = True) -> Tensor:
    """What `of` gives (n, t-1) for each micro-batch, put together (N, T-1), those of other processes too."""
    out = torch.zeros_like(batch.old_logprobs)

    def of_rows(rows: list[int]) -> tuple[list[int], Tensor]:
        return rows, of(batch.select(rows))

    for rows, values in over_micro_batches(run, batch, of_rows, may_stop):  # only now: rows may change their process
        out[rows, : values.shape[1]] = values
    return sum_over_processes(out)
