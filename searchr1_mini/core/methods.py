"""How a question is answered, as generators: a method yields what it needs and is resumed with the result.

A method never sees a tensor, a batch or a device; `rollout.py` drives many of them at once. Fed by hand, each can be
tested without a model. `search_r1` is the paper's Algorithm 1; the others are what it is compared with (section 4.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from searchr1_mini.core.prompts import (
    INVALID_ACTION,
    REASON_IN_DOCUMENTS,
    SEARCH_O1_TEMPLATE,
    STOP_STRINGS,
    normalise_question,
    opening_of,
    parse_action,
    render_note,
    template_of,
    with_shots,
)
from searchr1_mini.core.retrieval import Passage


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

_TAG = re.compile(r"</?\w+>")


def show(passages: Sequence[Passage]) -> Method:
    """Reading as Search-R1 does it: the passages themselves enter the context."""
    yield Observe(passages=passages)


def search_r1(
    question: str,
    *,
    template: str = template_of("search-r1", "paper"),
    max_turns: int = 4,
    max_new_tokens: int = 500,
    topk: int = 3,
    serves_search: bool = True,
    last_turn: bool = True,
    read: Callable[[Sequence[Passage]], Method] = show,
) -> Method:
    """Search-R1 (paper, Algorithm 1): think, search, read, answer; at most `max_turns` actions.

    A turn that is neither a search nor an answer is told so and costs an action. After the budget is spent the policy
    gets one last turn, in which a search is no longer served (the public code; the paper stops at B, as does
    `last_turn=False`). Without `serves_search` there is no engine: a search is an invalid action too.
    """
    yield Prompt(template.format(question=normalise_question(question)))
    for _ in range(max_turns):
        action = parse_action((yield Generate(STOP_STRINGS, max_new_tokens)))
        if action.kind == "answer":
            yield Finish(action.content, "answer")
        elif action.kind == "search" and serves_search:
            passages = yield Search(action.content, topk)
            yield from read(passages)
        else:
            yield Observe(INVALID_ACTION)
    if last_turn:
        action = parse_action((yield Generate(STOP_STRINGS, max_new_tokens)))
        if action.kind == "answer":
            yield Finish(action.content, "answer")
        yield Finish(None, "turns", is_invalid=action.kind == "invalid")
    yield Finish(None, "turns")


def reason_in_documents(passages: Sequence[Passage], instruction: str, max_new_tokens: int) -> Method:
    """Reading as Search-o1 does it (arXiv 2501.05366): passages are condensed aside, the note enters the context."""
    note = yield Aside(passages, instruction, ("</think>",), max_new_tokens)
    yield Observe(render_note(note.removesuffix("</think>")))


def search_o1(question: str, *, template: str, max_new_tokens: int = 500, **settings: Any) -> Method:
    """Search-o1: searches while it reasons, and reasons in the documents before it goes on."""
    is_instructed = template.startswith(SEARCH_O1_TEMPLATE.partition("Question:")[0])
    instruction = REASON_IN_DOCUMENTS if is_instructed else "<think>"
    read = partial(reason_in_documents, instruction=instruction, max_new_tokens=max_new_tokens)
    return search_r1(question, template=template, max_new_tokens=max_new_tokens, read=read, **settings)


def reason(question: str, *, template: str, max_new_tokens: int = 500) -> Method:
    """One turn without a search engine that ends in an answer: direct, chain of thought, and R1, by their prompts."""
    yield Prompt(template.format(question=normalise_question(question)))
    yield from last_words(opening_of(template), max_new_tokens)


def last_words(opening: str, max_new_tokens: int) -> Method:
    """A turn that must answer; `opening` is the tag that the prompt has already written for it."""
    action = parse_action(opening + (yield Generate(("</answer>",), max_new_tokens)))
    yield Finish(action.content, "answer") if action.kind == "answer" else Finish(None, "eos", is_invalid=True)


def rag(question: str, *, template: str, max_new_tokens: int = 500, topk: int = 3) -> Method:
    """Retrieval-augmented generation: one search with the question itself, then the answer."""
    yield Prompt(template.format(question=normalise_question(question)))
    yield Observe(passages=(yield Search(question, topk)))
    yield from last_words("", max_new_tokens)


def ircot(question: str, *, template: str, max_turns: int = 4, max_new_tokens: int = 500, topk: int = 3) -> Method:
    """IRCoT (arXiv 2212.10509): a search with the question, then a sentence and a search with it, in turn."""
    yield Prompt(template.format(question=normalise_question(question)))
    query = question
    for _ in range(max_turns):
        yield Observe(passages=(yield Search(query, topk)))
        text = yield Generate(("\n", "</answer>"), max_new_tokens)
        action = parse_action(text)
        if action.kind == "answer":
            yield Finish(action.content, "answer")
        query = _TAG.sub(" ", text).strip() or question
    yield from last_words("", max_new_tokens)


def make_method(
    name: str,
    *,
    template: str,
    max_turns: int,
    max_new_tokens: int,
    topk: int,
    serves_search: bool = True,
    last_turn: bool = True,
    shots: str = "",
) -> MakeMethod:
    """The generator of that name with its settings; `template` is "paper" or "short" (the tiny base's).

    `shots` are worked examples that the prompt shows before the question.
    """
    generators = {"search-r1": search_r1, "search-o1": search_o1, "ircot": ircot, "rag": rag}
    text = with_shots(template_of(name, template), shots)
    settings: dict[str, Any] = {"template": text, "max_new_tokens": max_new_tokens}
    if name in generators:
        settings["topk"] = topk
    if name in ("search-r1", "search-o1", "ircot"):
        settings["max_turns"] = max_turns
    if name in ("search-r1", "search-o1"):
        settings |= {"serves_search": serves_search, "last_turn": last_turn}
    return partial(generators.get(name, reason), **settings)
