"""The slow path and the engine agree token for token, whatever the method."""

from __future__ import annotations

import pytest

from searchr1_mini.core.methods import Finish, Observe, Prompt, Search
from searchr1_mini.core.play import play, sampler
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.retrievers.bm25 import RankBM25
from searchr1_mini.retrievers.probes import OracleRetriever
from searchr1_mini.run.methods import make_method

METHODS = ("search-r1", "search-o1", "ircot", "rag", "cot", "direct", "r1")
WIDE, NARROW = RolloutLimits(4, 500, 120), RolloutLimits(2, 130, 60)


@pytest.fixture(scope="module")
def world():
    world = make_world(3, "eval", "natural", 0)
    return world_examples(world, [1, 2], 6, 3, set()), RankBM25(world.passages)


def titles(examples, make, policy, retriever):
    """The titles that a method is shown, among many and alone."""
    many, _ = rollout(examples, make, policy, retriever, WIDE, temperature=1.0, seed=5)
    alone = [play(example, make, policy, retriever, WIDE, sampler(policy)) for example in examples]
    return [found.titles for found in many], [found.titles for found in alone]


def test_each_search_gets_its_own_number_of_passages(tiny_policy, world):
    examples, retriever = world
    wanted = {example.question: 1 + number % 3 for number, example in enumerate(examples)}

    def method(question):
        yield Prompt(question)
        yield Observe(passages=(yield Search(question, wanted[question])))
        yield Finish(None, "turns")

    many, alone = titles(examples, method, tiny_policy, retriever)
    assert many == alone and [len(found) for (found,) in many] == [1, 2, 3, 1, 2, 3]


def test_a_probe_that_knows_the_question_serves_one_too(tiny_policy, world):
    examples, retriever = world

    def method(question):
        yield Prompt(question)
        yield Observe(passages=(yield Search("whatever", 2)))
        yield Finish(None, "turns")

    many, alone = titles(examples, method, tiny_policy, OracleRetriever(retriever.passages, examples))
    assert many == alone and all(found for (found,) in many)


def a_chat(policy):
    """What `open_message` returns for a model with a chat template: a message, and the tokens that end it."""
    return lambda text: (policy.encode_prompt(text), [7, 5, 7])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("limits", [WIDE, NARROW], ids=["room enough", "cut by the context"])
@pytest.mark.parametrize(
    ("method", "is_chat"), [*((method, False) for method in METHODS), ("rag", True), ("ircot", True)]
)
def test_a_conversation_alone_is_the_same_as_among_many(tiny_policy, world, method, limits, temperature, is_chat):
    examples, retriever = world
    open_message = a_chat(tiny_policy) if is_chat else None
    make = make_method(method, template="short", max_turns=2, max_new_tokens=24, topk=2, open_message=open_message)
    many, _ = rollout(examples, make, tiny_policy, retriever, limits, temperature=temperature, seed=5)
    for key, (example, wanted) in enumerate(zip(examples, many, strict=True)):
        found = play(example, make, tiny_policy, retriever, limits, sampler(tiny_policy, temperature, 5, key))
        for one, other in zip([*found.segments, *found.asides], [*wanted.segments, *wanted.asides], strict=True):
            assert (one.kind, one.token_ids, one.text) == (other.kind, other.token_ids, other.text)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert (found.answer, found.finish_reason, found.queries, found.titles, found.retrieved) == (
            wanted.answer, wanted.finish_reason, wanted.queries, wanted.titles, wanted.retrieved
        )  # fmt: skip
        assert found.invalid_actions == wanted.invalid_actions
        read = [segment for segment in wanted.segments if segment.kind == "observation"]
        assert not is_chat or read[0].token_ids[-3:] == [7, 5, 7]
