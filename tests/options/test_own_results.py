"""What parts of the user's own return wrongly is told in one sentence that names the part and what came back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.methods import Aside, Finish, Generate, Observe, Prompt, Search
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.options.own_results import CheckedEngine, checked_method, checked_reward

PASSAGE = Passage("1", "Lake", "It is deep.")
HIT = Hit(PASSAGE, 1.0)


@pytest.mark.parametrize("earned", [1, True, 0.5, np.float32(0.5), np.bool_(True), torch.tensor(0.5)])
def test_a_reward_of_any_numbers_becomes_a_float(earned):
    paid = checked_reward(lambda trajectory, example: earned, "my.py:pays")(None, None)
    assert type(paid) is float and paid == float(earned)


@pytest.mark.parametrize("earned", [None, "1.0", math.nan, math.inf, (1.0,), torch.ones(2), 10**400])
def test_a_reward_that_is_no_finite_number_is_told(earned):
    with pytest.raises(UserError, match=r"the reward my.py:pays returned .*; it must return a finite number"):
        checked_reward(lambda trajectory, example: earned, "my.py:pays")(None, None)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "returned None"),
        ((hits for hits in [[HIT], [HIT]]), "returned <generator"),
        ([[HIT]], "returned 1 lists for 2 queries"),
        ([[HIT], None], "returned None for a query"),
        ([[HIT], [PASSAGE]], r"returned Passage\(.* for a query"),
        ([[HIT], [(PASSAGE, 1.0)]], r"returned \(Passage\(.* for a query"),
        ([[HIT], [Hit(Passage("1", None, "x"), 1.0)]], "title=None"),
    ],
)
def test_an_engine_that_returns_other_than_hits_is_told(found, told):
    class Engine:
        def search(self, queries, topk):
            return found

    with pytest.raises(UserError, match=f"the retriever my.py:Engine .*{told}"):
        CheckedEngine(Engine(), "my.py:Engine").search(["a", "b"], 3)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([Generate(("x",), 3)], r"yielded Generate.*; its first request, and no other, must be Prompt"),
        ([Prompt("q"), Prompt("q")], "and no other"),
        ([Prompt(None)], "the text must be text"),
        ([Prompt("q"), Generate("</answer>", 3)], "stop must hold texts"),
        ([Prompt("q"), Generate(("x",), 0)], "max_new_tokens be a number from 1"),
        ([Prompt("q"), Search(None, 3)], "the query must be text"),
        ([Prompt("q"), Search("q", 0)], "topk a number from 1"),
        ([Prompt("q"), Observe(passages=[HIT])], "what is observed must be text, or passages"),
        ([Prompt("q"), Aside([], None, ("x",), 3)], "must hold a list of passages, and text"),
        ([Prompt("q"), None], "yielded None; it must be Generate, Search"),
        ([Prompt("q"), "hello"], "yielded 'hello'"),
        ([Prompt("q"), Finish(42, "answer")], "the answer must be text or None"),
        ([Prompt("q"), Observe("x")], r"ended without Finish\(answer, reason\)"),
    ],
)
def test_a_method_that_asks_for_what_is_no_request_is_told(asked, told):
    def method(question):
        yield from asked

    with pytest.raises(UserError, match=f"the method my.py:method .*{told}"):
        list(checked_method(method, "my.py:method")("q"))


def test_a_method_is_resumed_with_what_it_asked_for_and_closed():
    seen = []

    def method(question):
        try:
            yield Prompt(question)
            seen.append((yield Generate(("x",), 3)))
            yield Finish(None, "turns")
        finally:
            seen.append("closed")

    going = checked_method(method, "my.py:method")("q")
    assert going.send(None) == Prompt("q") and going.send(None) == Generate(("x",), 3)
    assert going.send("text") == Finish(None, "turns")
    going.close()
    assert seen == ["text", "closed"]
