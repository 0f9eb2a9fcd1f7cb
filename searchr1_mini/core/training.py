"""The loop of Search-R1: roll out, reward, mask, advantages, loss, optimizer step, log (paper, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import (
    LogRatio,
    Penalty,
    Surrogate,
    clipped_surrogate,
    group_advantages,
    loss_weights,
    policy_loss,
    value_loss,
    zero_variance,
)
from searchr1_mini.core.batch import Batch, build_batch
from searchr1_mini.core.config import ObjectiveConfig, OptimizationConfig, PPOConfig, RewardConfig, RolloutConfig
from searchr1_mini.core.critic import Critic
from searchr1_mini.core.distributed import gather, share
from searchr1_mini.core.experience import Experience, policy_logprobs, prepare_grpo, prepare_ppo, update_rows
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.optimizer import Optimizer, logprob_changes
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example, step_questions
from searchr1_mini.core.retrieval import Retriever
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.core.rollout_stats import RolloutStats
from searchr1_mini.core.trajectory import Trajectory

Reward = Callable[[Trajectory, Example], float]


class Settings(Protocol):
    """What the loop reads of a run's options."""

    rollout: RolloutConfig
    optimization: OptimizationConfig
    reward: RewardConfig
    objective: ObjectiveConfig
    ppo: PPOConfig


@dataclass
class Environment:
    """What the policy is trained in: questions, the engine that answers its queries, the method, and their bounds."""

    examples: Sequence[Example]
    retriever: Retriever
    make_method: MakeMethod
    limits: RolloutLimits


@dataclass
class Rollouts:
    """All rollouts of a step, group after group.

    Attributes:
        group_ids: equal for the rollouts of one question, unique within the step.
        is_flat: (N,) bool, rows of groups whose rewards are all equal.
        advantages: (N,) of GRPO; PPO has one for each token, in its `Experience`.
        token_advantages: (N, T-1) of GRPO, 0 where masked: those, and what a variant adds to them.
        kept: rows that are learned from.
    """

    trajectories: list[Trajectory] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    group_ids: list[int] = field(default_factory=list)
    stats: list[RolloutStats] = field(default_factory=list)
    is_flat: Tensor | None = None
    advantages: Tensor | None = None
    token_advantages: Tensor | None = None
    kept: list[int] = field(default_factory=list)

    def groups_with_signal(self) -> list[int]:
        """Returns the ids of the groups whose rewards differ, in order."""
        seen: dict[int, set[float]] = {}
        for group, value in zip(self.group_ids, self.rewards, strict=True):
            seen.setdefault(group, set()).add(value)
        return [group for group, values in seen.items() if len(values) > 1]


@dataclass(frozen=True)
class Variant:
    """What a relative of GRPO does in another way than the paper; as it stands, the paper's way. See variants/.

    Attributes:
        roll_out: draws the trajectories of a step's questions in place of `rollout`.
        compare: advantages (N,) of rewards (N,) and numbers of groups (N,), as `group_advantages` does.
        add_advantages: of a step's rollouts and batch, what comes on top of those (N, T-1).
        importance: of the update's log-probs and the sampler's (N, T-1), weights (N, T-1) on the surrogate.
        ratio, surrogate, penalties: see `policy_loss`.
    """

    roll_out: Callable | None = None
    compare: Callable[[Tensor, Tensor], Tensor] = group_advantages
    add_advantages: Callable[[Rollouts, Batch], Tensor] | None = None
    importance: Callable[[Tensor, Tensor], Tensor] | None = None
    ratio: LogRatio | None = None
    surrogate: Surrogate = clipped_surrogate
    penalties: Mapping[str, tuple[float, Penalty]] = field(default_factory=dict)


PAPER = Variant()


class Run(Protocol):
    """What the loop needs of whatever keeps a run: its steps one after the other, and somebody to tell of each."""

    wants_ratios: bool  # whether pi(token) / pi_old(token) will be asked for after this step's updates

    def steps(self) -> Iterator[int]:
        """Yields the steps to come. Between two of them the run evaluates, saves, and stops."""

    def check(self, batch: Batch, rollouts: Rollouts) -> None:
        """Checks a step's rollouts before its update; raises where they are not sound."""

    def log(self, step: int, rollouts: Rollouts, experience: Experience | None, metrics: dict[str, float]) -> None:
        """Takes what a step did; `experience` is None where nothing was learned."""


