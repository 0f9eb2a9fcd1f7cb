"""A session of the embedded world, small, and one step's rollouts in it."""

from __future__ import annotations

from pathlib import Path

from searchr1_mini.core.algorithms import group_advantages
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.training import Rollouts, collect
from searchr1_mini.core.update import Experience, prepare
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.session import Session, start

SMALL = {
    "questions_per_step": 4, "group_size": 4, "eval_questions": 2, "tensorboard": False, "memory_check": False,
    "mini_batches": 1, "reward": "format",
}  # fmt: skip


def session_of(folder: Path, **settings) -> Session:
    """An opened run that has not begun; its tracker is closed."""
    run = start(resolve(make(TrainConfig, **SMALL | settings, output_dir=str(folder))))
    run.tracker.__exit__()
    return run


def step_of(run: Session) -> tuple[Rollouts, Experience]:
    """Rollouts of step 1, and what its update needs."""
    rollouts = collect(run, 1)
    batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    advantages = None if run.critic else group_advantages(batch.rewards, batch.group_ids)
    return rollouts, prepare(run, batch, advantages)[0]
