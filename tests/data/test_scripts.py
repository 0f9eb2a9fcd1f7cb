"""Scripts of episodes: what they are made of, which search they show, and what they say."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from searchr1_mini.core.prompts import parse_action
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.datasets import load_corpus, load_examples
from searchr1_mini.data.scripts import (
    Hop,
    answer_hops,
    answer_of,
    data_hops,
    own_words,
    quotation,
    supported_hops,
    world_hops,
    write_turns,
)
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.retrievers.bm25 import RankBM25

PASSAGES = [
    Passage("0", "Oslo Ferry", "The Oslo Ferry is a ship. It was built by Nordhavn Yard. It sails at noon."),
    Passage("1", "Nordhavn Yard", "Nordhavn Yard lies in Grimstad. It has two docks."),
    Passage("2", "Grimstad (town)", "Grimstad has a port."),
    Passage("3", "Bergen Ferry", "The Bergen Ferry sails at night."),
]


def finder(passages, topk=3):
    engine = RankBM25(passages)
    return lambda query: [hit.passage for hit in engine.search([query], topk)[0]]


def actions(turns):
    return [(parse_action(turn).kind, parse_action(turn).content) for turn in turns]


def test_a_world_script_follows_its_chain_and_finds_each_fact():
    world = make_world(0, "train")
    find, rng = finder(world.passages), random.Random(0)
    thoughts = set()
    for example in world_examples(world, [1, 2, 3], 60, 0):
        hops = world_hops(world, example, find, rng)
        if hops is None:
            continue
        turns = write_turns(hops, example.golden_answers[0], rng)
        kinds = actions(turns)
        assert [kind for kind, _ in kinds] == ["search"] * len(example.supporting) + ["answer"]
        assert kinds[-1][1] == example.golden_answers[0]
        for (_, query), (subject, object_) in zip(kinds, example.supporting, strict=False):
            assert any(p.title == subject and object_ in p.text for p in find(query))
        thoughts.add(turns[0].split("</think>")[0].split()[1:4].__str__())
    assert len(thoughts) >= 3


def test_a_title_is_searched_for_only_after_being_mentioned():
    example = Example("x", "Where is the yard that built the Oslo Ferry?", ("Grimstad",), "own",
                      (("Nordhavn Yard", ""), ("Oslo Ferry", "")))  # fmt: skip
    hops = supported_hops(example, finder(PASSAGES))
    assert [hop.query for hop in hops] == ["Oslo Ferry", "Nordhavn Yard"]
    assert hops[0].said == "It was built by Nordhavn Yard." and hops[1].said == "Nordhavn Yard lies in Grimstad."


def test_a_search_that_does_not_find_its_passage_is_not_shown():
    example = Example("x", "Where is the yard that built the Oslo Ferry?", ("Grimstad",), "own",
                      (("Oslo Ferry", ""), ("Nordhavn Yard", "")))  # fmt: skip
    without = [passage for passage in PASSAGES if passage.title != "Nordhavn Yard"]
    assert supported_hops(example, finder(without)) is None  # the answer is never read


@pytest.mark.parametrize("words", ["", "The Oslo Ferry is a ship that was built"])
def test_a_corpus_without_the_support_is_asked_for_the_answer(words):
    """As that of another Wikipedia, or one that is cut in other places; what it lacks is no evidence against it."""
    asked = Example("x", "Where was the Oslo Ferry built?", ("Nordhavn",), "own", (("Oslo Ferry (ship)", words),))
    passages = [Passage("0", "Ferries, part 2", "Where the Oslo Ferry was built: Nordhavn."), *PASSAGES[1:]]
    (hop,) = data_hops(asked, finder(passages))
    assert hop.query == "Oslo Ferry built" and "Nordhavn" in hop.said
    either = replace(asked, question="Was the Oslo Ferry built in Nordhavn or in Grimstad?")
    assert data_hops(either, finder(passages)) is None
    there = Passage("9", "Oslo Ferry (ship)", words or "It is a ship.")
    assert data_hops(asked, finder([*passages, there])) is None


CHAIN = {
    title: Passage(title, title, text)
    for title, text in {
        "Ferry A": "Built by Yard B.",
        "Yard B": "Makes a Ferry A a year. Lies in Town C.",
        "Town C": "Its mayor is Ada Brook.",
    }.items()
}


@pytest.mark.parametrize("order", itertools.permutations(CHAIN))
def test_a_chain_is_followed_in_whatever_order_it_is_listed(order):
    """MuSiQue lists the paragraphs of a question in random order."""
    asked = "Who is mayor of the town of the yard that built Ferry A?"
    example = Example("x", asked, ("Ada Brook",), "m", tuple((title, "") for title in order))
    hops = supported_hops(example, lambda query: [CHAIN[query]] if query in CHAIN else [])
    assert [hop.query for hop in hops] == list(CHAIN)
    assert [hop.said for hop in hops] == ["Built by Yard B.", "Lies in Town C.", "Its mayor is Ada Brook."]


@pytest.mark.parametrize("order", itertools.permutations(CHAIN))
def test_no_own_words_are_searched_for_while_a_title_is_in_reach(order):
    """They would find the answer at once here, and a search for the yard would come behind it."""
    asked = "Who is mayor of the town of the yard that built Ferry A?"
    example = Example("x", asked, ("Ada Brook",), "m", tuple((title, "") for title in order))
    hops = supported_hops(example, lambda query: [CHAIN.get(query, CHAIN["Town C"])])
    assert [hop.query for hop in hops] == list(CHAIN)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Does the Oslo Ferry sail when the ship of Bergen sails?", "no"),
        ("Which ship sails earlier, that of Oslo or the Bergen Ferry?", "Bergen Ferry"),
        ("What do the Oslo Ferry and the Bergen Ferry both do?", "sails"),
    ],
)
def test_a_comparison_reads_all_that_it_compares(question, answer):
    """Else it teaches to answer after a half of what there is to read."""
    example = Example("x", question, (answer,), "own", (("Oslo Ferry", ""), ("Bergen Ferry", "")))
    hops = supported_hops(example, finder(PASSAGES))
    assert len(hops) == 2 and any("night" in hop.said for hop in hops)
    for missing in ("Oslo Ferry", "Bergen Ferry"):
        assert supported_hops(example, finder([p for p in PASSAGES if p.title != missing])) is None


def test_no_and_yes_are_found_in_no_passage():
    """A passage of one's own data that holds the word does not answer the question by it."""
    passage = Passage("0", "List", "There is no such ferry in the list.")
    assert answer_hops(Example("x", "Is the ferry in the list?", ("no",), "own"), lambda query: [passage]) is None


