"""What an update made of each token, written down for the report: PPO's advantages, and how far the policy moved."""

from __future__ import annotations

import torch

from searchr1_mini.core.update import Experience, all_logprobs
from searchr1_mini.run.session import Session

TokenValues = dict[str, list["float | None"]]


@torch.no_grad()
def token_values(run: Session, experience: Experience, with_ratios: bool) -> list[TokenValues]:
    """Numbers of the tokens of each trajectory in the update, T-1 each, aligned with the targets; None where masked.

    Args:
        run: after the update.
        experience: what it learnt from, N trajectories.
        with_ratios: costs a forward over all of them.

    Returns:
        N times `advantages`, of PPO alone (GRPO's are equal along a trajectory), and `ratios`, pi(token) after the
        step's updates / pi_old(token).
    """
    batch = experience.batch
    if run.config.museum.bug_retokenise:  # the tokens that were trained on are not those that were sampled
        return [{}] * len(batch.lengths)
    columns = {"advantages": experience.advantages} if run.critic else {}
    if with_ratios:
        now = all_logprobs(run, batch, may_stop=False)  # the weights have moved: the step must end
        columns["ratios"] = (now - batch.old_logprobs).exp()
    masked = ~batch.loss_mask
    listed = {name: values.masked_fill(masked, torch.nan).tolist() for name, values in columns.items()}
    return [
        {name: [None if value != value else value for value in rows[row]] for name, rows in listed.items()}
        for row in range(len(masked))
    ]
