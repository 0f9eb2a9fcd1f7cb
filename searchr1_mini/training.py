"""The loop: rollout, reward, advantage, update (paper, section 3; GRPO: arXiv 2402.03300)."""

from __future__ import annotations

import math
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from searchr1_mini.algorithms import group_advantages, grpo_loss, loss_weights, zero_variance
from searchr1_mini.batch import Batch, build_batch, micro_batches, mini_batches
from searchr1_mini.config import TrainConfig
from searchr1_mini.data import Example
from searchr1_mini.logprobs import token_logprobs
from searchr1_mini.models import Policy
from searchr1_mini.rewards import reward
from searchr1_mini.rollout import RolloutStats, rollout
from searchr1_mini.session import Session, finish, measure, measure_before, save_step, start
from searchr1_mini.tracking import trajectory_row, write_rollouts
from searchr1_mini.trajectory import Trajectory


def train(config: TrainConfig) -> Path:
    """Runs, or resumes, a training run; returns its folder.

    The first Ctrl-C finishes the step at hand, saves it and leaves; the second leaves at once.

    Raises:
        UserError: anything that the user can mend.
    """
    began = time.perf_counter()
    run = start(config)
    with run.tracker, first_ctrl_c() as asked_to_stop:
        measure_before(run)
        for step in range(run.first_step, config.steps + 1):
            examples = questions_of_step(run.train.examples, step, config.questions_per_step, config.seed)
            metrics = train_step(run, step, examples)
            run.train_seconds += metrics["seconds"]
            if step % config.eval_every == 0 or step == config.steps:
                metrics |= eval_metrics(measure(run))
            run.tracker.log(step, metrics)
            run.tracker.progress(step, metrics)
            if step % config.save_every == 0 or step == config.steps or asked_to_stop.is_set():
                save_step(run, step)
            if asked_to_stop.is_set() and step < config.steps:
                print(f"saved step {step}; go on with: python train.py --resume --output-dir {run.folder}", flush=True)
                raise KeyboardInterrupt
        finish(run, began)
    return run.folder


def train_step(run: Session, step: int, examples: Sequence[Example]) -> dict[str, float]:
    """One step of GRPO: a group of rollouts a question, their rewards, their advantages, and the update."""
    config = run.config
    began = time.perf_counter()
    group = [example for example in examples for _ in range(config.group_size)]
    group_ids = [index // config.group_size for index in range(len(group))]
    trajectories, stats = rollout(
        group, run.make_method, run.policy, run.train.retriever, run.limits,
        temperature=config.temperature, seed=config.seed * 1_000_003 + step,
    )  # fmt: skip
    rewards = [
        reward(trajectory, example.golden_answers) for trajectory, example in zip(trajectories, group, strict=True)
    ]
    batch = build_batch(trajectories, rewards, group_ids, run.policy.tokenizer.pad_token_id, config.mask_observations)
    advantages = group_advantages(batch.rewards, batch.group_ids, config.normalize_std)
    is_flat = zero_variance(batch.rewards, batch.group_ids)
    kept = (~is_flat).nonzero()[:, 0] if config.drop_zero_variance else torch.arange(len(group))
    update_metrics = update(run, batch.select(kept), advantages[kept]) if len(kept) else {"skipped_updates": 1.0}
    rows = (trajectory_row(*row) for row in zip(trajectories, group, rewards, advantages.tolist(), strict=True))
    write_rollouts(run.folder, step, rows)
    seconds = time.perf_counter() - began
    return {
        **rollout_metrics(trajectories, rewards, stats),
        "zero_variance_groups": is_flat.float().mean().item(),
        **update_metrics,
        "seconds": seconds,
        "tokens_per_second": stats.tokens_total / seconds,
    }


def update(run: Session, batch: Batch, advantages: Tensor) -> dict[str, float]:
    """`epochs` passes over the rollouts in `mini_batches` optimiser steps each, gradients accumulated in micro-batches.

    Args:
        batch: N trajectories.
        advantages: (N,).
    """
    config, policy = run.config, run.policy
    batch = batch.to(policy.device)
    if not config.mask_observations:
        missing = batch.old_logprobs.isnan()
        batch.old_logprobs = torch.where(missing, all_logprobs(run, batch), batch.old_logprobs)
    ref_logprobs = None
    if config.kl_coef > 0:
        with policy.reference():
            ref_logprobs = all_logprobs(run, batch)
    logs: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        shuffle = torch.Generator().manual_seed(run.updates * 7919 + config.seed)
        for rows in mini_batches(batch.group_ids.tolist(), config.mini_batches, shuffle):
            if rows:
                is_first = epoch == 0 and not logs
                logs.append(optimiser_step(run, batch, advantages, ref_logprobs, rows, is_first))
    metrics = {key: fmean(log[key] for log in logs if key in log) for key in logs[0]}
    return metrics | {"learning_rate": run.optimizer.param_groups[0]["lr"]}


def optimiser_step(
    run: Session, batch: Batch, advantages: Tensor, ref_logprobs: Tensor | None, rows: list[int], is_first: bool
) -> dict[str, float]:
    """One optimiser step on the given rows of the batch; the mean over tokens is that of the whole step.

    On the first step after a rollout the weights are still those that sampled, so the difference between the sampled
    log-probs and this forward must be noise: it is logged as `logprob_diff_max` and `logprob_diff_mean`.
    """
    config, policy = run.config, run.policy
    weights = loss_weights(batch.loss_mask[rows], config.loss_aggregation)
    lengths = batch.lengths[rows].tolist()
    totals: dict[str, float] = {}
    diffs: list[Tensor] = []
    with policy.training(config.gradient_checkpointing):
        for micro in micro_batches(lengths, config.tokens_per_micro_batch):
            chosen = [rows[index] for index in micro]
            part = batch.select(chosen)
            width = part.targets.shape[1]
            logprobs, entropy = forward(policy, part, config.temperature)
            loss, stats = grpo_loss(
                logprobs,
                part.old_logprobs,
                None if ref_logprobs is None else ref_logprobs[chosen, :width],
                advantages[chosen].to(logprobs.device),
                weights[micro, :width],
                clip_eps=config.clip_eps,
                clip_eps_high=config.clip_eps_high,
                kl_coef=config.kl_coef,
            )
            run.scaler.scale(loss).backward()
            stats["loss"], stats["entropy"] = loss.detach(), (entropy * weights[micro, :width]).sum()
            for key, value in stats.items():
                value = float(value)
                totals[key] = max(totals.get(key, 0.0), value) if key == "ratio_max" else totals.get(key, 0.0) + value
            diffs.append((logprobs.detach() - part.old_logprobs)[part.loss_mask].abs())
    if is_first:
        diff = torch.cat(diffs)
        totals |= {"logprob_diff_max": diff.max().item(), "logprob_diff_mean": diff.mean().item()}
    return totals | apply_gradients(run)


def apply_gradients(run: Session) -> dict[str, float]:
    """Clips the gradient and steps; a gradient that is not finite is thrown away and counted."""
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.policy.trainable(), run.config.grad_clip).item()
    is_finite = math.isfinite(norm)
    if is_finite or run.scaler.is_enabled():  # the scaler skips the step itself, and learns from it
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.scheduler.step()
    run.updates += 1
    return {"grad_norm": norm, "skipped_updates": float(not is_finite)}


