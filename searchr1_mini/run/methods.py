"""Every method by its name: Search-R1, and what it is compared with (paper, section 4.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from searchr1_mini.core.methods import Aside, Finish, Generate, MakeMethod, Method, Observe, Prompt, Search, search_r1
from searchr1_mini.core.prompts import normalize_question, parse_action
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.run.templates import (
    REASON_IN_DOCUMENTS,
    SEARCH_O1_TEMPLATE,
    Worked,
    render_note,
    template_of,
    template_opening,
    with_shots,
)

_TAG = re.compile(r"</?\w+>")
OpenMessage = Callable[[str], tuple[Sequence[int], Sequence[int]]]  # see models/prompting.py, `open_message_ids`


def reason_in_documents(passages: Sequence[Passage], instruction: str, max_new_tokens: int) -> Method:
    """Reads as Search-o1 does (arXiv 2501.05366): passages are condensed aside, and the note enters the context."""
    note = yield Aside(passages, instruction, ("</think>",), max_new_tokens)
    yield Observe(render_note(note.removesuffix("</think>")))


def search_o1(question: str, *, template: str, max_new_tokens: int = 500, **settings: Any) -> Method:
    """Runs Search-o1: searches while it reasons, and reasons in the documents before it goes on."""
    is_instructed = template.startswith(SEARCH_O1_TEMPLATE.partition("Question:")[0])
    instruction = REASON_IN_DOCUMENTS if is_instructed else "<think>"
    read = partial(reason_in_documents, instruction=instruction, max_new_tokens=max_new_tokens)
    return search_r1(question, template=template, max_new_tokens=max_new_tokens, read=read, **settings)


def reason(question: str, *, template: str, max_new_tokens: int = 500) -> Method:
    """Takes one turn without a search engine that ends in an answer: direct, chain of thought and R1, by prompt."""
    yield Prompt(template.format(question=normalize_question(question)))
    yield from last_words(template_opening(template), max_new_tokens)


def last_words(opening: str, max_new_tokens: int) -> Method:
    """Takes a turn that must answer; `opening` is the tag that the prompt has already written for it."""
    action = parse_action(opening + (yield Generate(("</answer>",), max_new_tokens)))
    yield Finish(action.content, "answer") if action.kind == "answer" else Finish(None, "eos", is_invalid=True)


def retrieve_first(template: str, question: str, topk: int, open_message: OpenMessage | None) -> Method:
    """Opens the conversation with the question and the passages that it finds itself.

    In a chat they stand in the user's own message, if `open_message` knows how it goes on after them.
    """
    message = template.format(question=normalize_question(question))
    begun, end = open_message(message) if open_message else ((), ())
    yield Prompt(message, tuple(begun))
    yield Observe(passages=(yield Search(question, topk)), then=tuple(end))


def rag(
    question: str, *, template: str, max_new_tokens: int = 500, topk: int = 3, open_message: OpenMessage | None = None
) -> Method:
    """Runs retrieval-augmented generation: one search with the question itself, then the answer."""
    yield from retrieve_first(template, question, topk, open_message)
    yield from last_words("", max_new_tokens)


def ircot(
    question: str,
    *,
    template: str,
    max_turns: int = 4,
    max_new_tokens: int = 500,
    topk: int = 3,
    open_message: OpenMessage | None = None,
) -> Method:
    """Runs IRCoT (arXiv 2212.10509): a search with the question, then a sentence and a search with it, in turn."""
    yield from retrieve_first(template, question, topk, open_message)
    query = question
    for turn in range(max_turns):
        if turn:
            yield Observe(passages=(yield Search(query, topk)))
        text = yield Generate(("\n", "</answer>"), max_new_tokens)
        action = parse_action(text)
        if action.kind == "answer":
            yield Finish(action.content, "answer")
        query = sentence_query(text, question)
    yield from last_words("", max_new_tokens)


def sentence_query(sentence: str, question: str) -> str:
    """Returns what IRCoT searches for after a sentence: its words without tags; without any, the question again."""
    return _TAG.sub(" ", sentence).strip() or question


def make_method(
    name: str,
    *,
    template: str,
    max_turns: int,
    max_new_tokens: int,
    topk: int,
    serves_search: bool = True,
    shots: Sequence[Worked] = (),
    open_message: OpenMessage | None = None,
) -> MakeMethod:
    """Makes the generator of that name with its settings; `template` is "paper" or "short" (the tiny base's).

    `shots` are worked examples that the prompt shows before the question, in the same message; `open_message` is that
    of `retrieve_first`.
    """
    generators = {"search-r1": search_r1, "search-o1": search_o1, "ircot": ircot, "rag": rag}
    text = with_shots(template_of(name, template), shots)
    settings: dict[str, Any] = {"template": text, "max_new_tokens": max_new_tokens}
    if name in generators:
        settings["topk"] = topk
    if name in ("rag", "ircot"):
        settings["open_message"] = open_message
    if name in ("search-r1", "search-o1", "ircot"):
        settings["max_turns"] = max_turns
    if name in ("search-r1", "search-o1"):
        settings["serves_search"] = serves_search
    return partial(generators.get(name, reason), **settings)