def train_policy(
    policy: Policy,
    critic: Critic | None,
    environment: Environment,
    optimizer: Optimizer,
    settings: Settings,
    run: Run,
    reward: Reward,
    variant: Variant = PAPER,
) -> None:
    """Trains by Search-R1 (paper, section 3.1), by GRPO, or with a critic by PPO, one step after the other."""
    objective, temperature = settings.objective, settings.rollout.temperature
    for step in run.steps():
        # 1. Roll out: conversations with the search engine, G per question, every token recorded with its writer.
        # 2. Reward: each trajectory is paid for what the policy wrote.
        rollouts = collect(policy, environment, settings, step, reward, variant)

        # 3. The mask: what the policy wrote is learned from, what the engine wrote is not.
        batch = build_batch(
            rollouts.trajectories, rollouts.rewards, rollouts.group_ids, policy.tokenizer.pad_token_id,
            objective.mask_observations,
        )  # fmt: skip

        # 4. What must not move while the weights do: advantages, pi_old, the reference, and PPO's values.
        compare(rollouts, batch, settings, optimizer.updates, critic is None, variant)
        run.check(batch, rollouts)
        experience, passes = None, []
        if rollouts.kept:
            batch = batch.select(rollouts.kept)
            passes = update_rows(batch.group_ids.tolist(), settings.optimization, optimizer.updates)
            how = objective, temperature, optimizer.micro_batches, passes, run.wants_ratios
            if critic:
                experience = prepare_ppo(policy, critic, batch, settings.ppo, *how)
            else:
                experience = prepare_grpo(policy, batch, rollouts.token_advantages[rollouts.kept], *how)

        # 5. The losses of a micro-batch, each back-propagated where it is yielded.
        def losses(part: Experience) -> Iterator[tuple[Tensor, dict[str, Any]]]:
            logprobs, entropy = policy_logprobs(policy, part.batch, temperature, objective.entropy_coef > 0)
            loss, stats = micro_batch_loss(logprobs, entropy, part, objective, variant)
            yield loss, stats | {"change": logprob_changes(logprobs, part, optimizer.is_first_update)}
            if critic:
                with critic.active():  # forward and backward under the critic's adapter
                    values = critic.values(part.batch.input_ids, part.batch.position_ids)
                    loss = value_loss(values, part.values, part.returns, part.value_weights, settings.ppo.value_clip)
                    yield loss, {"value_loss": loss.detach()}

        # 6. Optimizer steps: `epochs` passes over the rollouts, in `mini_batches` steps each.
        optimizer.begin(step, sum(map(len, passes)))
        for rows in chain.from_iterable(passes):
            optimizer.step(weighted(experience.select(rows), settings, variant), losses)

        # 7. Log.
        run.log(step, rollouts, experience, optimizer.metrics())


def collect(
    policy: Policy, environment: Environment, settings: Settings, step: int, reward: Reward, variant: Variant = PAPER
) -> Rollouts:
    """Rolls out a step's questions; with dynamic sampling, rounds until enough groups differ in reward (DAPO)."""
    config, rollouts = settings.optimization, Rollouts()
    for round_ in range(settings.objective.dynamic_sampling):
        questions = step_questions(environment.examples, step, config, round_)
        group = [question for question in questions for _ in range(config.group_size)]
        trajectories, stats = (variant.roll_out or rollout)(
            group, environment.make_method, policy, environment.retriever, environment.limits,
            temperature=settings.rollout.temperature, seed=config.seed * 1_000_003 + step + round_ * 500_009,
        )  # fmt: skip
        rollouts.trajectories += trajectories
        rollouts.examples += group
        own = share(len(group))  # a reward that is asked twice need not say the same
        rollouts.rewards += gather([reward(t, e) for t, e in zip(trajectories[own], group[own], strict=True)])
        rollouts.group_ids += number_groups(group, config.group_size, round_ * config.questions_per_step)
        rollouts.stats.append(stats)
        if len(rollouts.groups_with_signal()) >= config.questions_per_step:
            break
    return rollouts