def test_own_data_is_searched_for_with_the_questions_own_words():
    example = Example("x", "When does the Bergen Ferry sail?", ("night",), "own")
    assert own_words(example.question) == "Bergen Ferry sail?".rstrip("?")
    (hop,) = answer_hops(example, finder(PASSAGES))
    assert hop.said == "The Bergen Ferry sails at night."
    assert answer_hops(replace(example, golden_answers=("dawn",)), finder(PASSAGES)) is None


def test_a_plan_says_how_many_searches_the_script_makes():
    hops = [
        Hop("the yard", "Oslo Ferry", "It was built in Nordhavn."),
        Hop("the town", "Nordhavn", "It is in Grimstad."),
    ]
    for n, words in ((1, "This takes one search. I "), (2, "This takes two searches. First I ")):
        turns = write_turns(hops[:n], "Grimstad", random.Random(0), plans=True)
        assert turns[0].startswith(f"<think> {words}") and len(turns) == n + 1
    assert "This takes" not in write_turns(hops, "Grimstad", random.Random(0))[0]


def test_a_quotation_is_short_and_holds_what_is_wanted():
    text = " ".join(f"word{n}" for n in range(300)) + " Grimstad " + " ".join(f"more{n}" for n in range(300))
    said = quotation(Passage("0", "T", text), ["Grimstad"])
    assert "Grimstad" in said.split() and len(said.split()) <= 40


