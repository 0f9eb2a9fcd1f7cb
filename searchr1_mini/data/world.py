"""A synthetic closed world: people, cities, companies and countries, the passages about them, and questions.

Nothing in it is true anywhere else, so an answer can only come from retrieval. A full name belongs to exactly one split
by a hash of its letters: no seed ever puts a training entity into an evaluation world. Three difficulties:

    infobox  one fact per passage, as `birthplace of Ada Brook : Oldford`
    simple   two facts per passage, one sentence form per relation
    natural  two or three facts per passage, several sentence forms per relation, pronouns, and distractors that share
             words with the question
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.names import WORLD_DIFFICULTY
from searchr1_mini.data.world_text import (
    CITY,
    COMPANY,
    COUNTRY,
    DISTRACTORS,
    FILLERS,
    PERSON,
    RELATIONS,
    Relation,
    all_names,
)

Split = Literal["train", "eval"]
Difficulty = Literal["infobox", "simple", "natural"]
Supporting = tuple[tuple[str, str], ...]

COUNTS = {PERSON: 240, CITY: 80, COMPANY: 60, COUNTRY: 16}


class Fact(NamedTuple):
    """One edge of the world: `subject --relation--> object`, entities by name."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class Question:
    """A question with the chain of facts that answers it; the last object is the answer."""

    text: str
    chain: tuple[Fact, ...]

    @property
    def answer(self) -> str:
        return self.chain[-1].object


@dataclass(frozen=True)
class World:
    """Entities by kind, every fact by (subject, relation), and the corpus."""

    entities: dict[str, list[str]]
    facts: dict[tuple[str, str], Fact]
    passages: list[Passage]


def assign_split(name: str) -> Split:
    """Returns the split that a full name belongs to, whatever the seed: three quarters train, one quarter eval."""
    return "eval" if zlib.crc32(name.encode()) % 4 == 0 else "train"


def make_world(seed: int, split: Split, difficulty: Difficulty = WORLD_DIFFICULTY, noise_words: int = 0) -> World:
    """Draws one closed world: every object of a fact is an entity of the same world.

    Args:
        seed: the draw of entities, facts and sentence forms.
        split: which names may occur; see `assign_split`.
        difficulty: how passages are written; see the head of this file.
        noise_words: made-up words after the text of every passage, which nothing can predict.
    """
    rng = random.Random(f"{seed}/{split}/{difficulty}")
    entities = {
        kind: rng.sample([n for n in all_names(kind) if assign_split(n) == split], k) for kind, k in COUNTS.items()
    }
    facts = _draw_facts(entities, rng)
    passages = _write_passages(entities, facts, difficulty, rng)
    if noise_words:
        noise = random.Random(f"{seed}/{split}/noise")
        passages = [replace(p, text=f"{p.text} {made_up_words(noise_words, noise)}.") for p in passages]
    return World(entities, facts, passages)


