"""The text protocol of Search-R1: the template, the tags, what counts as an action, what an observation looks like.

Sources: the paper's Table 1 and Appendix; wording as in the public code so that published checkpoints work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Form = Literal["paper", "plain"]  # of an observation
STOP_STRINGS = ("</search>", "</answer>")

SEARCH_TEMPLATE = (
    "Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get new "
    "information. After reasoning, if you find you lack some knowledge, you can call a search engine by <search> query "
    "</search> and it will return the top searched results between <information> and </information>. You can search as "
    "many times as your want. If you find no further external knowledge needed, you can directly provide the answer "
    "inside <answer> and </answer>, without detailed illustrations. For example, <answer> Beijing </answer>. "
    "Question: {question}\n"
)


INVALID_ACTION = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. If I "
    "want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)

OBSERVATION_OPEN = "\n\n<information>"
OBSERVATION_CLOSE = "</information>\n\n"

# one class for what may stand before the name: `\s*/?\s*` would be quadratic in a run of blanks
_OUR_TAG = re.compile(r"<([\s/]*(?:think|search|information|answer)\s*)>", re.IGNORECASE)


class HasTitleAndText(Protocol):
    title: str
    text: str


@dataclass(frozen=True)
class Action:
    """What a policy turn asks for. `content` is stripped; it is empty for "invalid"."""

    kind: Literal["search", "answer", "invalid"]
    content: str = ""


def normalize_question(question: str) -> str:
    """Strips the question and adds a missing question mark, as the public code does."""
    question = question.strip()
    return question if question.endswith(("?", "？", "؟")) else question + "?"


def parse_action(text: str) -> Action:
    """Reads the action of one policy turn: the first closing `</search>` or `</answer>` decides.

    Linear in len(text) (`str.find`, no regular expression), so a turn of 128 k repeated tags costs nothing. The
    opening tag is the last one before the closing tag. An empty query or answer is invalid.
    """
    ends = [(end, kind) for kind in ("search", "answer") if (end := text.find(f"</{kind}>")) >= 0]
    if not ends:
        return Action("invalid")
    end, kind = min(ends)
    opening = f"<{kind}>"
    start = text.rfind(opening, 0, end)
    content = text[start + len(opening) : end].strip() if start >= 0 else ""
    return Action(kind, content) if content else Action("invalid")


def neutralize_tags(text: str) -> str:
    """Replaces our own tags in foreign text, `<answer>` -> `(answer)`, so that a passage cannot forge an action.

    In any case and with blanks inside, `</ Answer >`; linear in len(text).
    """
    parts = _OUR_TAG.split(text)  # every second part is what stood between the brackets
    parts[1::2] = [f"({inside})" for inside in parts[1::2]]
    return "".join(parts)


def render_passage(rank: int, passage: HasTitleAndText, form: Form = "plain") -> str:
    """Renders one line of an observation; `rank` starts at 1. Our own tags inside the passage are neutralized."""
    title, text = (neutralize_tags(part) for part in (passage.title, passage.text))
    return (
        f'Doc {rank}(Title: "{title}") {text}\n' if form == "paper" else f"Doc {rank}(Title: {title}) {text.strip()}\n"
    )


def render_observation(passages: Sequence[HasTitleAndText], form: Form = "plain") -> str:
    """Renders the text between two policy turns, `\\n\\n<information>Doc 1(Title: ...) ...</information>\\n\\n`.

    Args:
        passages: best first.
        form: "paper" has, for passages of wiki-18, the bytes of the public code (`_passages2string`): titles in
            double quotes, no blanks before the closing tag. "plain" is what the tiny base has learned.
    """
    lines = "".join(render_passage(rank, passage, form) for rank, passage in enumerate(passages, start=1))
    return OBSERVATION_OPEN + (lines.strip() if form == "paper" else lines) + OBSERVATION_CLOSE
