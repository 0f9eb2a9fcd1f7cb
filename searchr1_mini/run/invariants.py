"""What must hold in every step of a sound run, checked before its update: the cheap ones always, all with `--check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from searchr1_mini.core.batch import Batch
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.experience import all_logprobs
from searchr1_mini.core.training import Rollouts
from searchr1_mini.core.trajectory import Trajectory

if TYPE_CHECKING:
    from searchr1_mini.run.run import Run

# mean and largest |log pi of the update - log pi of the rollout| before the weights move; the largest grows with the
# number of tokens in 16 bits, so there the mean alone counts: about twice what benchmarks/sampler_noise.py finds
AGREEMENT = {torch.float32: (1e-4, 1e-2), torch.bfloat16: (0.1, torch.inf), torch.float16: (0.0125, torch.inf)}


def check_step(run: Run, batch: Batch, rollouts: Rollouts) -> None:
    """Makes all checks of a step, before its update.

    Args:
        batch: N trajectories, all of the step's.
        rollouts: what it was built from, and which rows of it are learned from.

    Raises:
        UserError: names what does not hold.
    """
    config, trajectories, kept = run.config, rollouts.trajectories, rollouts.kept
    if kept:
        check_batch(batch.select(kept), [trajectories[row] for row in kept], config.objective.mask_observations)
    check_finite(rewards=batch.rewards)
    check_groups(batch.group_ids, trajectories)
    if rollouts.advantages is not None:
        check_advantages(rollouts.advantages, batch.rewards, batch.group_ids, config.variant.baseline)
    if rollouts.token_advantages is not None:
        check_finite(token_advantages=rollouts.token_advantages)
    if config.logging.check:
        check_texts(trajectories, run.policy.tokenizer)
        check_frozen(run)
        if kept:
            check_agreement(run, batch.select(kept))


def require(holds: bool, what: str) -> None:
    """Raises UserError unless it holds: training on would be training on wrong numbers."""
    if not holds:
        raise UserError(
            f"an invariant does not hold: {what}; nothing was learned from this step. This is a fault of the "
            "program, or of a change to it: please report it with the run's config.json"
        )


def check_batch(batch: Batch, trajectories: Sequence[Trajectory], mask_observations: bool) -> None:
    """Requires that the trained ids are the sampled ones, the mask is True on what the policy wrote, and the
    log-probs stand beside the very tokens that they were sampled with.

    Args:
        batch: N rows.
        trajectories: the N that it was built from, in its order.
    """
    require(len(batch.lengths) == len(trajectories), "a batch has a row for each trajectory")
    for row, trajectory in enumerate(trajectories):
        ids, name = trajectory.token_ids, f"(question {trajectory.example_id}, row {row})"
        trained = ("policy",) if mask_observations else ("policy", "observation")
        mask = [segment.kind in trained for segment in trajectory.segments for _ in segment.token_ids]
        sampled = [p for segment in trajectory.segments for p in segment.logprobs]
        padding = [False] * (batch.targets.shape[1] + 1 - len(ids))
        require(batch.input_ids[row, : len(ids)].tolist() == ids, f"trained ids are the sampled ids {name}")
        require(batch.targets[row, : len(ids) - 1].tolist() == ids[1:], f"targets are the ids shifted by one {name}")
        require(batch.loss_mask[row].tolist() == mask[1:] + padding, f"the loss mask is that of the segments {name}")
        old = batch.old_logprobs[row][batch.loss_mask[row]]
        old = old[~old.isnan()].tolist()
        require(old == torch.tensor(sampled).tolist(), f"each log-prob stands beside its token {name}")


def check_finite(**tensors: Tensor) -> None:
    """Requires that there is no inf and no nan."""
    for name, tensor in tensors.items():
        require(bool(tensor.isfinite().all()), f"{name} are finite")


def check_groups(group_ids: Tensor, trajectories: Sequence[Trajectory]) -> None:
    """Requires that the rollouts of a group (N,) are of one question: each is compared with its own kind."""
    question_of: dict[int, str] = {}
    for group, trajectory in zip(group_ids.tolist(), trajectories, strict=True):
        asked = question_of.setdefault(group, trajectory.example_id)
        require(asked == trajectory.example_id, f"group {group} holds rollouts of one question")


def check_advantages(advantages: Tensor, rewards: Tensor, group_ids: Tensor, baseline: str) -> None:
    """Requires that advantages (N,) of a group of two or more have mean 0, and are in the order of its rewards."""
    check_finite(advantages=advantages)
    group_ids = torch.zeros_like(group_ids) if baseline == "batch" else group_ids
    for group in group_ids.unique().tolist() if baseline != "none" else ():
        own, paid = advantages[group_ids == group], rewards[group_ids == group]
        if len(own) > 1:
            scale = max(own.abs().max().item(), 1.0)
            require(abs(own.mean().item()) < 1e-4 * scale, f"advantages of group {group} have mean 0")
            order = paid.argsort(stable=True)
            require(
                bool((own[order].diff() >= -1e-4 * scale).all()), f"a better reward is a better advantage ({group})"
            )


def check_texts(trajectories: Sequence[Trajectory], tokenizer) -> None:
    """Requires that a turn's text is what its ids decode to, and that the answer stands in the last turn."""
    for trajectory in trajectories:
        turns = list(trajectory.of_kind("policy"))
        for turn in turns:
            is_same = tokenizer.decode(turn.token_ids).startswith(turn.text)
            require(is_same, f"the text of a turn is what its ids decode to (question {trajectory.example_id})")
        is_read = trajectory.answer is None or (bool(turns) and trajectory.answer in turns[-1].text)
        require(is_read, f"the answer stands in the last turn (question {trajectory.example_id})")


def check_agreement(run: Run, batch: Batch) -> None:
    """Requires that one more forward, as the update will make it, gives the log-probs of sampling."""
    batch = batch.to(run.policy.device)
    sampled = batch.loss_mask & ~batch.old_logprobs.isnan()
    with run.policy.training():
        now = all_logprobs(run.policy, batch, run.config.rollout.temperature, run.optimizer.micro_batches)
    change = (now - batch.old_logprobs)[sampled].abs()
    mean, largest = AGREEMENT[run.policy.dtype]
    require(
        change.mean().item() <= mean and change.max().item() <= largest,
        f"rollout and update agree on log-probs to {mean} in the mean and {largest} at most, but they differ by "
        f"{change.mean().item():.2g} and {change.max().item():.2g}",
    )


def frozen_digest(run: Run) -> int:
    """Computes a number that changes with any weight that nothing trains: the base, or the reference model."""
    trained = {id(weight) for group in run.optimizer.adamw.param_groups for weight in group["params"]}
    models = [model for model in (run.policy.model, run.policy.frozen) if model is not None]
    frozen = [weight.data for model in models for weight in model.parameters() if id(weight) not in trained]
    sums = [int(weight.contiguous().view(torch.uint8).sum(dtype=torch.int64)) for weight in frozen]
    return sum(number * size for number, size in enumerate(sums, start=1))


def check_frozen(run: Run) -> None:
    """Requires that what is not trained is what it was when the run began."""
    digest = frozen_digest(run)
    run.frozen_digest = run.frozen_digest or digest
    require(digest == run.frozen_digest, "weights that are not trained stay what they were")
