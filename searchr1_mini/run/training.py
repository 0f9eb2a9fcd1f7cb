"""A run from its options to its summary: opened, cold-started, trained, measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from searchr1_mini.core.interrupt import Stopped
from searchr1_mini.core.training import Reward, train_policy
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.entry import end_log
from searchr1_mini.options.nested import options_of, with_options
from searchr1_mini.options.own_parts import check_fit, from_python, is_own, own_part, told_name
from searchr1_mini.options.own_results import checked_reward
from searchr1_mini.options.paths import with_folder
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.cold_start import cold_start
from searchr1_mini.run.evaluations import finish
from searchr1_mini.run.imitation import demonstrations, imitate, imitates
from searchr1_mini.run.museum import active_bug, planted, whole_text_reward
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.processes import on_main, processes
from searchr1_mini.run.rewards import outcome_reward
from searchr1_mini.run.run import Run
from searchr1_mini.run.signals import first_signal
from searchr1_mini.run.variant import configured_variant
from searchr1_mini.storage import status
from searchr1_mini.storage.lock import only_one


def train(
    config: TrainConfig, write_report: Callable[[Path], Path] | None = None, reward: Reward | None = None
) -> Path:
    """Runs, or resumes, a training run, in as many processes as torchrun started; returns its folder.

    The first Ctrl-C (or SIGTERM) finishes the micro-batch at hand, saves and leaves; the second leaves at once.

    Args:
        config: resolved; without a folder the run gets the one that train.py would give it.
        write_report: writes a page from the run's folder, in the end.
        reward: pays for the outcome in the place of `--reward`; a resumed run must be given it again.

    Raises:
        UserError: anything that the user can fix.
    """
    config = with_folder(config if reward is None else paid_by(config, reward))
    pays = configured_reward(config, reward)
    with processes(config.run.device) as scratch, ExitStack() as held:
        held.push(end_log)
        held.callback(status.say_left, None)
        if config.run.resume:  # before anything is read that another process may be writing
            on_main(lambda: hold(config, held))
        run = open_run(config, scratch, reward)
        if not config.run.resume:
            on_main(lambda: hold(config, held))
        held.enter_context(status.meanwhile("training"))  # shown between phases
        with run.tracker, first_signal():
            try:
                all_phases(run, pays)
                finish(run, write_report)
            except Stopped:
                print(f"continue with: {run.command_to_resume}", flush=True)
                raise KeyboardInterrupt from None
    return run.folder


def hold(config: TrainConfig, held: ExitStack) -> None:
    """Takes the run's folder for this process, until `held` is closed.

    Raises:
        UserError: another process trains in it.
    """
    folder = Path(config.run.output_dir)
    if folder.is_dir():  # else --resume is told that there is no run
        held.enter_context(only_one(folder, "name another --output-dir"))


def all_phases(run: Run, reward: Reward) -> None:
    """Makes the cold start, the evaluation of the base, and the remaining steps; what is broken off is saved."""
    config = run.config
    if config.imitation.cold_start and run.evaluations.after_cold_start is None:
        cold_start(run)
    run.evaluations.measure_before(run)
    if imitates(config.run.algorithm):
        with status.phase("sampling demonstrations"):
            shown = demonstrations(run)
        with run.saved_if_broken_off():
            imitate(run, shown)
        return
    with run.saved_if_broken_off(), planted(active_bug(config.run), run.policy.tokenizer):
        train_policy(
            run.policy, run.critic, run.environment, run.optimizer, config, run, reward, configured_variant(config)
        )


def paid_by(config: TrainConfig, reward: Reward) -> TrainConfig:
    """Returns the config with a function from Python as its reward.

    Raises:
        UserError: it does not fit, or the options leave no place for a `--reward` of the user's own.
    """
    name = from_python(reward)
    check_fit("reward", reward, f"the reward {told_name(name)}")
    return resolve(with_options(config, reward=name), unasked={*options_of(TrainConfig)} - {"reward"})


def configured_reward(config: TrainConfig, own: Reward | None = None) -> Reward:
    """Returns what the options say that a trajectory earns.

    Args:
        own: from Python, pays for the outcome.

    Raises:
        UserError: the options name a part of the user's own that is not there.
    """
    if active_bug(config.run) == "reward-from-whole-text":
        return lambda trajectory, example: whole_text_reward(trajectory, example.golden_answers)
    name = config.reward.reward
    own = own or (own_part("reward", name) if is_own(name) else None)
    own = own and checked_reward(own, told_name(name))
    return outcome_reward(config.reward, config.rollout.max_total_tokens, own, config.variant.action_penalty)
