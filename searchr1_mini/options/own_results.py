"""What parts of the user's own return, looked at before the program reads it: a wrong value is told with its part."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.methods import Aside, Finish, Generate, MakeMethod, Method, Observe, Prompt, Search
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.storage.printable import cut_short

LISTS = (list, tuple)


def told(value: Any) -> str:
    """Shows what came back, in one line that is not long."""
    return cut_short(" ".join(repr(value).split()))


def checked_reward(reward: Callable[..., Any], name: str) -> Callable[..., float]:
    """Returns the reward as one that gives a finite float, or raises UserError."""

    def paid(trajectory: Any, example: Any) -> float:
        earned = reward(trajectory, example)
        try:
            number = math.nan if isinstance(earned, (str, bytes)) else float(earned)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor of several numbers
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"the reward {name} returned {told(earned)}; it must return a finite number")
        return number

    return paid


class CheckedEngine:
    """A search engine that raises UserError where it does not return a list of hits for each query."""

    def __init__(self, engine: Any, name: str) -> None:
        self.engine, self.name = engine, name

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Searches as the engine does."""
        found = self.engine.search(queries, topk)
        if fault := fault_of_hits(found, len(queries)):
            raise UserError(
                f"the retriever {self.name} returned {fault}; its search must return a list for each query, of "
                "Hit(passage, score)"
            )
        return found


def fault_of_hits(found: Any, n_queries: int) -> str | None:
    """Tells what is wrong with what a search of so many queries returned; None where nothing is."""
    if not isinstance(found, LISTS):
        return told(found)
    if len(found) != n_queries:
        return f"{len(found)} lists for {n_queries} queries"
    for hits in found:
        if not isinstance(hits, LISTS):
            return f"{told(hits)} for a query"
        for hit in hits:
            if not (isinstance(hit, Hit) and is_passage(hit.passage)):
                return f"{told(hit)} for a query"
    return None


def is_passage(value: Any) -> bool:
    """Tells whether it is a passage whose title and text are text."""
    return isinstance(value, Passage) and isinstance(value.title, str) and isinstance(value.text, str)


def checked_method(make_method: Callable[[str], Any], name: str) -> MakeMethod:
    """Returns the method as one that raises UserError where it asks for what nobody can serve."""

    def checked(question: str) -> Method:
        method = make_method(question)
        if not isinstance(method, Generator):
            raise UserError(f"the method {name} returned {told(method)}; it must be a generator function of a question")
        return requests(method, name)

    return checked


def requests(method: Method, name: str) -> Method:
    """Passes a method's requests on, and their results back.

    Raises:
        UserError: a request is not one, or comes out of turn; or the method ends without Finish.
    """
    result, is_first = None, True
    try:
        while True:
            try:
                request = method.send(result)
            except StopIteration:
                raise UserError(f"the method {name} ended without Finish(answer, reason); yield one at last") from None
            if fault := fault_of_request(request, is_first):
                raise UserError(f"the method {name} yielded {told(request)}; {fault}")
            result, is_first = (yield request), False
    finally:
        method.close()


def fault_of_request(request: Any, is_first: bool) -> str | None:
    """Tells what a request must be, and is not; None where it is."""
    if isinstance(request, Prompt) != is_first:
        return "its first request, and no other, must be Prompt(text)"
    match request:
        case Prompt(text, token_ids):
            return None if isinstance(text, str) and isinstance(token_ids, LISTS) else "the text must be text"
        case Generate(stop, max_new_tokens):
            return fault_of_turn(stop, max_new_tokens)
        case Search(query, topk):
            is_fit = isinstance(query, str) and is_count(topk)
            return None if is_fit else "the query must be text, and topk a number from 1"
        case Observe(text, passages):
            is_fit = isinstance(text, str) and (passages is None or are_passages(passages))
            return None if is_fit else "what is observed must be text, or passages=[Passage(..), ..]"
        case Aside(passages, text, stop, max_new_tokens):
            is_fit = isinstance(text, str) and are_passages(passages)
            return fault_of_turn(stop, max_new_tokens) if is_fit else "it must hold a list of passages, and text"
        case Finish(answer, reason):
            is_fit = isinstance(reason, str) and (answer is None or isinstance(answer, str))
            return None if is_fit else "the answer must be text or None, and the reason text"
    return "it must be Generate, Search, Observe, Aside or Finish, of searchr1_mini.core.methods"


def fault_of_turn(stop: Any, max_new_tokens: Any) -> str | None:
    """Tells what the bounds of a turn must be, and are not."""
    is_fit = isinstance(stop, LISTS) and all(isinstance(text, str) and text for text in stop)
    if is_fit and is_count(max_new_tokens):
        return None
    return 'stop must hold texts, as in ("</answer>",), and max_new_tokens be a number from 1'


def is_count(value: Any) -> bool:
    """Tells whether it is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def are_passages(value: Any) -> bool:
    """Tells whether it is a list of passages."""
    return isinstance(value, LISTS) and all(map(is_passage, value))
