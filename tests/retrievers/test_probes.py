"""The probes: what each finds, and that a rollout asks the oracle by question."""

from __future__ import annotations

import pytest

from searchr1_mini.core import methods
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrievers.probes import EmptyRetriever, OracleRetriever, RandomRetriever
from searchr1_mini.run.task import load_task

PASSAGES = [Passage(str(n), title, text) for n, (title, text) in enumerate([
    ("Oslo", "Oslo is large."), ("Oslo", "Oslo is in Norway."), ("Bern", "Bern is in Switzerland."), ("Rome", "Old."),
])]  # fmt: skip


def test_the_random_probe_repeats_its_draws_from_the_corpus():
    probe = RandomRetriever(PASSAGES)
    first, second = probe.search(["a", "b"], 2), probe.search(["b", "a"], 2)
    assert first == second[::-1] and all(len({hit.passage.id for hit in hits}) == 2 for hits in first)
    drawn = {hit.passage.id for hits in probe.search([str(n) for n in range(40)], 2) for hit in hits}
    assert drawn == {"0", "1", "2", "3"}
    assert len(probe.search(["a"], 9)[0]) == 4


def test_the_empty_probe_finds_nothing():
    assert EmptyRetriever().search(["Oslo", "Bern"], 3) == [[], []]


def test_the_oracle_brings_the_passages_that_the_answer_rests_on():
    examples = [
        Example("q/1", "?", ("Norway",), "q", (("Oslo", ""), ("Bern", ""))),
        Example("q/2", "?", ("x",), "q", (("Oslo", "large"),)),
        Example("q/3", "?", ("x",), "q"),
    ]
    found = OracleRetriever(PASSAGES, examples).search_for(["q/1", "q/2", "q/3"], 3)
    assert [[hit.passage.id for hit in hits] for hits in found] == [["1", "2"], ["0"], []]
    assert len(OracleRetriever(PASSAGES, examples).search_for(["q/1"], 1)[0]) == 1
    with pytest.raises(UserError, match="take another data set"):
        OracleRetriever(PASSAGES, [Example("q/3", "?", ("x",), "q")])


@pytest.mark.parametrize("difficulty", ["infobox", "simple", "natural"])
def test_the_oracle_of_the_world_holds_every_answer(difficulty):
    config = resolve(make(TrainConfig, retriever="oracle", world_difficulty=difficulty, eval_questions=60))
    task = load_task(config, "eval")
    for example in task.examples:
        (hits,) = task.retriever.search_for([example.id], 3)
        assert len(hits) == int(example.source[6]) and example.golden_answers[0] in hits[-1].passage.text


def test_a_rollout_asks_the_oracle_by_question(random_policy):
    """Whatever is searched for, the passages are those of the question at hand."""
    world = load_task(resolve(make(TrainConfig, retriever="oracle", eval_questions=8)), "eval")

    def search_anything(question):
        yield methods.Prompt(question)
        yield methods.Observe(passages=(yield methods.Search("nothing of the kind", 3)))
        yield methods.Finish(None, "turns")

    limits = RolloutLimits(3, 600, 300)
    trajectories, _ = rollout(
        world.examples, search_anything, random_policy, world.retriever, limits, temperature=0, seed=0
    )
    for example, trajectory in zip(world.examples, trajectories, strict=True):
        assert trajectory.titles == [[title for title, _ in example.supporting]]
        assert example.golden_answers[0] in trajectory.retrieved[0]


@pytest.mark.parametrize("name", ["none", "empty", "random", "oracle"])
def test_a_run_may_train_on_a_probe(name):
    task = load_task(resolve(make(TrainConfig, retriever=name)), "train")
    kinds = {"random": RandomRetriever, "oracle": OracleRetriever}
    assert isinstance(task.retriever, kinds.get(name, EmptyRetriever))