def made_up_words(n: int, rng: random.Random) -> str:
    """Returns `n` words of two or three random syllables: `zulo kebari vone`."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return " ".join("".join(rng.choices(syllables, k=rng.randint(2, 3))) for _ in range(n))


def _draw_facts(entities: dict[str, list[str]], rng: random.Random) -> dict[tuple[str, str], Fact]:
    facts = {}
    for name, relation in RELATIONS.items():
        subjects = entities[relation.subject_kind]
        objects = {subject: rng.choice(entities[relation.object_kind]) for subject in subjects}
        if relation.object_kind == relation.subject_kind:  # nobody is their own teacher: a shuffled circle
            circle = rng.sample(subjects, len(subjects))
            objects = dict(zip(circle, circle[1:] + circle[:1], strict=True))
        facts.update({(subject, name): Fact(subject, name, objects[subject]) for subject in subjects})
    return facts


def _write_passages(
    entities: dict[str, list[str]], facts: dict[tuple[str, str], Fact], difficulty: Difficulty, rng: random.Random
) -> list[Passage]:
    pages: list[tuple[str, str]] = []
    for kind, names in entities.items():
        own = [relation for relation, spec in RELATIONS.items() if spec.subject_kind == kind]
        for name in names:
            about = [facts[name, relation] for relation in own]
            if difficulty == "infobox":
                pages += [(name, infobox_line(fact)) for fact in about]
            elif difficulty == "simple":
                told = [RELATIONS[fact.relation].sentence(fact.subject, fact.object) for fact in about]
                pages += [(name, " ".join(told[first : first + 2])) for first in range(0, len(told), 2)]
            else:
                pages.append((name, write_natural(kind, about, rng)))
                if rng.random() < DISTRACTORS[kind].share:
                    other = rng.choice(entities[PERSON])
                    pages.append(DISTRACTORS[kind].write(name, other, rng))
    rng.shuffle(pages)
    return [Passage(str(index), title, text) for index, (title, text) in enumerate(pages)]


def infobox_line(fact: Fact) -> str:
    """Writes a fact as `birthplace of Ada Brook : Oldford`."""
    return f"{RELATIONS[fact.relation].noun} of {fact.subject} : {fact.object}"


def write_natural(kind: str, facts: list[Fact], rng: random.Random) -> str:
    """Writes two or three facts in random order and forms; a pronoun may replace the subject after the first."""
    sentences = []
    for position, fact in enumerate(rng.sample(facts, len(facts))):
        relation: Relation = RELATIONS[fact.relation]
        if position and rng.random() < 0.6:
            pronoun = relation.pronoun(fact.subject)
            sentences.append(rng.choice(relation.pronoun_forms).format(s=pronoun, o=fact.object))
        else:
            sentences.append(rng.choice(relation.forms).format(s=fact.subject, o=fact.object))
    if rng.random() < 0.3:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(FILLERS[kind]))
    return " ".join(sentences)


def make_questions(world: World, hops: int, n: int, seed: int, without: Collection[Supporting] = ()) -> list[Question]:
    """Makes `n` different questions of `hops` facts each, never asking for the entity that they start from.

    Args:
        without: facts that are not asked for, see `supporting`.

    Raises:
        ValueError: the world does not hold that many different questions.
    """
    chains = chains_without(world, hops, without)
    if n > len(chains):
        raise ValueError(f"{n} questions of {hops} hops asked of a world that has {len(chains)}")
    rng = random.Random(f"{seed}/{hops}")
    return [Question(ask(chain, rng), chain) for chain in rng.sample(chains, n)]


def fair_chains(world: World, hops: int) -> list[tuple[Fact, ...]]:
    """Returns every chain of `hops` facts, each about the object of the one before, that comes by no entity twice."""
    chains = [(fact,) for fact in world.facts.values()]
    for _ in range(hops - 1):
        chains = [
            (*chain, world.facts[chain[-1].object, relation])
            for chain in chains
            for relation in RELATIONS
            if (chain[-1].object, relation) in world.facts
        ]
    return [chain for chain in chains if _is_fair(chain)]


def _is_fair(chain: tuple[Fact, ...]) -> bool:
    path = [chain[0].subject, *(fact.object for fact in chain)]
    return len(set(path)) == len(path)


def ask(chain: tuple[Fact, ...], rng: random.Random) -> str:
    """Nests noun phrases from the inside out: who is the mayor of (the city where (Ada Brook) was born)?"""
    subject = chain[0].subject
    for fact in chain[:-1]:
        subject = rng.choice(RELATIONS[fact.relation].phrases).format(s=subject)
    return rng.choice(RELATIONS[chain[-1].relation].questions).format(s=subject)


def supporting(chain: Sequence[Fact]) -> Supporting:
    """Returns what an `Example` says that its answer rests on: of each fact, its subject and its object."""
    return tuple((fact.subject, fact.object) for fact in chain)


def chains_without(world: World, hops: int, without: Collection[Supporting]) -> list[tuple[Fact, ...]]:
    """Returns `fair_chains`, less some."""
    return [chain for chain in fair_chains(world, hops) if supporting(chain) not in without]


def world_examples(
    world: World, hops: list[int], n: int | None, seed: int, without: Collection[Supporting] = ()
) -> list[Example]:
    """Returns `n` questions in equal shares of the given hops, with source `world-1hop`, `world-2hop`, ...

    Raises:
        UserError: the world does not hold that many different questions.
    """
    n = 400 * len(hops) if n is None else n
    held = [len(chains_without(world, hop, without)) for hop in hops]
    most = len(hops) * min(held) + held.index(min(held))
    if n > most:
        raise UserError(
            f"{n} questions are more than this synthetic world has for --world-hops {','.join(map(str, hops))}; take "
            f"{most} at most, with --eval-questions in train.py and --limit in eval.py"
        )
    shares = {hop: n // len(hops) + (index < n % len(hops)) for index, hop in enumerate(hops)}
    examples = [
        Example(
            f"world-{hop}hop/{seed}/{index}",
            question.text,
            (question.answer,),
            f"world-{hop}hop",
            supporting(question.chain),
        )
        for hop, share in shares.items()
        for index, question in enumerate(make_questions(world, hop, share, seed, without))
    ]
    random.Random(seed).shuffle(examples)
    return examples
