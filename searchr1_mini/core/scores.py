"""The results of an evaluation: scores of each answer, means per source, intervals, a paired test, the failures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Retriever
from searchr1_mini.core.rewards import compared, compared_title, contains_gold, exact_match
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.core.trajectory import Trajectory

FAILURES = ("no answer", "malformed", "never retrieved", "misread", "inexact")
FINISH_REASONS = ("answer", "eos", "turns", "length")


def score(example: Example, trajectory: Trajectory) -> dict[str, float]:
    """Computes the figures of one trajectory; docs/evaluation.md explains each.

    `gold_retrieved`: see `has_found`. `support_retrieved` and `all_support_retrieved` (where supporting passages are
    known): some, or every one of them, came back, see `support_found`.
    """
    golden = example.golden_answers
    figures = {
        "em": exact_match(trajectory.answer, golden),
        "f1": f1_score(trajectory.answer, golden),
        "sub_em": sub_exact_match(trajectory.answer, golden),
        "searches": len(trajectory.queries),
        "response_tokens": trajectory.n_policy_tokens,
        "turns": sum(1 for _ in trajectory.of_kind("policy")),
        "invalid_actions": trajectory.invalid_actions,
        "answered": trajectory.answer is not None,
        "gold_retrieved": has_found(trajectory, golden, example.supporting),
    }
    if found := support_found(trajectory, example.supporting):
        figures |= {"support_retrieved": any(found), "all_support_retrieved": all(found)}
    why = failure(example, trajectory)
    figures |= {f"failure/{name}": name == why for name in FAILURES}
    figures |= {f"finish/{reason}": reason == trajectory.finish_reason for reason in FINISH_REASONS}
    return {name: float(value) for name, value in figures.items()}


def failure(example: Example, trajectory: Trajectory) -> str | None:
    """Tells why a trajectory is not exactly right, the first that holds; None if it is right.

    malformed: no answer, and some turn was no valid action (but for one that the end of the context cut off). no
    answer: none, though every turn was valid. inexact: a gold answer stands in the answer. never retrieved: no
    observation held a gold answer, see `has_found`. misread: one did.
    """
    golden = example.golden_answers
    if exact_match(trajectory.answer, golden):
        return None
    if trajectory.answer is None:
        return "malformed" if trajectory.invalid_actions and trajectory.finish_reason != "length" else "no answer"
    if sub_exact_match(trajectory.answer, golden):
        return "inexact"
    return "misread" if has_found(trajectory, golden, example.supporting) else "never retrieved"


def has_found(trajectory: Trajectory, golden_answers: Sequence[str], supporting: Sequence[tuple[str, str]]) -> bool:
    """Tells whether a gold answer stood in some observation; of a closed question, whether all its support came back.

    The word `no` stands in nearly every passage: where no supporting passages are known, nothing counts as found.
    """
    if is_closed(golden_answers):
        found = support_found(trajectory, supporting)
        return bool(found) and all(found)
    return any(contains_gold(text, golden_answers) for text in trajectory.retrieved)


def is_closed(golden_answers: Sequence[str]) -> bool:
    """Tells whether a question is answered by yes or no, true or false, which stand in no passage as its answer."""
    return any(compared(gold) in ("yes", "no", "true", "false") for gold in golden_answers)


def support_found(trajectory: Trajectory, supporting: Sequence[tuple[str, str]]) -> list[bool]:
    """Tells of each supporting passage whether it came back: its title, and words that others of that title lack."""
    titles = {compared_title(title) for titles in trajectory.titles for title in titles}
    return [
        compared_title(title) in titles and (not words or any(words in text for text in trajectory.retrieved))
        for title, words in supporting
    ]


def summarize(examples: Sequence[Example], trajectories: Sequence[Trajectory]) -> dict:
    """Averages `score` over trajectories, overall and `by_source`, with `n` and `valid_actions` (share of turns)."""
    scored = [(example.source, score(example, t)) for example, t in zip(examples, trajectories, strict=True)]
    sources = sorted({source for source, _ in scored})
    by_source = {source: means([figures for of, figures in scored if of == source]) for source in sources}
    return {**means([figures for _, figures in scored]), "by_source": by_source}


def means(scored: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of each figure over the trajectories that have it."""
    names = dict.fromkeys(name for figures in scored for name in figures)
    out = {name: fmean(figures[name] for figures in scored if name in figures) for name in names}
    out["valid_actions"] = 1 - out["invalid_actions"] / max(out["turns"], 1)
    return out | {"n": len(scored)}


def bootstrap_interval(values: Sequence[float], n_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Computes the 95 % percentile interval of the mean (Efron, 1979), from a fixed seed.

    Where all are 0, or all 1, of which it would have no width, it is Wilson's (1927).
    """
    if set(values) in ({0.0}, {1.0}):
        edge = 1.96**2 / (len(values) + 1.96**2)
        return (1 - edge, 1.0) if values[0] else (0.0, edge)
    array = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(array), size=(n_resamples, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def mcnemar(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Computes the two-sided p of McNemar's exact test (1947) on paired right/wrong answers; 1 if they never differ."""
    only_ours = sum(one > other for one, other in zip(ours, theirs, strict=True))
    n = only_ours + sum(one < other for one, other in zip(ours, theirs, strict=True))
    tail = sum(math.comb(n, k) for k in range(min(only_ours, n - only_ours) + 1))
    return min(1.0, 2 * tail / 2**n)


def evaluate(
    examples: Sequence[Example],
    make_method: MakeMethod,
    policy: Policy,
    retriever: Retriever,
    limits: RolloutLimits,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[dict, list[Trajectory]]:
    """Rolls out one trajectory per question, greedily at temperature 0; returns the summary and the trajectories."""
    trajectories, _ = rollout(examples, make_method, policy, retriever, limits, temperature=temperature, seed=seed)
    return summarize(examples, trajectories), trajectories


def sub_exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Returns 1.0 if the answer contains any gold answer as whole words after normalization, else 0.0."""
    if answer is None:
        return 0.0
    return float(contains_gold(answer, golden_answers))


def f1_score(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Returns the best token F1 against any gold answer, in [0, 1]; no answer scores 0.0.

    As HotpotQA's official script has it: where one side is yes or no, nothing but the same word scores.
    """
    if answer is None:
        return 0.0
    return max((_token_f1(compared(answer), compared(gold)) for gold in golden_answers), default=0.0)


def _token_f1(answer: str, gold: str) -> float:
    if answer != gold and {answer, gold} & {"yes", "no", "noanswer"}:
        return 0.0
    said, wanted = answer.split(), gold.split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
