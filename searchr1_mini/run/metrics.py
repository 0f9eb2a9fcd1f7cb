"""What a step's rollouts and evaluations look like as numbers; docs/algorithms.md explains each."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.rollout_stats import RolloutStats
from searchr1_mini.core.trajectory import Trajectory

CURVES = ("em", "f1", "searches", "response_tokens", "answered")  # of an evaluation, to follow over training


def rollout_metrics(
    trajectories: Sequence[Trajectory], examples: Sequence[Example], rewards: Sequence[float], stats: RolloutStats
) -> dict[str, float]:
    """Averages over a step's rollouts what a practitioner looks at, and what the stability watch looks at."""
    turns = [max(len(list(t.of_kind("policy"))), 1) for t in trajectories]
    return {
        "reward": fmean(rewards),
        "em": fmean(exact_match(t.answer, e.golden_answers) for t, e in zip(trajectories, examples, strict=True)),
        "searches": fmean(len(t.queries) for t in trajectories),
        "response_tokens": fmean(t.n_policy_tokens for t in trajectories),
        "observation_tokens": fmean(sum(len(s.token_ids) for s in t.of_kind("observation")) for t in trajectories),
        "answered": fmean(t.answer is not None for t in trajectories),
        "overlong": fmean(t.finish_reason == "length" for t in trajectories),
        "invalid_actions": fmean(t.invalid_actions for t in trajectories),
        "valid_actions": 1 - sum(t.invalid_actions for t in trajectories) / sum(turns),
        "empty_think": fmean(map(empty_think, trajectories)),
        "fed_ratio": stats.fed_ratio,
        "prefill_tokens_saved": stats.prefill_tokens_saved,
        "rollout_seconds": stats.seconds,
    }


def empty_think(trajectory: Trajectory) -> float:
    """Returns the share of turns whose `<think>` is missing, blank, a copy of an earlier one, or repetitive."""
    seen: set[str] = set()
    is_empty = []
    for turn in trajectory.turns():
        thought, is_closed, _ = turn.partition("<think>")[2].partition("</think>")
        words = thought.split() if is_closed else []
        thought = " ".join(words)
        is_empty.append(not words or thought in seen or (len(words) >= 10 and len(set(words)) < len(words) / 3))
        seen.add(thought)
    return fmean(is_empty) if is_empty else 1.0


def eval_metrics(summary: dict) -> dict[str, float]:
    """Flattens a summary into `eval/em`, `eval/world-2hop/searches`, ..."""
    parts = {"eval": summary} | {f"eval/{source}": values for source, values in summary["by_source"].items()}
    return {f"{name}/{key}": float(values[key]) for name, values in parts.items() for key in CURVES}
