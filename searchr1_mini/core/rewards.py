"""The outcome: exact match after SQuAD's normalization (paper, section 3.4)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u9fff\uac00-\ud7ff\uf900-\ufaff]")


def normalize_answer(text: str) -> str:
    """Normalizes as SQuAD does: lower-case, no punctuation, no articles, single spaces (Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def compared(text: str) -> str:
    """Returns what is compared: the normalized text, or the text before that if nothing is left (`A`, `The`, `+`).

    An article stays if there is nothing else, and so does punctuation; else gold `A` would equal the answer `the`.
    """
    return (
        normalize_answer(text)
        or " ".join(text.lower().translate(_PUNCTUATION).split())
        or " ".join(text.lower().split())
    )


def compared_title(title: str) -> str:
    """Returns what is compared of a passage's title: `Oslo_Ferry`, as in SQuAD's files, is `Oslo Ferry`."""
    return title.replace("_", " ").strip()


def exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """Returns 1.0 if the answer equals any gold answer after normalization, else 0.0; no answer scores 0.0."""
    if answer is None:
        return 0.0
    return float(compared(answer) in {compared(gold) for gold in golden_answers})


def contains_gold(text: str, golden_answers: Sequence[str]) -> bool:
    """Tells whether any gold answer stands in the text, as whole words after normalization of both, or is all of it.

    In scripts without blanks, such as Chinese, and in Korean, whose words end in particles, it stands anywhere.
    A gold answer of which normalization leaves nothing must be all of it: an article stands in nearly every text.
    """
    words = f" {normalize_answer(text)} "
    stands = any(
        (gold if _UNSPACED.search(gold) else f" {gold} ") in words
        for gold in map(normalize_answer, golden_answers)
        if gold
    )
    return stands or bool(exact_match(text, golden_answers))
