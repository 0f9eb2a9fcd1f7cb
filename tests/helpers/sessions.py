"""A run of the embedded world, small, and one step of it."""

from __future__ import annotations

from pathlib import Path

from searchr1_mini.core import training
from searchr1_mini.core.algorithms import group_advantages
from searchr1_mini.core.batch import Batch, build_batch
from searchr1_mini.core.experience import Experience, prepare_grpo, prepare_ppo, update_rows
from searchr1_mini.core.optimizer import Losses
from searchr1_mini.core.training import Rollouts
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.museum import planted
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.run import Run
from searchr1_mini.run.training import configured_reward
from searchr1_mini.run.variant import configured_variant

SMALL = {
    "questions_per_step": 4, "group_size": 4, "eval_questions": 2, "tensorboard": False, "memory_check": False,
    "mini_batches": 1, "reward": "format",
}  # fmt: skip


def session_of(folder: Path, **settings) -> Run:
    """An opened run that has not begun; its tracker is closed."""
    run = open_run(resolve(make(TrainConfig, **SMALL | settings, output_dir=str(folder))))
    run.tracker.__exit__()
    return run


def collect(run: Run, step: int) -> Rollouts:
    """The rollouts of a step."""
    return training.collect(
        run.policy, run.environment, run.config, step, configured_reward(run.config), configured_variant(run.config)
    )


def passes_of(run: Run, batch: Batch) -> list[list[list[int]]]:
    """The rows of each optimizer step of a batch."""
    return update_rows(batch.group_ids.tolist(), run.config.optimization, run.optimizer.updates)


def prepare(run: Run, batch: Batch, needs_old: bool = True) -> Experience:
    """What the update of a batch needs."""
    config = run.config
    how = config.objective, config.rollout.temperature, run.optimizer.micro_batches, passes_of(run, batch), needs_old
    if run.critic:
        experience = prepare_ppo(run.policy, run.critic, batch, config.ppo, *how)
    else:
        advantages = group_advantages(batch.rewards, batch.group_ids)
        experience = prepare_grpo(run.policy, batch, advantages[:, None] * batch.loss_mask, *how)
    if weigh := configured_variant(config).importance:
        experience.importance = weigh(experience.batch.old_logprobs, experience.sampled_logprobs)
    return experience


def step_of(run: Run) -> tuple[Rollouts, Experience]:
    """Rollouts of step 1, and what its update needs."""
    rollouts = collect(run, 1)
    batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    return rollouts, prepare(run, batch)


class OneStep:
    """A run of which the loop sees one step; keeps what that logged, and the losses of its updates."""

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.step, self.metrics = run, step, {}

    def __getattr__(self, name: str):
        return getattr(self.run, name)

    def steps(self):
        self.run.step = self.step
        self.run.log_step = self.metrics.update
        yield self.step
        del self.run.log_step


def train_step(run: Run, step: int) -> dict[str, float]:
    """Trains one step, whatever came before; returns what it would log."""
    one = OneStep(run, step)
    with planted(run.config.run.bug, run.policy.tokenizer):
        training.train_policy(
            run.policy, run.critic, run.environment, run.optimizer, run.config, one, configured_reward(run.config),
            configured_variant(run.config),
        )  # fmt: skip
    return one.metrics


def losses_of(run: Run, monkeypatch) -> Losses:
    """The losses that the loop of a run gives to its optimizer."""
    given = []
    with monkeypatch.context() as patch:
        patch.setattr(run.optimizer, "step", lambda part, losses: given.append(losses))
        train_step(run, 1)
    return given[0]
