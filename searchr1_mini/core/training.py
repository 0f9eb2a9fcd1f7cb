"""The loop: rollout, reward, advantage, update (paper, section 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from searchr1_mini.ablations import museum
from searchr1_mini.core import interrupt
from searchr1_mini.core.algorithms import group_advantages, soft_overlong, zero_variance
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.distributed import any_of, is_main, n_processes, on_main, processes
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.interrupt import Stopped, first_signal
from searchr1_mini.core.questions import Example, slice_of_step, stratified_slice
from searchr1_mini.core.rewards import reward
from searchr1_mini.core.rollout import rollout
from searchr1_mini.core.rollout_stats import RolloutStats, sum_stats
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.core.update import prepare, update
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.run.cold_start import cold_start
from searchr1_mini.run.diagnosis import diagnose, tell
from searchr1_mini.run.evaluations import finish, measure, measure_before
from searchr1_mini.run.imitation import demonstrations, imitates, imitation_step
from searchr1_mini.run.invariants import check_step
from searchr1_mini.run.log import trajectory_row, write_rollouts
from searchr1_mini.run.metrics import eval_metrics, rollout_metrics
from searchr1_mini.run.preflight import give_back_free_memory
from searchr1_mini.run.session import Session, save_step, start
from searchr1_mini.run.token_values import TokenValues, token_values
from searchr1_mini.storage.lock import only_one


def train(config: TrainConfig, write_report: Callable[[Path], Path] | None = None) -> Path:
    """Runs, or resumes, a training run, in as many processes as torchrun started; returns its folder.

    The first Ctrl-C (or SIGTERM) finishes the micro-batch at hand, saves and leaves; the second leaves at once.

    Raises:
        UserError: anything that the user can mend.
    """
    with processes(config.run.device) as scratch:
        return _train(config, scratch, write_report)


def _train(config: TrainConfig, scratch: Path | None, write_report) -> Path:
    with ExitStack() as held:
        if config.run.resume:  # before anything is read that another process may be writing
            on_main(lambda: hold(config, held))
        run = start(config, scratch)
        if not config.run.resume:
            on_main(lambda: hold(config, held))
        return _train_locked(run, write_report)


def hold(config: TrainConfig, held: ExitStack) -> None:
    """Takes the run's folder for this process, until `held` is closed.

    Raises:
        UserError: another process trains in it.
    """
    folder = Path(config.run.output_dir)
    if folder.is_dir():  # else --resume is told that there is no run
        held.enter_context(only_one(folder, "name another --output-dir"))


def _train_locked(run: Session, write_report) -> Path:
    with run.tracker, first_signal():
        try:
            run_steps(run)
            finish(run, write_report)
        except Stopped:
            print(f"go on with: python train.py --resume --output-dir {quote(str(run.folder))}", flush=True)
            raise KeyboardInterrupt from None
    return run.folder


def run_steps(run: Session) -> None:
    """Runs the remaining steps; one that is broken off leaves the weights as if it had not begun."""
    config = run.config
    if config.imitation.cold_start and run.after_cold_start is None:
        cold_start(run)
    measure_before(run)
    to_imitate = demonstrations(run) if imitates(config.run.algorithm) else []
    if run.unlogged is not None:
        unlogged, run.unlogged = run.unlogged, None
        end_step(run, run.first_step - 1, unlogged)
    for step in range(run.first_step, config.optimization.steps + 1):
        with saved_if_broken_off(run, step - 1):
            run.step = step
            if to_imitate:
                metrics = imitation_step(
                    run, slice_of_step(to_imitate, step, config.optimization.questions_per_step, config.run.seed)
                )
            else:
                metrics = train_step(run, step)
        run.train_seconds += metrics["seconds"]
        end_step(run, step, metrics)


def end_step(run: Session, step: int, metrics: dict[str, float]) -> None:
    """Evaluates and saves when it is time to, and logs.

    Raises:
        Stopped: the user asked to stop; the step is saved.
        UserError: updates are not finite.
    """
    config = run.config
    if step % config.logging.eval_every == 0 or step == config.optimization.steps:
        with saved_if_broken_off(run, step, unlogged=metrics):
            metrics = metrics | eval_metrics(measure(run))
    run.tracker.log(step, metrics)
    run.tracker.progress(step, metrics)
    run.tracker.warn(step, run.watch.see(step, metrics).values())
    is_stopping = any_of(interrupt.is_asked())
    if step % config.logging.save_every == 0 or step == config.optimization.steps or is_stopping:
        save_step(run, step)
    if is_stopping and step < config.optimization.steps:
        print(f"saved step {step}", flush=True)
        raise Stopped
    stop_if_diverged(run, step)


@contextmanager
def saved_if_broken_off(run: Session, step: int, unlogged: dict[str, float] | None = None) -> Iterator[None]:
    """If what is inside is broken off (a signal, a server that stays down), the last finished step is saved first.

    What breaks off has moved no weight: a signal is heeded before the first update of a step, and rollouts are the part
    that can fail. Several processes, of which one may have failed alone, go back to their last checkpoint instead.

    Args:
        step: the last one whose weights are as they should be.
        unlogged: its metrics, if an evaluation is still to be added to them.
    """
    try:
        yield
    except (Stopped, UserError) as reason:
        if n_processes() > 1 or step < run.first_step:
            raise
        run.unlogged = unlogged
        save_step(run, step)
        if isinstance(reason, Stopped):
            print(f"saved step {step}", flush=True)
            raise
        remedy = f"step {step} is saved, go on with: python train.py --resume --output-dir {quote(str(run.folder))}"
        raise UserError(f"{reason}; {remedy}") from reason


def stop_if_diverged(run: Session, step: int) -> None:
    """Saves and gives up once too many updates in a row were not finite.

    Raises:
        UserError: says what to try.
    """
    if run.skipped_in_a_row >= run.config.optimization.max_skipped_updates:
        path = save_step(run, step)
        raise UserError(
            f"the last {run.skipped_in_a_row} updates had a loss or gradient that was not finite and were thrown away; "
            f"the last sound weights are in {path}. Lower --learning-rate, or take --dtype float32, in a new run"
        )


@dataclass
class Rollouts:
    """All rollouts of a step, group after group; `group_ids` are unique within the step."""

    trajectories: list[Trajectory]
    examples: list[Example]
    rewards: list[float]
    group_ids: list[int]
    stats: RolloutStats


def train_step(run: Session, step: int) -> dict[str, float]:
    """One step: groups of rollouts, their rewards, their advantages, and the update (Search-R1, section 3.1)."""
    config, run.step = run.config, step
    began = time.perf_counter()
    rollouts = collect(run, step)
    give_back_free_memory()
    batch = build_batch(
        as_trained_on(run, rollouts.trajectories),
        rollouts.rewards,
        rollouts.group_ids,
        run.policy.tokenizer.pad_token_id,
        config.objective.mask_observations,
    )
    if step == 1 and is_main():
        is_instructed = bool(run.policy.tokenizer.chat_template)
        tell(run.folder, diagnose(rollouts.trajectories, config, is_instructed, rollouts.rewards))
    is_flat = zero_variance(batch.rewards, batch.group_ids)
    advantages = None
    if config.run.algorithm == "grpo":
        advantages = group_advantages(
            batch.rewards, batch.group_ids, config.objective.baseline, config.objective.normalize_std
        )
    kept = rows_to_train_on(config, rollouts, is_flat)
    if advantages is not None and not teaches(config, advantages[kept], run.updates):
        kept = []
    check_step(run, batch, rollouts.trajectories, kept, advantages)
    metrics: dict[str, float] = {}
    of_tokens: list[TokenValues] = []
    if kept:
        with_ratios = step % config.logging.eval_every == 0 or step == config.optimization.steps
        of_groups = None if advantages is None else advantages[kept]
        experience, metrics = prepare(run, batch.select(kept), of_groups, needs_old=with_ratios)
        metrics |= update(run, experience)
        of_tokens = token_values(run, experience, with_ratios)
    if is_main():
        write_rollouts(run.folder, step, rollout_rows(rollouts, advantages, dict(zip(kept, of_tokens, strict=True))))
    seconds = time.perf_counter() - began
    return {
        **rollout_metrics(rollouts.trajectories, rollouts.examples, rollouts.rewards, rollouts.stats),
        "zero_variance_groups": is_flat.float().mean().item(),
        "trained_on": len(kept) / len(is_flat),
        **metrics,
        "seconds": seconds,
        "tokens_per_second": rollouts.stats.tokens_total / seconds,
    }


def collect(run: Session, step: int) -> Rollouts:
    """Rollouts of a step's questions; with dynamic sampling, rounds until enough groups differ in reward (DAPO)."""
    config = run.config
    parts: list[Rollouts] = []
    for round_ in range(config.objective.dynamic_sampling):
        draw = stratified_slice if config.optimization.stratify else slice_of_step
        questions = draw(run.train.examples, step, config.optimization.questions_per_step, config.run.seed, round_)
        group = [question for question in questions for _ in range(config.optimization.group_size)]
        trajectories, stats = rollout(
            group, run.make_method, run.policy, run.train.retriever, run.limits,
            temperature=config.rollout.temperature, seed=config.run.seed * 1_000_003 + step + round_ * 500_009,
        )  # fmt: skip
        rewards = [reward_of(config, t, e) for t, e in zip(trajectories, group, strict=True)]
        first = round_ * config.optimization.questions_per_step
        group_ids = [first + index // config.optimization.group_size for index in range(len(group))]
        if config.museum.bug_colliding_groups:
            group_ids = museum.colliding_group_ids(group)
        parts.append(Rollouts(trajectories, group, rewards, group_ids, stats))
        if sum(len(groups_with_signal(part)) for part in parts) >= config.optimization.questions_per_step:
            break
    joined = [[x for part in parts for x in getattr(part, f.name)] for f in fields(Rollouts) if f.name != "stats"]
    return Rollouts(*joined, sum_stats([part.stats for part in parts]))


def groups_with_signal(rollouts: Rollouts) -> list[int]:
    """Ids of the groups whose rewards differ, in order."""
    seen: dict[int, set[float]] = {}
    for group, value in zip(rollouts.group_ids, rollouts.rewards, strict=True):
        seen.setdefault(group, set()).add(value)
    return [group for group, values in seen.items() if len(values) > 1]


def rows_to_train_on(config: TrainConfig, rollouts: Rollouts, is_flat: Tensor) -> list[int]:
    """Rows that go into the update: without flat groups, surplus groups and overlong rows where the config says so."""
    wanted = set(rollouts.group_ids)
    if config.objective.dynamic_sampling > 1:
        wanted = set(groups_with_signal(rollouts)[: config.optimization.questions_per_step])
    return [
        row
        for row, (trajectory, group) in enumerate(zip(rollouts.trajectories, rollouts.group_ids, strict=True))
        if group in wanted
        and not (config.objective.drop_zero_variance and is_flat[row])
        and not (config.reward.overlong == "drop" and trajectory.finish_reason == "length")
    ]


def teaches(config: TrainConfig, advantages: Tensor, updates: int) -> bool:
    """Whether an update on rows of these advantages (n,) can move a weight, so that its forward is worth its time.

    With advantages of 0 only other terms can; the KL's gradient is 0 as long as the policy is its reference.
    """
    others = (
        config.objective.entropy_coef
        or config.objective.llds_coef
        or config.optimization.weight_decay
        or (config.objective.kl_coef and updates)
    )
    return bool(others) or bool(advantages.any())


def reward_of(config: TrainConfig, trajectory: Trajectory, example: Example) -> float:
    """The reward that the config names."""
    if config.museum.bug_reward_from_whole_text:
        return museum.whole_text_reward(trajectory, example.golden_answers)
    value = reward(trajectory, example.golden_answers, config.reward.reward, config.reward.retrieval_bonus)
    if config.reward.overlong == "penalise":
        n_tokens = torch.tensor(len(trajectory.token_ids))
        value += soft_overlong(n_tokens, config.rollout.max_total_tokens, config.reward.overlong_buffer).item()
    return value


def as_trained_on(run: Session, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """The very trajectories that were sampled, unless the museum's flag says otherwise."""
    if run.config.museum.bug_retokenise:
        return [museum.retokenised(trajectory, run.policy.tokenizer) for trajectory in trajectories]
    return trajectories


def rollout_rows(rollouts: Rollouts, advantages: Tensor | None, of_tokens: dict[int, TokenValues]) -> Iterator[dict]:
    """Lines of rollouts/step-N.jsonl; `of_tokens` has the rows of the update, see `token_values`."""
    values = [None] * len(rollouts.rewards) if advantages is None else advantages.tolist()
    columns = zip(rollouts.trajectories, rollouts.examples, rollouts.rewards, values, strict=True)
    for row, (column, group) in enumerate(zip(columns, rollouts.group_ids, strict=True)):
        yield trajectory_row(*column, of_tokens.get(row)) | {"group": group, "in_update": row in of_tokens}
