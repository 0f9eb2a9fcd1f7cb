"""Outcome rewards: exact match after SQuAD normalisation (paper, section 3.4), and F1 for reports."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from searchr1_mini.trajectory import Trajectory

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """SQuAD's normalisation: lower-case, no punctuation, no articles, single spaces (Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the answer equals any gold answer after normalisation, else 0.0; no answer scores 0.0."""
    if answer is None:
        return 0.0
    return float(normalise_answer(answer) in {normalise_answer(gold) for gold in golden_answers})


def f1_score(answer: str | None, golden_answers: Sequence[str]) -> float:
    """The best token F1 against any gold answer, in [0, 1]; no answer scores 0.0."""
    if answer is None:
        return 0.0
    return max((_token_f1(normalise_answer(answer), normalise_answer(gold)) for gold in golden_answers), default=0.0)


def _token_f1(answer: str, gold: str) -> float:
    said, wanted = answer.split(), gold.split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def reward(trajectory: Trajectory, golden_answers: Sequence[str]) -> float:
    """r(x, y) = EM(answer, gold), equation 4 of the paper.

    The answer is the one that ended the episode, which the rollout read from policy tokens only: an `<answer>` in the
    prompt or in a passage never scores.
    """
    return exact_match(trajectory.answer, golden_answers)
