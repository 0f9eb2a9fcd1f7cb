"""How a question is answered, as generators: a method yields what it needs and is resumed with the result.

A method never sees a tensor, a batch or a device; `rollout.py` drives many of them at once. Fed by hand, each can be
tested without a model. `search_r1` is the paper's Algorithm 1; run/methods.py has what it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from searchr1_mini.core.prompts import INVALID_ACTION, SEARCH_TEMPLATE, STOP_STRINGS, normalize_question, parse_action
from searchr1_mini.core.retrieval import Passage


@dataclass(frozen=True)
class Prompt:
    """Opens the conversation with this user message, or goes on from these tokens. Resumed with None."""

    text: str
    token_ids: tuple[int, ...] = ()


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
    """Appends foreign text: the passages of a search and the tokens `then`, or else plain text. Resumed with None."""

    text: str = ""
    passages: Sequence[Passage] | None = None
    then: tuple[int, ...] = ()


@dataclass(frozen=True)
class Aside:
    """A turn that leaves no trace in the context, on passages and an instruction. Resumed with its text."""

    passages: Sequence[Passage]
    text: str
    stop: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Finish:
    """Ends the conversation; `answer` is None when there is none. Not resumed.

    `is_invalid`: the last turn was no valid action.
    """

    answer: str | None
    reason: str
    is_invalid: bool = False


Request = Prompt | Generate | Search | Observe | Aside | Finish
Method = Generator[Request, Any, None]
MakeMethod = Callable[[str], Method]


def show(passages: Sequence[Passage]) -> Method:
    """Reads as Search-R1 does: the passages themselves enter the context."""
    yield Observe(passages=passages)


def search_r1(
    question: str,
    *,
    template: str = SEARCH_TEMPLATE,
    max_turns: int = 4,
    max_new_tokens: int = 500,
    topk: int = 3,
    serves_search: bool = True,
    read: Callable[[Sequence[Passage]], Method] = show,
) -> Method:
    """Runs Search-R1 (paper, Algorithm 1): think, search, read, answer; at most `max_turns` actions.

    A turn that is neither a search nor an answer is told so and costs an action. After the budget is spent the policy
    gets one last turn, in which a search is no longer served (the public code; the paper stops at B). Without
    `serves_search` there is no engine: a search is an invalid action too.
    """
    yield Prompt(template.format(question=normalize_question(question)))
    for _ in range(max_turns):
        action = parse_action((yield Generate(STOP_STRINGS, max_new_tokens)))
        if action.kind == "answer":
            yield Finish(action.content, "answer")
        elif action.kind == "search" and serves_search:
            passages = yield Search(action.content, topk)
            yield from read(passages)
        else:
            yield Observe(INVALID_ACTION)
    action = parse_action((yield Generate(STOP_STRINGS, max_new_tokens)))
    if action.kind == "answer":
        yield Finish(action.content, "answer")
    yield Finish(None, "turns", is_invalid=action.kind == "invalid")
