"""Outcome rewards: exact match after SQuAD normalisation (paper, section 3.4), its variants, and F1 for reports."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from searchr1_mini.core.trajectory import Trajectory

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TAG = re.compile(r"(</?(?:think|search|answer|information)>)")


def normalise_answer(text: str) -> str:
    """SQuAD's normalisation: lower-case, no punctuation, no articles, single spaces (Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def compared(text: str) -> str:
    """What is compared: the normalised text, or where nothing is left of it (`A`, `The`, `+`) what is before that.

    An article stays if there is nothing else, and so does punctuation; else gold `A` would equal the answer `the`.
    """
    return (
        normalise_answer(text)
        or " ".join(text.lower().translate(_PUNCTUATION).split())
        or " ".join(text.lower().split())
    )


def exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the answer equals any gold answer after normalisation, else 0.0; no answer scores 0.0."""
    if answer is None:
        return 0.0
    return float(compared(answer) in {compared(gold) for gold in golden_answers})


def sub_exact_match(answer: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the answer contains any gold answer as whole words after normalisation, else 0.0."""
    if answer is None:
        return 0.0
    return float(contains_gold(answer, golden_answers))


def contains_gold(text: str, golden_answers: Sequence[str]) -> bool:
    """Whether any gold answer stands in the text, as whole words after normalisation of both, or is all of it.

    A gold answer of which normalisation leaves nothing must be all of it: an article stands in nearly every text.
    """
    words = f" {normalise_answer(text)} "
    stands = any(f" {gold} " in words for gold in map(normalise_answer, golden_answers) if gold)
    return stands or bool(exact_match(text, golden_answers))


def f1_score(answer: str | None, golden_answers: Sequence[str]) -> float:
    """The best token F1 against any gold answer, in [0, 1]; no answer scores 0.0.

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


def is_well_formed(trajectory: Trajectory) -> bool:
    """Whether every turn thinks once and acts once, nothing stands outside of the tags, and the last turn answers."""
    actions = [well_formed_action(turn) for turn in trajectory.turns()]
    return bool(actions) and actions[-1] == "answer" and all(action == "search" for action in actions[:-1])


def well_formed_action(turn: str) -> str | None:
    """`search` or `answer` if the turn is `<think>..</think> <action>..</action>` and nothing else, or None.

    Linear in len(turn): it looks at the first five tags at most. The text inside a tag is not empty.
    """
    parts = _TAG.split(turn, maxsplit=5)  # text, tag, text, tag, .., text
    if len(parts) != 9:
        return None
    outside, thought, between, content, after = parts[::2]
    action = parts[5][1:-1]
    is_framed = parts[1::2] == ["<think>", "</think>", f"<{action}>", f"</{action}>"] and action in ("search", "answer")
    is_bare = not (outside.strip() or between.strip() or after.strip())
    return action if is_framed and is_bare and thought and content else None


def format_reward(trajectory: Trajectory, golden_answers: Sequence[str]) -> float:
    """The public code's four values: right 1.0, right but malformed 0.8, wrong but well-formed 0.2, else 0.1.

    0.1 is for an answer that is wrong and malformed; without any answer a malformed trajectory gets 0.
    """
    if exact_match(trajectory.answer, golden_answers):
        return 1.0 if is_well_formed(trajectory) else 0.8
    if is_well_formed(trajectory):
        return 0.2
    return 0.0 if trajectory.answer is None else 0.1


def reward(
    trajectory: Trajectory, golden_answers: Sequence[str], kind: str = "em", retrieval_bonus: float = 0.0
) -> float:
    """r(x, y), by default EM(answer, gold), equation 4 of the paper.

    The answer is the one that ended the episode, which the rollout read from policy tokens only: an `<answer>` in the
    prompt or in a passage never scores. The bonus pays a wrong answer for a search that found the right one: it reads
    what the engine returned, and is 0 by default.

    Args:
        kind: `em`, `sub-em`, `f1` or `format`.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "em":
            score = exact_match(trajectory.answer, golden_answers)
        case "sub-em":
            score = sub_exact_match(trajectory.answer, golden_answers)
        case "f1":
            score = f1_score(trajectory.answer, golden_answers)
        case "format":
            score = format_reward(trajectory, golden_answers)
        case _:
            raise ValueError(f"unknown reward {kind!r}; it is em, sub-em, f1 or format")
    is_wrong = retrieval_bonus > 0 and not exact_match(trajectory.answer, golden_answers)
    if is_wrong and any(contains_gold(text, golden_answers) for text in trajectory.retrieved):
        score += retrieval_bonus
    return score