@pytest.mark.parametrize(
    ("text", "wanted", "said"),
    [
        ("A is a film. It is No. 1 in France.", ["no", "B"], "A is a film."),
        ("A is a film. It is true to the book.", ["true", "B"], "A is a film."),
        ("Founded in 1900. It lies in Grimstad.", ["Ada", "Grimstad (town)"], "It lies in Grimstad."),
        ("Founded in 1900. The Yard is old.", ["Yard", "B"], "Founded in 1900."),
    ],
)
def test_what_is_quoted_is_what_leads_on(text, wanted, said):
    """Not a word that stands anywhere, and a name without what its page's title has in brackets."""
    assert quotation(Passage("0", "Yard", text), wanted) == said


def test_a_long_quotation_is_cut_around_what_it_was_chosen_for():
    """The title of another passage in it is no reason to lose the answer."""
    words = ["Ada", *(f"word{n}" for n in range(60)), "Grimstad", *(f"more{n}" for n in range(60))]
    said = quotation(Passage("0", "A", " ".join(words)), ["Ada", "Grimstad"])
    assert "Ada" in said.split() and len(said.split()) == 40


@pytest.mark.skipif("SEARCHR1_SHARED" not in os.environ, reason="needs SEARCHR1_SHARED, real HotpotQA questions")
def test_most_real_hotpotqa_questions_give_a_script():
    path = str(Path(os.environ["SEARCHR1_SHARED"]) / "data" / "hotpotqa_distractor_100.json")
    examples = load_examples("hotpotqa", path, "all")
    find = finder(load_corpus(None, "hotpotqa", path))
    scripts = [hops for example in examples if (hops := supported_hops(example, find))]
    assert len(scripts) >= 50 and sum(len(hops) > 1 for hops in scripts) >= 20


def test_a_sentence_does_not_end_behind_an_initial():
    text = "It is a dam on the river. It was opened by John F. Kennedy in St. Louis in 1962. It is high."
    said = quotation(Passage("0", "Dam", text), ["John F. Kennedy"])
    assert said == "It was opened by John F. Kennedy in St. Louis in 1962."


def test_an_answer_that_no_quotation_holds_is_no_script():
    example = Example("0", "Who opened the dam?", ("Lothair II. She",), "q")
    passage = Passage("0", "Dam", "He was Lothair II! He was Lothair 2. It was opened by Lothair II. She came.")
    assert answer_hops(example, lambda query: [passage]) is None
    assert answer_hops(replace(example, golden_answers=("Lothair II",)), lambda query: [passage])


def test_korean_answers_with_particles_give_a_script():
    passages = [
        Passage("0", "오슬로호", "오슬로호는 노르드하븐에서 1912년에 건조되었다."),
        Passage("1", "베르겐호", "베르겐호는 밤에 떠난다."),
    ]
    (hop,) = answer_hops(Example("0", "오슬로호는 어디에서 건조되었는가?", ("노르드하븐",), "q"), finder(passages, 1))
    assert "노르드하븐에서" in hop.said


@pytest.mark.parametrize(
    ("golden", "said", "answer"),
    [
        (("USA", "United States"), "The Oslo Ferry is from the United States.", "United States"),
        (("USA", "United States"), "From the USA, the United States of America.", "USA"),
        (("no", "it is not"), "It is not from Oslo.", "no"),
        (("Oslo Ferry", "M/S Oslo"), "It sails at noon.", "Oslo Ferry"),
    ],
)
def test_the_answer_is_the_spelling_that_was_read(golden, said, answer):
    """Of yes and no, and of a comparison whose quotations name no answer, it is the first."""
    example = Example("x", "Where is the Oslo Ferry from?", golden, "q")
    assert answer_of(example, [Hop("Bergen", "Bergen", "It lies in Norway."), Hop("Oslo", "Oslo", said)]) == answer
