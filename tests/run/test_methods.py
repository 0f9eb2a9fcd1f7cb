"""Every method fed by hand, without a model: what it asks for, in which order, and what it makes of the replies."""

from __future__ import annotations

import pytest

from searchr1_mini.core import methods
from searchr1_mini.core.methods import Aside, Finish, Generate, Observe, Prompt, Search
from searchr1_mini.core.prompts import INVALID_ACTION, STOP_STRINGS
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.options.defaults import PROMPTED
from searchr1_mini.run.methods import make_method
from searchr1_mini.run.museum import without_last_turn
from searchr1_mini.run.templates import PAPER, REASON_IN_DOCUMENTS, template_of

OSLO = Passage("1", "Oslo", "Oslo is the capital of Norway.")
TURN = Generate(("</answer>",), 9)


def make(name, template="paper", **settings):
    settings = {"max_turns": 2, "max_new_tokens": 9, "topk": 2} | settings
    return make_method(name, template=template, **settings)("Where is Oslo")


def feed(method, *results):
    """Drives a generator by hand; returns what it asked for."""
    requests = [method.send(None)]
    for result in results:
        requests.append(method.send(result))
    return requests


def test_search_r1_is_algorithm_1_by_hand():
    method = methods.search_r1("Who", template="Q: {question}", max_turns=2, max_new_tokens=7, topk=2)
    generate = methods.Generate(("</search>", "</answer>"), 7)
    asked = feed(method, None, "<search> a b </search>", [OSLO], None, "hm", None, "<answer> x </answer>")
    assert asked == [
        methods.Prompt("Q: Who?"),
        generate,
        methods.Search("a b", 2),
        methods.Observe(passages=[OSLO]),
        generate,
        methods.Observe(INVALID_ACTION),
        generate,  # the budget of two actions is spent: the last turn
        methods.Finish("x", "answer"),
    ]


def test_the_last_turn_is_served_no_search():
    method = methods.search_r1("Who", max_turns=1)
    asked = feed(method, None, "<search> a </search>", [], None, "<search> b </search>")
    assert asked[-1] == methods.Finish(None, "turns")
    asked = feed(methods.search_r1("Who", max_turns=1), None, "<search> a </search>", [], None, "hm")
    assert asked[-1] == methods.Finish(None, "turns", is_invalid=True)


@pytest.mark.parametrize("name", ["search-r1", "search-o1"])
def test_without_a_last_turn_the_budget_is_the_end(name):
    """As in the paper, which stops at B; up to there nothing is another."""
    replies = [None, "hm", None, "hm", None]
    *asked, last = feed(without_last_turn(lambda _: make(name), max_turns=2)("Who"), *replies)
    *sound, its_last = feed(make(name), *replies)
    assert last == Finish(None, "turns") and its_last == Generate(STOP_STRINGS, 9) and asked == sound


def test_without_a_last_turn_an_earlier_answer_ends_as_ever():
    replies = [None, "<search> a </search>", [OSLO], None, "<answer> x </answer>"]
    asked = feed(without_last_turn(lambda _: make("search-r1"), max_turns=2)("Who"), *replies)
    assert asked == feed(make("search-r1"), *replies) and asked[-1] == Finish("x", "answer")


def test_without_an_engine_a_search_is_an_invalid_action():
    asked = feed(make("search-r1", serves_search=False), None, "<search> a </search>", None)
    assert asked[2] == Observe(INVALID_ACTION)


@pytest.mark.parametrize("name", ["direct", "cot", "r1"])
@pytest.mark.parametrize("template", ["paper", "short"])
def test_methods_without_a_search_take_one_turn(name, template):
    prompt = Prompt(template_of(name, template).format(question="Where is Oslo?"))
    answered = feed(make(name, template), None, "<answer> Norway </answer>")
    assert answered == [prompt, TURN, Finish("Norway", "answer")]
    assert feed(make(name, template), None, "<search> a </search>")[-1] == Finish(None, "eos", is_invalid=True)


def test_a_turn_that_the_prompt_has_begun_is_read_from_there():
    assert feed(make("direct", "short"), None, " Norway </answer>")[-1] == Finish("Norway", "answer")
    assert feed(make("direct", "paper"), None, " Norway </answer>")[-1] == Finish(None, "eos", is_invalid=True)


def test_rag_searches_once_with_the_question_itself():
    asked = feed(make("rag"), None, [OSLO], None, "<answer> Norway </answer>")
    assert asked[1:] == [Search("Where is Oslo", 2), Observe(passages=[OSLO]), TURN, Finish("Norway", "answer")]


def test_ircot_searches_with_each_sentence_it_reasons():
    sentence = Generate(("\n", "</answer>"), 9)
    replies = [None, [OSLO], None, "<think> Oslo is in Norway. </think>\n", [OSLO], None, "\n"]
    asked = feed(make("ircot"), *replies, "so it is <answer> Norway </answer>")
    assert asked[1:] == [
        Search("Where is Oslo", 2),
        Observe(passages=[OSLO]),
        sentence,
        Search("Oslo is in Norway.", 2),
        Observe(passages=[OSLO]),
        sentence,  # nothing but a line break: the budget is spent
        TURN,
        Finish("Norway", "answer"),
    ]
    early = feed(make("ircot"), None, [OSLO], None, "<answer> Norway </answer>")
    assert early[-1] == Finish("Norway", "answer")
    blank = feed(make("ircot"), None, [OSLO], None, "\n")
    assert blank[-1] == Search("Where is Oslo", 2)  # without a sentence it asks the question again


def test_search_o1_reasons_in_the_documents_before_it_goes_on():
    asked = feed(make("search-o1"), None, "<search> Oslo </search>", [OSLO], "In <answer> Norway. </think>", None)
    assert asked[1:] == [
        Generate(STOP_STRINGS, 9),
        Search("Oslo", 2),
        Aside([OSLO], REASON_IN_DOCUMENTS, ("</think>",), 9),
        Observe("\n\n<information>In (answer) Norway.\n</information>\n\n"),
        Generate(STOP_STRINGS, 9),
    ]


@pytest.mark.parametrize("name", [*PROMPTED, "r1", "search-r1"])
def test_a_question_with_braces_is_left_as_it_is(name):
    prompt = make_method(name, template="paper", max_turns=2, max_new_tokens=9, topk=3)("What is {x}?").send(None)
    assert "Question: What is {x}?" in prompt.text


def test_prompts_name_the_answer_tag_and_end_with_the_question():
    assert all(text.count("{question}") == 1 and text.endswith("Question: {question}\n") for text in PAPER.values())
    assert all("<answer>" in text and "</answer>" in text for text in PAPER.values())
