"""Worked examples in the prompt (`--shots`), so that a model is not scored for a form that it was never shown."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.encoding import observation_ids
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.prompts import neutralize_tags, normalize_question, render_observation
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rewards import contains_gold
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.core.scores import has_found
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.data.datasets import FLASHRAG
from searchr1_mini.data.scripts import Find, Hop, answer_of, data_hops, world_hops, write_turns
from searchr1_mini.data.world import make_world
from searchr1_mini.models.chat_template import parse_day, takes_turns
from searchr1_mini.models.prompting import prompt_ids
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import SEARCHING
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.methods import sentence_query
from searchr1_mini.run.task import Library, load_task
from searchr1_mini.run.templates import (
    Worked,
    answer_begun,
    as_turns,
    render_note,
    template_of,
    template_opening,
    with_shots,
)

Shot = tuple[Example, list[Hop]]
Render = Callable[[Sequence[Passage]], str]  # writes an observation


def draw_shots(
    settings: TrainConfig,
    n: int,
    seed: int,
    library: Library,
    methods: Sequence[str] = ("search-r1",),
    render: Render = render_observation,
) -> tuple[dict[str, list[Shot]], Find]:
    """Draws `n` questions for each method with what a script says of them, and the engine of their passages.

    They are training questions; of a data set that has none they are of the questions that are evaluated, and the
    caller leaves them out of those. All methods get the same ones, but for a method that would not come to the answer.

    Args:
        settings: of a column; its retriever is taken as `auto` unless it is a server.
        methods: of the table.
        render: see `as_in_rollouts`.

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

    shots: dict[str, list[Shot]] = {method: [] for method in methods}
    for example in rng.sample(task.examples, len(task.examples)):
        wanting = [method for method in shots if len(shots[method]) < n]
        if not wanting:
            break
        hops = world_hops(world, example, find, rng) if world else data_hops(example, find)
        if hops and any(contains_gold(hop.said, example.golden_answers) for hop in hops):
            for method in wanting:
                if comes_to_answer(method, example, hops, find, render, settings.rollout.max_turns):
                    shots[method].append((example, hops))
    for method, drawn in shots.items():
        if len(drawn) < n:
            raise UserError(
                f"--shots {n}: only {len(drawn)} of {len(task.examples)} questions give a worked example of {method}, "
                f"one whose answer {'its own searches find' if method in SEARCHING else 'is found by a search'}; ask "
                "for fewer, or leave it out of --methods"
            )
    return shots, find


def queries_of(method: str, example: Example, hops: Sequence[Hop]) -> list[str]:
    """Returns what a method searches for in a worked example, in order."""
    if method not in SEARCHING:
        return []
    if method == "rag":
        return [example.question]
    if method == "ircot":
        return [example.question, *(sentence_query(hop.said, example.question) for hop in hops)]
    return [hop.query for hop in hops]


def comes_to_answer(
    method: str, example: Example, hops: Sequence[Hop], find: Find, render: Render, max_turns: int
) -> bool:
    """Tells whether a method's own searches, within its turns, show the answer before it is said.

    An example that says what it did not read would teach to invent.
    """
    queries = queries_of(method, example, hops)
    before = queries[:-1] if method == "ircot" else queries  # its last search follows the sentence with the answer
    found = [find(query) for query in before]
    read = Trajectory(
        example.id,
        [],
        retrieved=[render(passages) for passages in found],
        titles=[[passage.title for passage in passages] for passages in found],
    )
    return not queries or (len(queries) <= max_turns and has_found(read, example.golden_answers, example.supporting))


def as_in_rollouts(tokenizer: PreTrainedTokenizerBase, limits: RolloutLimits) -> Render:
    """Returns what writes an observation as a rollout does: in its form, and cut inside where it is too long.

    That raises a UserError where not even the tags of an observation fit.
    """

    def render(passages: Sequence[Passage]) -> str:
        cut = observation_ids(passages, tokenizer, limits.max_observation_tokens, limits.form)
        if cut is None:
            raise UserError(
                f"--max-observation-tokens {limits.max_observation_tokens} has no room for the tags of an observation; "
                "raise it"
            )
        return cut[1]

    return render


def write_shots(
    method: str, shots: Sequence[Shot], find: Find, kind: str, seed: int, form: Render = render_observation
) -> list[Worked]:
    """Writes the worked examples of a method, each in the very form that the method gives and wants.

    Args:
        method: of the table.
        shots: questions with their hops.
        find: the passages of a query.
        kind: see `template_of`.
        seed: of the words.
        form: writes an observation, see `as_in_rollouts`.
    """
    rng = random.Random(f"{seed}/words")
    template = template_of(method, kind)
    begun, opening = answer_begun(template), template_opening(template)
    written: list[Worked] = []
    for example, hops in shots:
        rest = worked(method, example, hops, neutralize_tags(answer_of(example, hops)), find, rng, opening, form)
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
    form: Render,
) -> str:
    """Writes one example from behind its question on, less the tag (`opening`) that the template has opened."""
    final = f"<answer> {answer} </answer>"
    said = [hop.said for hop in hops]
    if method == "direct":
        return final.removeprefix(opening)
    if method in ("cot", "r1"):
        return f"<think> {' '.join(said)} </think>\n{final}".removeprefix(opening)
    if method == "search-o1":
        seen = [render_note(sentence) for sentence in said]
    else:
        seen = [form(find(query)) for query in queries_of(method, example, hops)]
    if method == "rag":
        return seen[0] + final
    if method == "ircot":
        sentences = [f"{sentence}\n" for sentence in said]
        return "".join(f"{passages}{turn}" for passages, turn in zip(seen, [*sentences, final], strict=True))
    turns = write_turns(hops, answer, rng)
    return "".join(f"{turn}{observation}" for turn, observation in zip(turns, [*seen, ""], strict=True))


def placed(
    method: str, kind: str, shots: Sequence[Worked], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Worked], Sequence[Worked]]:
    """Returns the worked examples that are earlier turns of a chat, and those that stand before the question.

    They are turns where the model's chat template takes such; one of the two is empty.
    """
    return (as_turns(method, kind, shots), ()) if shots and takes_turns(tokenizer) else ([], shots)


def check_room(
    settings: TrainConfig, shots: Sequence[Worked], questions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuses worked examples beside which the longest question does not fit into the context.

    A question that would not fit without them either is left to the rollout, which names it.

    Raises:
        UserError: says what to do.
    """
    method, kind, most = settings.run.method, settings.data.template, settings.rollout.max_total_tokens
    question, day = normalize_question(max(questions, key=len)), parse_day(settings.data.date)

    def n_tokens(shots: Sequence[Worked]) -> int:
        turns, before = placed(method, kind, shots, tokenizer)
        text = with_shots(template_of(method, kind), before).format(question=question)
        return len(prompt_ids(text, tokenizer, day, turns))

    if (shown := n_tokens(shots)) >= most > n_tokens(()):
        raise UserError(
            f"--shots {len(shots)}: the worked examples of {method} make a prompt of {shown} tokens, but "
            f"--max-total-tokens is {most}; show fewer, raise it, or lower --max-observation-tokens or --topk"
        )
