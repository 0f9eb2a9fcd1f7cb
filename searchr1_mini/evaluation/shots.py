"""Worked examples in the prompt (`--shots`), so that a model is not scored for a form that it was never shown."""

from __future__ import annotations

import random
from collections.abc import Sequence

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.prompts import Form, neutralize_tags, normalize_question, render_observation
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rewards import contains_gold
from searchr1_mini.data.datasets import FLASHRAG
from searchr1_mini.data.scripts import Find, Hop, answer_hops, supported_hops, world_hops, write_turns
from searchr1_mini.data.world import make_world
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.task import Library, load_task
from searchr1_mini.run.templates import Worked, answer_begun, render_note, template_of, template_opening

Shot = tuple[Example, list[Hop]]


def draw_shots(settings: TrainConfig, n: int, seed: int, library: Library) -> tuple[list[Shot], Find]:
    """Draws `n` questions with what a script says of them, and the engine that their passages come from.

    They are training questions; of a data set that has none they are of the questions that are evaluated, and the
    caller leaves them out of those.

    Args:
        settings: of a column; its retriever is taken as `auto` unless it is a server.

    Raises:
        UserError: there are not so many questions of which a script can be written.
    """
    engine = settings.retrieval.retriever if settings.retrieval.retriever == "http" else "auto"
    settings = with_options(settings, retriever=engine, method="search-r1")
    is_for_evaluation = not settings.data.data_path and FLASHRAG.get(settings.data.dataset, ("train",))[0] is None
    task = load_task(settings, "eval" if is_for_evaluation else "train", library)
    world = None
    if settings.data.dataset == "world":
        world = make_world(
            settings.optimization.seed, "train", settings.data.world_difficulty, settings.data.world_noise
        )
    rng = random.Random(f"{seed}/shots")

    def find(query: str) -> Sequence[Passage]:
        return [hit.passage for hit in task.retriever.search([query], settings.retrieval.topk)[0]]

    shots: list[Shot] = []
    for example in rng.sample(task.examples, len(task.examples)):
        if len(shots) == n:
            break
        if world:
            hops = world_hops(world, example, find, rng)
        else:
            hops = (supported_hops if example.supporting else answer_hops)(example, find)
        if hops and any(contains_gold(hop.said, example.golden_answers) for hop in hops):
            shots.append((example, hops))
    if len(shots) < n:
        raise UserError(
            f"--shots {n}: only {len(shots)} of {len(task.examples)} questions give a worked example, one whose answer "
            "is found by a search; ask for fewer"
        )
    return shots, find


def write_shots(
    method: str, shots: Sequence[Shot], find: Find, kind: str, seed: int, form: Form = "plain"
) -> list[Worked]:
    """Writes the worked examples of a method, each in the very form that the method gives and wants.

    Args:
        method: of the table.
        shots: questions with their hops.
        find: the passages of a query.
        kind: see `template_of`.
        seed: of the words.
        form: of observations, see `render_observation`.
    """
    rng = random.Random(f"{seed}/words")
    template = template_of(method, kind)
    begun, opening = answer_begun(template), template_opening(template)
    written: list[Worked] = []
    for example, hops in shots:
        rest = worked(method, example, hops, neutralize_tags(example.golden_answers[0]), find, rng, opening, form)
        written.append((normalize_question(example.question), begun + rest))
    return written


def worked(
    method: str,
    example: Example,
    hops: Sequence[Hop],
    answer: str,
    find: Find,
    rng: random.Random,
    opening: str,
    form: Form,
) -> str:
    """Writes one example from behind its question on, less the tag (`opening`) that the template has opened."""
    final = f"<answer> {answer} </answer>"
    said = " ".join(hop.said for hop in hops)
    if method == "direct":
        return final.removeprefix(opening)
    if method in ("cot", "r1"):
        return f"<think> {said} </think>\n{final}".removeprefix(opening)
    if method == "rag":
        return render_observation(find(example.question), form) + final
    if method == "ircot":
        queries = [example.question, *(hop.said for hop in hops[:-1])]
        read = (render_observation(find(query), form) for query in queries)
        return "".join(f"{passages}{hop.said}\n" for passages, hop in zip(read, hops, strict=True)) + final
    turns = write_turns(hops, answer, rng)
    if method == "search-o1":
        seen = [render_note(hop.said) for hop in hops]
    else:
        seen = [render_observation(find(hop.query), form) for hop in hops]
    return "".join(f"{turn}{observation}" for turn, observation in zip(turns, [*seen, ""], strict=True))
