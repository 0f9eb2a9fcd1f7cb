"""Greedy evaluation on held-out questions: EM, F1, searches and response length, per source and in all."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from searchr1_mini.data import Example
from searchr1_mini.methods import MakeMethod
from searchr1_mini.models import Policy
from searchr1_mini.retrieval import Retriever
from searchr1_mini.rewards import exact_match, f1_score
from searchr1_mini.rollout import RolloutLimits, rollout
from searchr1_mini.trajectory import Trajectory


def summarise(examples: Sequence[Example], trajectories: Sequence[Trajectory]) -> dict:
    """Means over the trajectories, in all and `by_source`.

    Keys: `em` and `f1` (0 to 1), `searches` (executed queries a question), `response_tokens` (tokens that the policy
    wrote), `answered` (share with an answer), `n`.
    """

    def means(pairs: list[tuple[Example, Trajectory]]) -> dict:
        return {
            "em": fmean(exact_match(t.answer, e.golden_answers) for e, t in pairs),
            "f1": fmean(f1_score(t.answer, e.golden_answers) for e, t in pairs),
            "searches": fmean(len(t.queries) for _, t in pairs),
            "response_tokens": fmean(t.n_policy_tokens for _, t in pairs),
            "answered": fmean(t.finish_reason == "answer" for _, t in pairs),
            "n": len(pairs),
        }

    pairs = list(zip(examples, trajectories, strict=True))
    sources = sorted({example.source for example in examples})
    by_source = {source: means([pair for pair in pairs if pair[0].source == source]) for source in sources}
    return {**means(pairs), "by_source": by_source}


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
    """One trajectory a question; temperature 0 decodes greedily. Returns the summary and the trajectories."""
    trajectories, _ = rollout(examples, make_method, policy, retriever, limits, temperature=temperature, seed=seed)
    return summarise(examples, trajectories), trajectories
