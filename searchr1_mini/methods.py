"""How a question is answered, as generators: a method yields what it needs and is resumed with the result.

A method never sees a tensor, a batch or a device; `rollout.py` drives many of them at once. Fed by hand, each can be
tested without a model. `search_r1` is the paper's Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from searchr1_mini.prompts import (
    INVALID_ACTION,
    REASON_TEMPLATE,
    SEARCH_TEMPLATE,
    SHORT_TEMPLATE,
    STOP_STRINGS,
    normalise_question,
    parse_action,
)
from searchr1_mini.retrieval import Passage


@dataclass(frozen=True)
class Prompt:
    """Opens the conversation with this user message. Resumed with None."""

    text: str


@dataclass(frozen=True)
class Generate:
    """Asks the policy for a turn that ends at a stop string, EOS or `max_new_tokens`. Resumed with its text."""

    stop: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Search:
    """Asks the retriever. Resumed with a list of `Passage`."""

    query: str
    topk: int


@dataclass(frozen=True)
class Observe:
    """Appends foreign text to the context: the passages of the last search, or else plain text. Resumed with None."""

    text: str = ""
    passages: Sequence[Passage] | None = None


@dataclass(frozen=True)
class Finish:
    """Ends the conversation; `answer` is None when there is none. Not resumed."""

    answer: str | None
    reason: str


Request = Prompt | Generate | Search | Observe | Finish
Method = Generator[Request, Any, None]
MakeMethod = Callable[[str], Method]


def search_r1(
    question: str,
    *,
    template: str = SEARCH_TEMPLATE,
    max_turns: int = 4,
    max_new_tokens: int = 500,
    topk: int = 3,
    last_turn: bool = True,
) -> Method:
    """Search-R1 (paper, Algorithm 1): think, search, read, answer; at most `max_turns` actions.

    A turn that is neither a search nor an answer is told so and costs an action. After the budget is spent the policy
    gets one last turn, in which a search is no longer served (the public code; the paper stops at B, as does
    `last_turn=False`).
    """
    yield Prompt(template.format(question=normalise_question(question)))
    for _ in range(max_turns):
        action = parse_action((yield Generate(STOP_STRINGS, max_new_tokens)))
        if action.kind == "answer":
            yield Finish(action.content, "answer")
        elif action.kind == "search":
            passages = yield Search(action.content, topk)
            yield Observe(passages=passages)
        else:
            yield Observe(INVALID_ACTION)
    if last_turn:
        action = parse_action((yield Generate(STOP_STRINGS, max_new_tokens)))
        if action.kind == "answer":
            yield Finish(action.content, "answer")
    yield Finish(None, "turns")


def r1(question: str, *, template: str = REASON_TEMPLATE, max_new_tokens: int = 500) -> Method:
    """R1 without a search engine (paper, section 4.2): reason, then answer, in one turn."""
    yield Prompt(template.format(question=normalise_question(question)))
    action = parse_action((yield Generate(("</answer>",), max_new_tokens)))
    yield Finish(action.content, "answer") if action.kind == "answer" else Finish(None, "eos")


def make_method(
    name: str, *, template: str, max_turns: int, max_new_tokens: int, topk: int, last_turn: bool = True
) -> MakeMethod:
    """The method of that name with its settings; `template` is "paper" or "short" (the tiny base's)."""
    if name == "r1":
        text = SHORT_TEMPLATE if template == "short" else REASON_TEMPLATE
        return lambda question: r1(question, template=text, max_new_tokens=max_new_tokens)
    text = SHORT_TEMPLATE if template == "short" else SEARCH_TEMPLATE
    return lambda question: search_r1(
        question,
        template=text,
        max_turns=max_turns,
        max_new_tokens=max_new_tokens,
        topk=topk,
        last_turn=last_turn,
    )
