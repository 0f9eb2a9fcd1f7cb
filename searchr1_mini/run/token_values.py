"""The lines of rollouts/step-N.jsonl: what was sampled and earned, and what an update made of each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from searchr1_mini.core.experience import Experience, all_logprobs
from searchr1_mini.core.training import Rollouts
from searchr1_mini.run.log import trajectory_row

if TYPE_CHECKING:
    from searchr1_mini.run.run import Run

TokenValues = dict[str, list["float | None"]]


def rollout_rows(run: Run, rollouts: Rollouts, experience: Experience | None) -> list[dict]:
    """Makes a line for each rollout of a step, after its update; see `token_values` for the numbers of the tokens."""
    values = token_values(run, experience) if experience else []
    of_tokens = dict(zip(rollouts.kept, values, strict=True))
    return list(rollout_lines(rollouts, of_tokens))


def rollout_lines(rollouts: Rollouts, of_tokens: dict[int, TokenValues]) -> Iterator[dict]:
    """Yields the lines of some rollouts; `of_tokens` has the rows that were learned from."""
    n, advantages = len(rollouts.rewards), rollouts.advantages
    values = [None] * n if advantages is None else advantages.tolist()
    columns = zip(rollouts.trajectories, rollouts.examples, rollouts.rewards, values, strict=True)
    for row, (column, group) in enumerate(zip(columns, rollouts.group_ids, strict=True)):
        yield trajectory_row(*column, of_tokens.get(row)) | {"group": group, "in_update": row in of_tokens}


@torch.no_grad()
def token_values(run: Run, experience: Experience) -> list[TokenValues]:
    """Returns the numbers of each trajectory's tokens in the update, T-1 each, as the targets; None where masked.

    Args:
        run: after the update.
        experience: what it learned from, N trajectories.

    Returns:
        N times `advantages`, of PPO, GiGPO and Tree-GRPO (GRPO's are the group's), and where the run wants them
        `ratios`, pi(token) after the step's updates / pi_old(token), which costs a forward over all of them.
    """
    batch = experience.batch
    if run.config.run.bug == "retokenize":  # the tokens that were trained on are not those that were sampled
        return [{}] * len(batch.lengths)
    is_of_tokens = run.critic or run.config.variant.turn_coef or run.config.variant.tree_branches
    columns = {"advantages": experience.advantages} if is_of_tokens else {}
    if run.wants_ratios and run.config.run.mystery is None:  # one of the museum's HINTS
        now = all_logprobs(run.policy, batch, run.config.rollout.temperature, run.optimizer.micro_batches)
        columns["ratios"] = (now - batch.old_logprobs).exp()
    masked = ~batch.loss_mask
    listed = {name: values.masked_fill(masked, torch.nan).tolist() for name, values in columns.items()}
    return [
        {name: [None if value != value else value for value in rows[row]] for name, rows in listed.items()}
        for row in range(len(masked))
    ]
