"""Optimizer steps: gradients accumulated over micro-batches, clipped, applied at the schedule's rate, or skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from searchr1_mini.core import interrupt, progress
from searchr1_mini.core.config import OptimizationConfig, PPOConfig
from searchr1_mini.core.critic import Critic
from searchr1_mini.core.distributed import gather, sum_gradients
from searchr1_mini.core.experience import Experience
from searchr1_mini.core.micro_batches import MicroBatches
from searchr1_mini.core.policy import Policy

Losses = Callable[[Experience], Iterator[tuple[Tensor, dict[str, Any]]]]
PER_TOKEN = set("entropy kl approx_kl clip_fraction llds sapo".split())  # weighted sums, logged as means


class Optimizer:
    """AdamW over the policy's parameters and the critic's, with the learning rates of the run.

    Attributes:
        updates: optimizer steps of the run so far, skipped ones included.
        skipped_in_a_row: the last of them whose loss or gradient was not finite, and that were thrown away.
        micro_batches: how a batch is split.
    """

    def __init__(
        self, policy: Policy, critic: Critic | None, config: OptimizationConfig, ppo: PPOConfig | None = None
    ) -> None:
        self.policy, self.config, self.ppo = policy, config, ppo if critic else None
        groups = [{"params": policy.trainable(), "lr": config.learning_rate}]
        if critic:
            groups.append({"params": critic.parameters(), "lr": ppo.critic_learning_rate})
        self.adamw = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.dtype == torch.float16)
        self.micro_batches = MicroBatches(config.tokens_per_micro_batch)
        self.updates = self.skipped_in_a_row = self.n_updates = self.at_step = 0
        self.logs: list[dict[str, float]] = []

    def begin(self, step: int, n_updates: int) -> None:
        """Begins a step of the run (from 1) with so many updates."""
        self.at_step, self.n_updates, self.logs = step, n_updates, []

    @property
    def is_first_update(self) -> bool:
        """Whether the step's weights are still those that sampled."""
        return not self.logs

    def step(self, experience: Experience, losses: Losses) -> None:
        """Takes one optimizer step; the losses of each micro-batch are back-propagated where they are yielded.

        Each comes with numbers for the log: sums over the micro-batches, but for `ratio_max`, and for `change`, a
        tensor of differences of log-probs, see `change_metrics`.
        """

        def backward(rows: list[int]) -> dict[str, Any]:
            stats: dict[str, Any] = {}
            for loss, told in losses(experience.select(rows)):
                self.scaler.scale(loss).backward()
                stats |= {name: value if name == "change" else float(value) for name, value in told.items()}
            return stats

        progress.tell("updates", len(self.logs), self.n_updates)
        for group, rate in zip(self.adamw.param_groups, self.learning_rates(), strict=True):
            group["lr"] = rate
        with self.policy.training():
            parts = gather(self.micro_batches.over(experience.batch, backward, undo=self.zero_grad))
        totals = {k: (max if k == "ratio_max" else sum)(part[k] for part in parts) for k in parts[0] if k != "change"}
        share = experience.weights.sum().item() or 1.0  # not 1 where the loss is divided by a constant, or wrongly
        totals |= {key: totals[key] / share for key in PER_TOKEN & totals.keys() if abs(share - 1) > 1e-4}
        if "change" in parts[0]:
            totals |= change_metrics(torch.cat([part["change"] for part in parts]), self.is_first_update)
        self.logs.append(totals | self.apply_gradients(totals["loss"]))

    def learning_rates(self) -> list[float]:
        """Returns the rates of the policy's parameters and the critic's, which has its own rate and warm-up.

        Warm-up, constant, and a fall to 0 over the last steps. They are counted in steps, whatever became of the steps
        before: groups that were left out, or steps without any update, neither stretch the warm-up nor put off the
        fall. Within a step the rate moves on with each of its `mini_batches * epochs` updates; a step of fewer updates
        takes the last of these rates, so that every step ends with the same one.
        """
        config, a_step = self.config, self.config.mini_batches * self.config.epochs
        update, decay = self.at_step * a_step - self.n_updates + len(self.logs) + 1, config.decay_steps * a_step
        of_decay = max(config.steps * a_step - update + 1, 0) / decay if decay else 1.0
        peaks = [(config.learning_rate, config.warmup_steps)]
        if self.ppo:
            peaks.append((self.ppo.critic_learning_rate, self.ppo.critic_warmup_steps))
        return [peak * min(1.0, update / max(warmup * a_step, 1), of_decay) for peak, warmup in peaks]

    def apply_gradients(self, loss: float) -> dict[str, float]:
        """Sums the gradients of all processes, clips those of policy and critic, each by its own norm, and steps.

        What is not finite is thrown away. From here on the step cannot be left.
        """
        groups = [group["params"] for group in self.adamw.param_groups]
        sum_gradients(parameter for group in groups for parameter in group)
        self.scaler.scale(torch.zeros((), device=self.policy.device))  # without a micro-batch there is no scale yet
        self.scaler.unscale_(self.adamw)
        norms = [torch.nn.utils.clip_grad_norm_(group, self.config.grad_clip).item() for group in groups]
        is_finite = math.isfinite(loss) and all(map(math.isfinite, norms))
        interrupt.hold()
        if is_finite or self.scaler.is_enabled():  # the scaler skips the step itself, and learns from it
            self.scaler.step(self.adamw)
            self.scaler.update()
        self.zero_grad()
        self.updates += 1
        self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
        named = dict(zip(("grad_norm", "critic_grad_norm"), norms, strict=False))
        return named | {"skipped_updates": float(not is_finite), "learning_rate": self.adamw.param_groups[0]["lr"]}

    def zero_grad(self) -> None:
        """Throws accumulated gradients away."""
        self.adamw.zero_grad(set_to_none=True)

    def metrics(self) -> dict[str, float]:
        """Returns the mean of each number over the step's updates, the largest ratio, and the last learning rate."""
        if not self.logs:
            return {}
        keys = dict.fromkeys(key for log in self.logs for key in log)
        means = {k: (max if k == "ratio_max" else fmean)(log[k] for log in self.logs if k in log) for k in keys}
        return means | {"learning_rate": self.logs[-1]["learning_rate"]}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, by name; tensors under `optimizer` and `scaler`."""
        return {
            "optimizer": self.adamw.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
            "skipped_in_a_row": self.skipped_in_a_row,
            "tokens_per_micro_batch": self.config.tokens_per_micro_batch,
            "micro_batch_tokens": self.micro_batches.tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Micro-batches stay as small as they had become, unless another size is asked for.

        Raises:
            KeyError, ValueError: the state is of another form, or of other parameters.
        """
        self.adamw.load_state_dict(state["optimizer"])
        if state["scaler"]:  # a run that had another dtype before has none
            self.scaler.load_state_dict(state["scaler"])
        self.updates, self.skipped_in_a_row = state["updates"], state["skipped_in_a_row"]
        if state["tokens_per_micro_batch"] == self.config.tokens_per_micro_batch:
            self.micro_batches.tokens = state["micro_batch_tokens"]


def change_metrics(change: Tensor, is_first_update: bool) -> dict[str, float]:
    """Returns what the log says of differences (n,) of log-probs.

    On the first update the weights are still those that sampled, so the difference between the sampled log-probs and
    this forward must be noise: `logprob_diff_max` and `logprob_diff_mean`. On later ones the difference to pi_old, on
    trajectories paid as right ones are, tells what training did to their likelihood: `correct_loglik_change`.
    """
    if is_first_update and len(change):
        return {"logprob_diff_max": change.abs().max().item(), "logprob_diff_mean": change.abs().mean().item()}
    return {"correct_loglik_change": change.mean().item()} if len(change) else {}


def logprob_changes(logprobs: Tensor, part: Experience, is_first_update: bool) -> Tensor:
    """Returns the differences (n,) that `change_metrics` tells of, of one micro-batch."""
    before, wanted = part.sampled_logprobs, part.batch.loss_mask
    if not is_first_update:
        wanted = wanted & (part.batch.rewards[:, None] > 0.5)  # some rewards pay wrong ones 0.3
        before = part.batch.old_logprobs
    return (logprobs.detach() - before)[wanted].cpu()
