"""Demonstrations that the tiny base is pre-trained on: agent traces right and wrong, reading, and plain pages.

A trace is a list of (kind, text) segments, tokenized one by one as in a rollout, so that the base has seen exactly the
token boundaries that it will meet. `Habits` says how often each decision of a trace is a good one: the first stage
teaches to read and to speak the tags, the last makes a direct answer the likeliest behavior of the base.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from searchr1_mini.core.prompts import INVALID_ACTION, render_observation
from searchr1_mini.core.retrieval import Passage, Retriever
from searchr1_mini.core.trajectory import Kind
from searchr1_mini.data.world import Fact, Question, World
from searchr1_mini.data.world_text import RELATIONS
from searchr1_mini.run.templates import SHORT_TEMPLATE

Trace = list[tuple[Kind, str]]


@dataclass(frozen=True)
class Habits:
    """Probabilities of the decisions in a trace, each drawn on its own.

    Attributes:
        direct: answers at once with a guess instead of searching.
        malformed: writes a turn that is no action, and is told so.
        premature: answers before it has followed all hops.
        restate_right: restates the fact that the question needs, else another fact about something it just read.
        entity_in_query: names the entity in its query, else only the relation.
        relation_right: when the query has a relation, it is the right one.
    """

    direct: float = 0.0
    malformed: float = 0.0
    premature: float = 0.0
    restate_right: float = 1.0
    entity_in_query: float = 1.0
    relation_right: float = 1.0


RIGHT = Habits()
BASE = Habits(direct=0.9, malformed=0.03, premature=0.65, restate_right=0.92, entity_in_query=0.75, relation_right=0.75)

FIRST_THOUGHTS = ("I need to find {s}.", "I should look up {s}.", "I have to search for {s}.")
DIRECT_THOUGHTS = ("I know this.", "I remember the answer.", "I can answer this.")
MALFORMED = (
    "<think> I am not sure. </think>\nThe answer may be {s}.",
    "<think> I need to find {s}. </think>\nsearch {s}",
    "<search> {s} </answer>",
    "<search> </search>",
)


def agent_trace(world: World, retriever: Retriever, question: Question, habits: Habits, rng: random.Random) -> Trace:
    """Writes one episode of Search-R1 on one question, with the given habits; ends in an answer."""
    trace: Trace = [("prompt", SHORT_TEMPLATE.format(question=question.text))]
    subject = question.chain[0].subject
    if rng.random() < habits.malformed:
        trace += [("policy", rng.choice(MALFORMED).format(s=subject)), ("observation", INVALID_ACTION)]
    if rng.random() < habits.direct:
        guess = guess_answer(world, question, rng)
        thought = rng.choice(DIRECT_THOUGHTS)
        return [*trace, ("policy", f"<think> {thought} </think>\n<answer> {guess} </answer>")]
    thought = rng.choice(FIRST_THOUGHTS).format(s=subject)
    for position, fact in enumerate(question.chain):
        query = write_query(world, fact, habits, rng)
        trace.append(("policy", f"<think> {thought} </think>\n<search> {query} </search>{_tail(rng)}"))
        passages = [hit.passage for hit in retriever.search([query], 3)[0]]
        trace.append(("observation", render_observation(passages)))
        stated = fact
        readable = any(passage.title == fact.subject and fact.object in passage.text for passage in passages)
        if not readable or rng.random() >= habits.restate_right:
            stated = other_fact(world, passages, rng) or fact
        thought = RELATIONS[stated.relation].sentence(stated.subject, stated.object)
        is_last = position == len(question.chain) - 1
        if is_last or stated != fact or rng.random() < habits.premature:
            break
    return [*trace, ("policy", f"<think> {thought} </think>\n<answer> {stated.object} </answer>")]


def _tail(rng: random.Random) -> str:
    """Now and then the stop string ends inside a token (`>\\n\\n`), as it does in the wild."""
    return rng.choice(("\n", "\n\n")) if rng.random() < 0.1 else ""


def guess_answer(world: World, question: Question, rng: random.Random) -> str:
    """Picks an entity of the right kind that is not the answer: what a model without knowledge would say."""
    names = world.entities[RELATIONS[question.chain[-1].relation].object_kind]
    return rng.choice([name for name in rng.sample(names, 2) if name != question.answer])


def write_query(world: World, fact: Fact, habits: Habits, rng: random.Random) -> str:
    """Writes `Ada Brook`, `Ada Brook birthplace` or, with bad habits, something that finds nothing."""
    spec = RELATIONS[fact.relation]
    noun = spec.noun
    if rng.random() >= habits.relation_right:
        noun = rng.choice([other.noun for other in RELATIONS.values() if other is not spec])
    if rng.random() >= habits.entity_in_query:
        return noun if rng.random() < 0.5 else rng.choice(world.entities[spec.subject_kind]) + f" {noun}"
    return fact.subject if rng.random() < 0.25 else f"{fact.subject} {noun}"


def facts_in(world: World, passages: list[Passage]) -> list[Fact]:
    """Returns every fact of the world that these passages tell about the entity in their title."""
    return [
        fact
        for passage in passages
        for relation in RELATIONS
        if (fact := world.facts.get((passage.title, relation))) and fact.object in passage.text
    ]


def other_fact(world: World, passages: list[Passage], rng: random.Random) -> Fact | None:
    """Returns some fact that the passages tell, or None if they tell none."""
    told = facts_in(world, passages)
    return rng.choice(told) if told else None


def reading_trace(world: World, passages: list[Passage], n_questions: int, rng: random.Random) -> Trace:
    """Writes one observation and several questions about it: many reading lessons for the price of one context."""
    trace: Trace = []
    told = list(dict.fromkeys(facts_in(world, passages)))
    for position, fact in enumerate(rng.sample(told, min(n_questions, len(told)))):
        spec = RELATIONS[fact.relation]
        question = SHORT_TEMPLATE.format(question=rng.choice(spec.questions).format(s=fact.subject))
        thought = rng.choice(FIRST_THOUGHTS).format(s=fact.subject)
        if position == 0:
            query = fact.subject if rng.random() < 0.25 else f"{fact.subject} {spec.noun}"
            trace.append(("prompt", question))
            trace.append(("prompt", f"<think> {thought} </think>\n<search> {query} </search>"))  # not learned here
            trace.append(("observation", render_observation(passages)))
        else:
            trace.append(("policy", "\n" + question))
        sentence = spec.sentence(fact.subject, fact.object)
        trace.append(("policy", f"<think> {sentence} </think>\n<answer> {fact.object} </answer>"))
    return trace


def last_turn(trace: Trace) -> Trace:
    """Turns an episode into a reading lesson: only its last turn, after all that was retrieved, is learned from."""
    return [("prompt" if kind == "policy" else kind, text) for kind, text in trace[:-1]] + trace[-1:]


def page_trace(world: World, rng: random.Random, n_passages: int = 4) -> Trace:
    """Writes a few passages, then some of their sentences in canonical form: plain text with something to copy."""
    passages = rng.sample(world.passages, n_passages)
    lines = [f"{passage.title} : {passage.text}" for passage in passages]
    told = facts_in(world, passages)
    again = [RELATIONS[f.relation].sentence(f.subject, f.object) for f in rng.sample(told, min(6, len(told)))]
    return [("policy", "\n".join([*lines, *again]))]


def copy_drill(world: World, rng: random.Random, n_names: int = 16) -> Trace:
    """Writes full names, then the same names in another order: the first word of a name must recall the second."""
    names = rng.sample([name for kind in world.entities.values() for name in kind], n_names)
    return [("prompt", ", ".join(names) + "."), ("policy", " " + ", ".join(rng.sample(names, n_names)) + ".")]
