"""The learning rate over a run: warm-up, constant, and a fall to 0 at the end where the config asks for one."""

from __future__ import annotations

import torch

from searchr1_mini.options.config import TrainConfig


def learning_rates(config: TrainConfig, step: int, n_left: int) -> list[float]:
    """The rates of the policy's parameters and of the critic's, which has a rate and a warm-up of its own.

    They are counted in steps, whatever became of the steps before: groups that were left out, or steps without any
    update, neither stretch the warm-up nor put off the fall. Within a step the rate moves on with each of its
    `mini_batches * epochs` updates; a step of fewer updates takes the last of these rates, so that every step ends with
    the same one.

    Args:
        step: from 1.
        n_left: updates of this step that are still to come after this one.
    """
    a_step = config.optimization.mini_batches * config.optimization.epochs
    update, total, decay = (
        step * a_step - n_left,
        config.optimization.steps * a_step,
        config.optimization.decay_steps * a_step,
    )
    of_decay = max(total - update + 1, 0) / decay if decay else 1.0
    peaks = [(config.optimization.learning_rate, config.optimization.warmup_steps)]
    if config.run.algorithm == "ppo":
        peaks.append((config.ppo.critic_learning_rate, config.ppo.critic_warmup_steps))
    return [peak * min(1.0, update / max(warmup * a_step, 1), of_decay) for peak, warmup in peaks]


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    """Gives each of the optimizer's groups its rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
