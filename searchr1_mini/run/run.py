"""A run: its state and its owners, what happens between two steps, and what is saved."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from searchr1_mini.core import interrupt
from searchr1_mini.core.batch import Batch
from searchr1_mini.core.critic import Critic
from searchr1_mini.core.distributed import any_process, is_main, n_processes
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.experience import Experience
from searchr1_mini.core.interrupt import Stopped
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.optimizer import Optimizer
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.core.rollout_stats import sum_stats
from searchr1_mini.core.training import Environment, Rollouts
from searchr1_mini.models.names import is_instructed
from searchr1_mini.models.saving import load_reference, save_critic, save_policy, save_reference
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import WITHOUT_SEARCH
from searchr1_mini.options.outcome import is_of_the_disk
from searchr1_mini.options.own_parts import is_from_python
from searchr1_mini.run.diagnosis import diagnose, tell
from searchr1_mini.run.evaluations import Evaluations
from searchr1_mini.run.invariants import check_step
from searchr1_mini.run.log import Tracker, truncate_metrics, write_rollouts
from searchr1_mini.run.metrics import eval_metrics, rollout_metrics
from searchr1_mini.run.museum import HINTS, active_bug
from searchr1_mini.run.preflight import give_back_free_memory
from searchr1_mini.run.processes import on_main
from searchr1_mini.run.task import Task
from searchr1_mini.run.token_values import rollout_rows
from searchr1_mini.run.watch import Watch
from searchr1_mini.storage import checkpoint, status, training_state
from searchr1_mini.storage.files import joined_by_step, write_json_atomic
from searchr1_mini.storage.forms import WARNING

TENSORS = ("optimizer", "scaler")  # of the owners' state, kept by torch


class Diverged(UserError):
    """Too many updates in a row were not finite; what is worth saving is saved."""


class Clock:
    """How long a run takes, in all of its processes."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.earlier_seconds = self.train_seconds = self.cold_start_seconds = 0.0

    @property
    def total_seconds(self) -> float:
        """Seconds of this process and of those before it."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def state_dict(self) -> dict[str, float]:
        """Returns the seconds so far."""
        return {
            "train_seconds": self.train_seconds,
            "total_seconds": self.total_seconds,
            "cold_start_seconds": self.cold_start_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.train_seconds, self.earlier_seconds = state["train_seconds"], state["total_seconds"]
        self.cold_start_seconds = state.get("cold_start_seconds", 0.0)


class Run:
    """What is trained, on what, where it is kept, and the owners of what a checkpoint holds.

    Attributes:
        config, folder: its options; its folder, which for a process that is not the first is thrown away in the end.
        policy, critic, optimizer: what is trained.
        train, held_out: questions and their retrievers.
        step: the one at hand.
        first_step: 1, or the step after the checkpoint that it was resumed from.
        whole_step: the last step that is whole, and `whole_updates` the optimizer's count when it was.
        frozen_digest: of the weights that nothing trains, with `--check`.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        policy: Policy,
        critic: Critic | None,
        optimizer: Optimizer,
        train: Task,
        held_out: Task,
        make_method: MakeMethod,
        limits: RolloutLimits,
    ) -> None:
        self.config, self.folder = config, folder
        self.policy, self.critic, self.optimizer = policy, critic, optimizer
        self.train, self.held_out, self.make_method, self.limits = train, held_out, make_method, limits
        self.clock, self.evaluations, self.watch = Clock(), Evaluations(), Watch()
        self.tracker: Tracker | None = None
        self.first_step = self.step = 1
        self.whole_step = self.whole_updates = 0
        self.frozen_digest: int | None = None
        self.step_began = 0.0

    @property
    def environment(self) -> Environment:
        """What the policy is trained in."""
        return Environment(self.train.examples, self.train.retriever, self.make_method, self.limits)

    @property
    def wants_ratios(self) -> bool:
        """Whether rollouts are written down with pi(token) / pi_old(token): at steps that an evaluation follows."""
        return self.evaluations.is_due(self.step, self.config)

    def steps(self) -> Iterator[int]:
        """Yields the steps that are to come; between two of them the run evaluates, saves, and stops.

        Raises:
            Stopped: the user asked to stop; the step is saved.
            UserError: too many updates in a row were not finite.
        """
        if self.evaluations.is_due(self.whole_step, self.config):  # it was broken off
            self.end_step()
        for step in range(self.first_step, self.config.optimization.steps + 1):
            self.step, self.step_began = step, time.perf_counter()
            with status.phase(f"step {step}/{self.config.optimization.steps}"):
                yield step
            self.end_step()

    def check(self, batch: Batch, rollouts: Rollouts) -> None:
        """Looks over a step's rollouts before their update; at the first step, tells why nothing may be learned.

        Raises:
            UserError: an invariant does not hold.
        """
        give_back_free_memory()
        if self.step == 1 and is_main():
            knows_form = is_instructed(self.policy.base_name)
            tell(self.folder, diagnose(rollouts.trajectories, self.config, knows_form, rollouts.rewards))
        if active_bug(self.config.run) is None:
            check_step(self, batch, rollouts)

    def log(self, step: int, rollouts: Rollouts, experience: Experience | None, metrics: dict[str, float]) -> None:
        """Writes a step's rollouts and numbers; from here on the step is whole."""
        with status.phase("after the updates"):
            rows = rollout_rows(self, rollouts, experience)
        if is_main():
            write_rollouts(self.folder, step, rows)
        if self.config.run.mystery is not None:
            metrics = {name: value for name, value in metrics.items() if name not in HINTS}
        stats = sum_stats(rollouts.stats)
        seconds = time.perf_counter() - self.step_began
        self.log_step(
            rollout_metrics(rollouts.trajectories, rollouts.examples, rollouts.rewards, stats)
            | {
                "zero_variance_groups": rollouts.is_flat.float().mean().item(),
                "trained_on": len(rollouts.kept) / len(rollouts.is_flat),
                "trained_tokens": 0 if experience is None else self.tokens_of(experience.batch),
            }
            | ({} if experience is None else experience.metrics | metrics)
            | {"seconds": seconds, "tokens_per_second": stats.tokens_total / seconds}
        )

    def tokens_of(self, batch: Batch) -> int:
        """Counts tokens of a step's batch that are in its loss, each as often as there are passes over it."""
        return int(batch.loss_mask.sum()) * self.config.optimization.epochs

    def log_step(self, metrics: dict[str, float]) -> None:
        """Logs the numbers of the step at hand, which is whole from here on."""
        metrics = metrics | {"updates": self.optimizer.updates - self.whole_updates}
        self.finish_step(self.step, metrics)
        self.tracker.log(self.step, metrics)
        self.tracker.progress(self.step, metrics, self.seconds_left)
        status.say_left(self.seconds_left)
        self.tracker.warn(self.step, self.watch.see(self.step, metrics).values())

    @property
    def seconds_left(self) -> float:
        """What the steps and evaluations to come will take, if each takes as long as those so far."""
        last, searches = self.config.optimization.steps, self.config.run.method not in WITHOUT_SEARCH
        to_come = range(self.whole_step + 1, last + 1)
        n_evaluations = sum(self.evaluations.is_due(step, self.config) for step in to_come) + searches
        return len(to_come) * self.clock.train_seconds / self.whole_step + n_evaluations * self.evaluations.seconds

    def finish_step(self, step: int, metrics: dict[str, float]) -> None:
        """Takes a step for whole: what is broken off from here on has moved no weight."""
        self.clock.train_seconds += metrics["seconds"]
        self.whole_step, self.whole_updates = step, self.optimizer.updates
        interrupt.release()

    def end_step(self) -> None:
        """Evaluates and saves when it is time to, see `steps`."""
        step, last = self.whole_step, self.config.optimization.steps
        if self.evaluations.is_due(step, self.config):
            scores = eval_metrics(self.evaluations.measure(self, f"after step {step}"))
            self.tracker.log(step, scores)
            self.tracker.show_scores(step, scores)
            self.evaluations.at_step = step
        is_stopping = any_process(interrupt.is_asked())
        if step % self.config.logging.save_every == 0 or step == last or is_stopping:
            self.save(step)
        if is_stopping and step < last:
            print(f"saved step {step}", flush=True)
            raise Stopped
        self.stop_if_diverged(step)

    def stop_if_diverged(self, step: int, rate: str = "--learning-rate") -> None:
        """Saves and gives up once too many updates in a row were not finite; `rate` is the flag of their rate.

        Raises:
            UserError: says what to try.
        """
        n_skipped = self.optimizer.skipped_in_a_row
        if n_skipped >= self.config.optimization.max_skipped_updates:
            path = self.save(step)
            raise Diverged(
                f"the last {n_skipped} updates had a loss or gradient that was not finite and were thrown away; the "
                f"last sound weights are in {path}. Lower {rate}, or take --dtype float32, in a new run"
            )

    @contextmanager
    def saved_if_broken_off(self) -> Iterator[None]:
        """Saves the last whole step if what is inside is broken off (a signal, a server that stays down, a fault).

        It is saved if no update has been made since: weights are then those of that step. Several processes, of which
        one may have failed alone, go back to their last checkpoint instead, and so does a run whose disk fails.
        """
        try:
            yield
        except Diverged:
            raise
        except (Stopped, Exception) as reason:
            is_as_it_was = self.optimizer.updates == self.whole_updates and self.whole_step >= self.first_step
            if n_processes() > 1 or not is_as_it_was or is_of_the_disk(reason):
                raise
            self.save(self.whole_step)
            if isinstance(reason, Stopped):
                print(f"saved step {self.whole_step}", flush=True)
                raise
            remedy = f"step {self.whole_step} is saved; continue with: {self.command_to_resume}"
            if not isinstance(reason, UserError):  # a fault of the program, or of a part of the user's own
                print(remedy, file=sys.stderr, flush=True)
                raise
            raise UserError(f"{reason}; {remedy}") from reason

    @property
    def command_to_resume(self) -> str:
        """What to type to go on with the run; in a cold start too, whose own folder no command takes."""
        folder = self.config.run.output_dir
        if is_from_python(self.config.reward.reward):
            name = self.config.reward.reward.rpartition(":")[2]
            return f"train(config, reward={name}) in Python, with resume=True in the config of {folder}"
        return f"python train.py --resume --output-dir {quote(folder)}"

    @property
    def owners(self) -> tuple:
        """Whatever has a state that a resumed run needs; each writes its own."""
        return self.optimizer, self.evaluations, self.clock

    def save(self, step: int) -> Path:
        """Writes checkpoints/step-N: weights, and what the owners have."""

        def write_files(folder: Path) -> None:
            save_policy(self.policy, folder / "model")
            save_reference(self.policy, folder / "model")
            if self.critic:
                save_critic(self.critic, folder / "critic")
            state = {name: value for owner in self.owners for name, value in owner.state_dict().items()}
            tensors = {name: state.pop(name) for name in TENSORS}
            torch.save(tensors | {"rng": training_state.capture_rng()}, folder / "state.pt")
            write_json_atomic(folder / "progress.json", {"step": step} | state)

        def write() -> Path:
            path = checkpoint.save_checkpoint(self.folder, step, write_files)
            checkpoint.prune_checkpoints(self.folder, self.config.logging.keep_checkpoints)
            return path

        return on_main(write)

    def restore(self, folder: Path) -> None:
        """Goes on exactly where a checkpoint was written.

        Raises:
            UserError: the checkpoint is of another version.
        """
        load_reference(self.policy, folder / "model")
        progress = checkpoint.read_progress(folder / "progress.json")
        tensors = training_state.read_tensors(folder / "state.pt")
        with training_state.own_format(folder):
            for owner in self.owners:
                owner.load_state_dict(progress | tensors)
            training_state.restore_rng(tensors["rng"])
            self.first_step, self.whole_step = progress["step"] + 1, progress["step"]
        self.whole_updates = self.optimizer.updates
        self.watch = Watch(joined_by_step(truncate_metrics(self.folder / "metrics.jsonl", self.whole_step)))
        truncate_metrics(self.folder / "warnings.jsonl", self.whole_step, WARNING)
        print(f"resumed after step {self.whole_step} from {folder}", flush=True)
