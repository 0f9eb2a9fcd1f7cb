"""The synthetic world: closed, seeded, split by name, fair questions, findable answers."""

from __future__ import annotations

import random
import re
from typing import get_args

import pytest
from helpers.programs import run_program

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.world import Difficulty, assign_split, make_questions, make_world, world_examples
from searchr1_mini.data.world_text import RELATIONS, all_names
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.tiny.traces import BASE, RIGHT, agent_trace, copy_drill, page_trace, reading_trace


@pytest.fixture(scope="module", params=get_args(Difficulty))
def world(request):
    return make_world(0, "eval", request.param)


def test_the_same_seed_makes_the_same_world_and_another_does_not(world):
    assert make_world(1, "train") == make_world(1, "train")
    assert make_world(1, "train").facts != make_world(2, "train").facts


def test_no_entity_is_ever_in_both_splits():
    names = {
        split: {n for s in range(3) for ns in make_world(s, split).entities.values() for n in ns}
        for split in ("train", "eval")
    }
    assert not names["train"] & names["eval"]
    assert {assign_split(name) for name in names["eval"]} == {"eval"}


def test_the_world_is_closed(world):
    everyone = {name for names in world.entities.values() for name in names}
    for (subject, relation), fact in world.facts.items():
        assert fact.subject == subject and {subject, fact.object} <= everyone
        assert fact.object in world.entities[RELATIONS[relation].object_kind]
        assert subject != fact.object


def test_every_fact_is_told_once_on_a_page_of_its_subject(world):
    pages = {}
    for passage in world.passages:
        pages.setdefault(passage.title, []).append(passage.text)
    for fact in world.facts.values():
        assert any(fact.object in text for text in pages[fact.subject])


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_questions_follow_their_chain_and_hide_their_answer(world, hops):
    for question in make_questions(world, hops, 300, seed=0):
        assert len(question.chain) == hops
        assert question.chain[0].subject in question.text
        assert question.answer not in question.text
        for first, second in zip(question.chain, question.chain[1:], strict=False):
            assert first.object == second.subject
        assert all(world.facts[fact.subject, fact.relation] == fact for fact in question.chain)


def test_500_questions_a_cell_fit_into_a_world(world):
    examples = world_examples(world, [1, 2], 1000, seed=0)
    assert len({example.id for example in examples}) == 1000
    assert sum(example.source == "world-2hop" for example in examples) == 500


@pytest.mark.parametrize("hops", [[1], [2, 1], [1, 2]])
def test_every_question_can_be_asked_but_one_more_is_refused(world, hops):
    with pytest.raises(UserError, match=r"take (\d+) at most, with --eval-questions .* --limit ") as told:
        world_examples(world, hops, 10**6, seed=0)
    most = int(re.search(r"take (\d+)", str(told.value))[1])
    assert len({example.id for example in world_examples(world, hops, most, seed=0)}) == most > 1000
    with pytest.raises(UserError, match=f"^{most + 1} questions .* take {most} at most"):
        world_examples(world, hops, most + 1, seed=0)


@pytest.mark.parametrize(
    "command", ["train.py --eval-questions 2066", "eval.py --model tiny --methods direct --no-train --limit 3000"]
)
def test_more_questions_than_the_world_has_are_bad_input(command, tmp_path):
    result = run_program(*command.split(), "--output-dir", tmp_path / "out")
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert "take 2064 at most" in result.stderr


def test_a_plain_query_finds_the_page(world):
    """Every fact can be reached: its subject and relation as the query bring its page into the top 3."""
    facts = random.Random(0).sample(sorted(world.facts.values()), 200)
    found = build_retriever(Engine("bm25"), world.passages).search(
        [f"{f.subject} {RELATIONS[f.relation].noun}" for f in facts], 3
    )
    hits = sum(
        any(hit.passage.title == fact.subject and fact.object in hit.passage.text for hit in hits)
        for fact, hits in zip(facts, found, strict=True)
    )
    assert hits >= 190


def test_natural_text_has_distractors_named_like_entities():
    """Thus they share words with questions."""
    world = make_world(0, "eval", "natural")
    everyone = {name for names in world.entities.values() for name in names}
    distractors = [passage for passage in world.passages if passage.title not in everyone]
    assert len(distractors) > 30
    assert all(any(passage.title.startswith(name) for name in everyone) for passage in distractors)


def test_names_of_every_kind_are_two_words_without_repeats():
    for kind in ("person", "city", "company", "country"):
        names = all_names(kind)
        assert len(names) == len(set(names)) and all(len(name.split()) == 2 for name in names)


def test_right_traces_end_in_the_answer_but_base_ones_rarely_do(world):
    retriever, rng = build_retriever(Engine("bm25"), world.passages), random.Random(0)
    questions = make_questions(world, 2, 200, seed=1)
    answers = {}
    for name, habits in (("right", RIGHT), ("base", BASE)):
        traces = [agent_trace(world, retriever, question, habits, rng) for question in questions]
        assert all(trace[0][0] == "prompt" and trace[-1][0] == "policy" for trace in traces)
        answers[name] = sum(
            f"<answer> {q.answer} </answer>" in t[-1][1] for q, t in zip(questions, traces, strict=True)
        )
    assert answers["right"] >= 190
    assert answers["base"] <= 20


def test_lessons_are_about_what_they_show(world):
    rng = random.Random(0)
    for _ in range(20):
        passages = rng.sample(world.passages, 3)
        lesson = reading_trace(world, passages, 5, rng)
        shown = "".join(text for kind, text in lesson if kind == "observation")
        for _, text in lesson:
            if "<answer>" in text:
                assert text.split("<answer> ")[1].split(" </answer>")[0] in shown
        names, again = (text.strip(" .").split(", ") for _, text in copy_drill(world, rng))
        assert sorted(names) == sorted(again)
        assert page_trace(world, rng)[0][0] == "policy"
