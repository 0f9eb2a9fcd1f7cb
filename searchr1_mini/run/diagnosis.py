"""Why a run will learn nothing, said at its start: a model that writes no tags, or rewards that are all equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.prompts import parse_action
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import options_of, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.storage.files import write_text_atomic
from searchr1_mini.storage.printable import one_line

DIAGNOSIS = "diagnosis.txt"
FORMLESS = "diagnosis: only"  # how that of a model begins which does not know the form
FEW_VALID = 0.1  # share of turns that are valid actions, below which the form is not known
ENOUGH = 8  # turns without form, or equal rewards, that are no accident
MOST_CHARACTERS = 110  # of each line of the rollout that is shown
MORE_ROUNDS = 3  # of --dynamic-sampling, as a remedy


def diagnose(
    trajectories: Sequence[Trajectory],
    config: TrainConfig,
    is_instructed: bool,
    rewards: Sequence[float] | None = None,
) -> str | None:
    """Returns one paragraph on what is wrong and what to try, or None where RL has something to work with.

    Args:
        trajectories: of an evaluation, or the rollouts of a step.
        is_instructed: the model follows instructions, as far as its name tells.
        rewards: of the rollouts of a step, all of the same weights.
    """
    turns = sum(sum(1 for _ in t.of_kind("policy")) for t in trajectories)
    valid = 1 - sum(t.invalid_actions for t in trajectories) / max(turns, 1)
    is_formless = turns >= ENOUGH and valid < FEW_VALID
    is_flat = rewards is not None and len(rewards) >= ENOUGH and len(set(rewards)) == 1 and rewards[0] < 1
    if not (is_formless or is_flat):
        return None
    n_cut = sum(cut_turns(trajectory, config.rollout.max_new_tokens) for trajectory in trajectories)
    is_cut = 2 * n_cut > turns
    told = f"{FORMLESS} {valid:.0%} of {turns} turns are a valid action, <search> or <answer>"
    if not is_formless:
        told = f"diagnosis: all {len(rewards)} rewards are equal ({rewards[0]:g})"
        told += f", though {valid:.0%} of the turns are valid actions"
    if is_cut:
        told += f"; {n_cut} were cut at --max-new-tokens {config.rollout.max_new_tokens}, or left their tag open"
    remedies = [
        f"  {number}. {remedy}"
        for number, remedy in enumerate(what_to_try(config, is_formless, is_instructed, is_cut), start=1)
    ]
    return "\n".join(
        [
            f"{told}. Where all rollouts earn the same, RL has nothing to learn from. One of them:",
            *(f"  | {line}" for line in in_three_lines(trajectories[0])),
            "what to try, in this order:",
            *remedies,
        ]
    )


def cut_turns(trajectory: Trajectory, max_new_tokens: int) -> int:
    """Counts the invalid turns that took all their tokens, or opened an action without closing it."""
    n_tokens = [len(segment.token_ids) for segment in trajectory.of_kind("policy")]
    return sum(
        parse_action(text).kind == "invalid" and (n >= max_new_tokens or is_open(text))
        for text, n in zip(trajectory.turns(), n_tokens, strict=True)
    )


def is_open(text: str) -> bool:
    """Tells whether an action was begun after the last one that was closed."""
    return any(text.rfind(f"<{kind}>") > text.rfind(f"</{kind}>") for kind in ("search", "answer"))


def what_to_try(config: TrainConfig, is_formless: bool, is_instructed: bool, is_cut: bool = False) -> list[str]:
    """Returns remedies, the likeliest first, less those that the run already takes, or could not take."""
    more, several = max(200, 2 * config.imitation.cold_start), 2 * config.optimization.group_size
    room = f"--max-new-tokens {max(100, 2 * config.rollout.max_new_tokens)}"
    samples = [f"--group-size {several}"] if takes(config, group_size=several) else []
    is_new = config.objective.dynamic_sampling < MORE_ROUNDS and takes(config, dynamic_sampling=MORE_ROUNDS)
    samples += [f"--dynamic-sampling {MORE_ROUNDS}"] if is_new else []
    partly = ", or --reward f1" if config.reward.reward != "f1" and takes(config, reward="f1") else ""
    pays_form = is_formless and config.reward.reward != "format" and takes(config, reward="format")
    remedies = {
        f"{room}, and --max-total-tokens if that is short: most turns are cut before their closing tag": is_cut,
        f"--cold-start {more}: imitate {more} scripted episodes before RL": takes(config, cold_start=more),
        "an -Instruct model, which follows the prompt sooner": not is_instructed,
        "--reward format: pay for a well-formed turn too": pays_form,
        f"more rollouts per question: {', or '.join(samples)}": bool(samples),
        f"easier questions{partly}": not is_formless,
    }
    return [remedy for remedy, is_open in remedies.items() if is_open]


def takes(config: TrainConfig, **remedy: Any) -> bool:
    """Tells whether a run like this one would take an option, neither refusing it nor leaving it unread."""
    begun = with_options(config, resume=False, init=None, **remedy)
    try:
        resolve(begun, unasked=options_of(TrainConfig).keys() - remedy.keys())
    except UserError:
        return False
    return True


def in_three_lines(trajectory: Trajectory) -> list[str]:
    """Returns the end of the prompt, the first turn, and how the rollout ended."""
    prompt = next(trajectory.of_kind("prompt"))
    first = next(trajectory.of_kind("policy"), None)
    ended = (
        f"answer: {trajectory.answer}" if trajectory.answer is not None else f"no answer ({trajectory.finish_reason})"
    )
    wrote = one_line(first.text) if first else ""
    ends = one_line(prompt.text)
    return [
        f"prompt: ..{ends[-MOST_CHARACTERS:]}",
        f"wrote: {wrote[:MOST_CHARACTERS]}{'..' if len(wrote) > MOST_CHARACTERS else ''}",
        one_line(f"{ended}, after {trajectory.invalid_actions} invalid turns")[:MOST_CHARACTERS],
    ]


def tell(folder: Path, diagnosis: str | None) -> None:
    """Prints a diagnosis and keeps it in the run's folder for its end and its report; None is not told."""
    if diagnosis:
        print(f"\n{diagnosis}\n", flush=True)
        write_text_atomic(folder / DIAGNOSIS, diagnosis + "\n")


def tell_again(folder: Path, after: dict) -> None:
    """Prints the run's diagnosis under its last table where it still holds; else it is taken out of the folder.

    Args:
        after: summary of the evaluation at the end.
    """
    path = folder / DIAGNOSIS
    told = path.read_text(encoding="utf-8").rstrip() if path.is_file() else ""
    holds = after["valid_actions"] < FEW_VALID if told.startswith(FORMLESS) else after["em"] == 0
    if told and holds:
        print(f"\n{told}", flush=True)
    else:
        path.unlink(missing_ok=True)