def number_groups(examples: Sequence[Example], group_size: int, first: int) -> list[int]:
    """Numbers the rollouts of a round, equally within a group, from `first` on."""
    return [first + index // group_size for index in range(len(examples))]


def compare(
    rollouts: Rollouts, batch: Batch, settings: Settings, updates: int, is_grpo: bool, variant: Variant
) -> None:
    """Compares each group's rewards with each other: fills in `is_flat`, `kept`, and both advantages."""
    objective = settings.objective
    rollouts.is_flat = zero_variance(batch.rewards, batch.group_ids)
    rollouts.kept = rows_to_train_on(rollouts, settings)
    if not batch.loss_mask[rollouts.kept].any():  # nobody wrote a token
        rollouts.kept = []
    if is_grpo:
        rollouts.advantages = variant.compare(batch.rewards, batch.group_ids)
        rollouts.token_advantages = rollouts.advantages[:, None] * batch.loss_mask
        if variant.add_advantages:
            rollouts.token_advantages += variant.add_advantages(rollouts, batch)
        advantages = rollouts.token_advantages[rollouts.kept]
        if not teaches(objective, settings.optimization.weight_decay, advantages, updates):
            rollouts.kept = []


def rows_to_train_on(rollouts: Rollouts, settings: Settings) -> list[int]:
    """Selects rows for the update: without flat groups, surplus groups and overlong rows where the options say so."""
    wanted = set(rollouts.group_ids)
    if settings.objective.dynamic_sampling > 1:
        wanted = set(rollouts.groups_with_signal()[: settings.optimization.questions_per_step])
    return [
        row
        for row, (trajectory, group) in enumerate(zip(rollouts.trajectories, rollouts.group_ids, strict=True))
        if group in wanted
        and not (settings.objective.drop_zero_variance and rollouts.is_flat[row])
        and not (settings.reward.overlong == "drop" and trajectory.finish_reason == "length")
    ]


def teaches(objective: ObjectiveConfig, weight_decay: float, advantages: Tensor, updates: int) -> bool:
    """Tells whether an update on rows of these advantages has a gradient, so that its forward is worth its time.

    With advantages of 0 only other terms have one; the KL's is 0 as long as the policy is its reference.
    """
    others = objective.entropy_coef or objective.llds_coef or weight_decay or (objective.kl_coef and updates)
    return bool(others) or bool(advantages.any())


def weighted(experience: Experience, settings: Settings, variant: Variant = PAPER) -> Experience:
    """Weighs (N, T-1) each token of what an optimizer step learns from, in its losses.

    Rows without an advantage count in the weights of the others. Where no other term has a gradient on them, they are
    left out of what is returned, so that nothing is computed of them.
    """
    mask, objective = experience.batch.loss_mask, settings.objective
    experience.weights = loss_weights(mask, objective.loss_aggregation, settings.rollout.max_new_tokens)
    if variant.importance:
        experience.importance = variant.importance(experience.batch.old_logprobs, experience.sampled_logprobs)
    if experience.values is not None:
        experience.value_weights = loss_weights(mask, "token")
    elif not (objective.kl_coef or objective.entropy_coef or variant.penalties):
        taught = experience.advantages.any(dim=1).nonzero()[:, 0].tolist()
        return experience.select(taught or [0])
    return experience


def micro_batch_loss(
    logprobs: Tensor, entropy: Tensor, part: Experience, objective: ObjectiveConfig, variant: Variant = PAPER
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the policy's loss on a micro-batch, and what it logs; where pi_old is nan, this forward is pi_old."""
    old_logprobs = torch.where(part.batch.old_logprobs.isnan(), logprobs.detach(), part.batch.old_logprobs)
    loss, stats = policy_loss(
        logprobs, old_logprobs, part.advantages, part.weights,
        clip_eps=objective.clip_eps, clip_eps_high=objective.clip_eps_high,
        ratio=variant.ratio, importance=part.importance,
        ref_logprobs=part.ref_logprobs, kl_coef=objective.kl_coef, kl_estimator=objective.kl_estimator,
        entropy=entropy, entropy_coef=objective.entropy_coef,
        surrogate=variant.surrogate, penalties=variant.penalties,
    )  # fmt: skip
    return loss, stats | {"loss": loss.detach(), "entropy": (entropy * part.weights).sum().detach()}