def forward(policy: Policy, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (B, T-1) of the targets; 0 where the loss mask is False."""
    hidden = policy.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids)[:, :-1]
    return token_logprobs(hidden, policy.lm_head, batch.targets, batch.loss_mask, temperature)


@torch.no_grad()
def all_logprobs(run: Session, batch: Batch) -> Tensor:
    """Log-probs (N, T-1) of a whole batch under the weights as they are now, in micro-batches."""
    out = torch.zeros_like(batch.old_logprobs)
    for rows in micro_batches(batch.lengths.tolist(), run.config.tokens_per_micro_batch):
        part = batch.select(rows)
        out[rows, : part.targets.shape[1]] = forward(run.policy, part, run.config.temperature)[0]
    return out


def questions_of_step(examples: Sequence[Example], step: int, n: int, seed: int) -> list[Example]:
    """The `n` questions of a step: consecutive slices of a fresh permutation each epoch, so a resumed run agrees."""
    chosen = []
    for position in range((step - 1) * n, step * n):
        epoch, index = divmod(position, len(examples))
        order = random.Random(f"{seed}/{epoch}").sample(range(len(examples)), len(examples))
        chosen.append(examples[order[index]])
    return chosen


def rollout_metrics(
    trajectories: Sequence[Trajectory], rewards: Sequence[float], stats: RolloutStats
) -> dict[str, float]:
    """What a practitioner looks at; docs/algorithms.md explains each."""
    return {
        "reward": fmean(rewards),
        "em": fmean(rewards),
        "searches": fmean(len(t.queries) for t in trajectories),
        "response_tokens": fmean(t.n_policy_tokens for t in trajectories),
        "observation_tokens": fmean(sum(len(s.token_ids) for s in t.of_kind("observation")) for t in trajectories),
        "answered": fmean(t.finish_reason == "answer" for t in trajectories),
        "invalid_actions": fmean(t.invalid_actions for t in trajectories),
        "fed_ratio": stats.fed_ratio,
        "rollout_seconds": stats.seconds,
    }


def eval_metrics(summary: dict) -> dict[str, float]:
    """Flattens a summary into `eval/em`, `eval/world-2hop/searches`, ..."""
    parts = {"eval": {k: v for k, v in summary.items() if k != "by_source"}}
    parts |= {f"eval/{source}": values for source, values in summary["by_source"].items()}
    return {
        f"{name}/{key}": float(value) for name, values in parts.items() for key, value in values.items() if key != "n"
    }


@contextmanager
def first_ctrl_c() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C sets the event instead of raising, so that no step is lost half-way."""
    event = threading.Event()

    def on_signal(*_) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        print("\nstopping after this step; press Ctrl-C again to leave at once", file=sys.stderr, flush=True)

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
