"""What the tiny base is pre-trained on, and in which order: shares of lessons, episodes and habits, stage by stage."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from searchr1_mini.data.world import Difficulty, make_questions, make_world
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.tiny import traces

DIFFICULTY_MIX: dict[Difficulty, float] = {"infobox": 0.1, "simple": 0.3, "natural": 0.6}
HOPS_MIX = {1: 0.37, 2: 0.55, 3: 0.08}


@dataclass(frozen=True)
class Stage:
    """A stretch of pre-training: shares of its demonstrations (what is left are agent traces), and their habits.

    Attributes:
        reading: several questions about one observation.
        last_turns: right episodes of which only the last turn is learned from.
        pages, drills: plain text, and lists of names in another order.
        right: share of the agent traces that is right throughout; the others have `habits`.
    """

    name: str
    share_of_tokens: float
    reading: float
    last_turns: float
    pages: float
    drills: float
    right: float
    habits: traces.Habits


STAGES = (
    Stage("read and speak the tags", 0.65, reading=0.35, last_turns=0.0, pages=0.02, drills=0.1, right=1.0,
          habits=traces.RIGHT),
    Stage("habits of a base model", 0.35, reading=0.15, last_turns=0.4, pages=0.01, drills=0.04, right=0.03,
          habits=traces.BASE),
)  # fmt: skip
WARM_START = Stage(
    "warm start", 1.0, reading=0.15, last_turns=0.2, pages=0.0, drills=0.0, right=0.4, habits=traces.BASE
)


def draw_traces(stage: Stage, seed: int, n_worlds: int = 24) -> Iterator[traces.Trace]:
    """Yields demonstrations endlessly from `n_worlds` worlds at a time, each replaced after 30 to 300 questions."""
    rng = random.Random(seed)
    numbers = itertools.count(1_000_000 * (seed + 1))
    streams = [_world_traces(stage, next(numbers), rng) for _ in range(n_worlds)]
    while True:
        index = rng.randrange(n_worlds)
        trace = next(streams[index], None)
        if trace is None:
            streams[index] = _world_traces(stage, next(numbers), rng)
        else:
            yield trace


def _world_traces(stage: Stage, number: int, rng: random.Random) -> Iterator[traces.Trace]:
    difficulty = rng.choices(list(DIFFICULTY_MIX), list(DIFFICULTY_MIX.values()))[0]
    world = make_world(number, "train", difficulty)
    retriever = build_retriever(Engine("bm25"), world.passages)
    counts = dict.fromkeys(HOPS_MIX, 0)
    for hop in rng.choices(list(HOPS_MIX), list(HOPS_MIX.values()), k=300):
        counts[hop] += 1
    questions = [q for hops, n in counts.items() for q in make_questions(world, hops, n, seed=number)]
    for question in rng.sample(questions, rng.randint(30, len(questions))):
        kind = rng.random()
        if kind < stage.pages:
            yield traces.page_trace(world, rng)
        elif kind < stage.pages + stage.drills:
            yield traces.copy_drill(world, rng)
        elif kind < stage.pages + stage.drills + stage.last_turns:
            yield traces.last_turn(traces.agent_trace(world, retriever, question, traces.RIGHT, rng))
        elif kind < stage.pages + stage.drills + stage.last_turns + stage.reading:
            hits = retriever.search([rng.choice(question.chain).subject], 3)[0]
            yield traces.reading_trace(world, [hit.passage for hit in hits], 5, rng)
        else:
            habits = traces.RIGHT if rng.random() < stage.right else stage.habits
            yield traces.agent_trace(world, retriever, question, habits, rng)
