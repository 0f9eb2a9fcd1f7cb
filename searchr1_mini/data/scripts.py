"""Scripted episodes for a cold start: what an agent would write, made of what the data knows of its questions.

A script is a list of policy turns. Where the questions are those of the synthetic world, its chain of facts is the
script; where supporting passages are known and there, each is searched for by its title and quoted; else the passage
that holds the answer is searched for with the question's own words. A search that finds no such passage is not shown.
What is quoted, searched for or answered is foreign text: it forges neither a tag nor a control token.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.decoder import Turn
from searchr1_mini.core.encoding import break_added_tokens
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.play import play
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.prompts import STOP_STRINGS, neutralize_tags
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage, Retriever
from searchr1_mini.core.rewards import compared_title, contains_gold
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.core.scores import is_closed
from searchr1_mini.core.trajectory import Trajectory, opened_by
from searchr1_mini.data.world import World
from searchr1_mini.data.world_text import RELATIONS
from searchr1_mini.retrievers.terms import STOP_WORDS

FIRST = ("I need to find {want}.", "I should look up {want}.", "First I have to find {want}.")
PLANNED = ("I need to find {want}.", "I should look up {want}.", "I look for {want}.")
PLAN = ("This takes one search.", "This takes two searches. First", "This takes three searches. First")
NEXT = ("{said} Now I need to find {want}.", "{said} Next I should look up {want}.", "{said} Now I look for {want}.")
LAST = ("{said}", "{said} That answers the question.", "{said} So the answer is {answer}.")
MOST_WORDS = 40  # of a quotation: thoughts are short
# no sentence ends behind an initial or one of these
_SENTENCE = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\bSt\.)(?<!\bMt\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bJr\.)(?<!\bSr\.)"
    r"(?<!\bvs\.)(?<!\bv\.)(?<!\bNo\.)\s+(?=[A-Z\"'(\d])|(?<=[。！？])\s*"
)
_NAME_ADDITION = re.compile(r"\s*\(.*\)$")

Find = Callable[[str], Sequence[Passage]]
Script = tuple[Example, list[str] | None]  # None in the place of turns that cannot be written


class Unplayable(Exception):
    """A turn of a script does not fit."""


@dataclass(frozen=True)
class Hop:
    """One search of a script.

    Attributes:
        want: what is looked for, as it stands in a thought.
        query: what the engine is asked.
        said: what is said of what came back.
    """

    want: str
    query: str
    said: str


def write_turns(hops: Sequence[Hop], answer: str, rng: random.Random, plans: bool = False) -> list[str]:
    """Writes the policy's turns: a thought and a search for each hop, then a thought and the answer.

    Args:
        plans: whether the first thought says how many searches it will take: what the later ones do then follows from
            what is written (docs/laptop_llm.md).
    """
    turns, said, answer = [], "", neutralize_tags(answer)
    for hop in hops:
        is_planned = plans and not turns and len(hops) <= len(PLAN)
        thought = rng.choice(NEXT if said else PLANNED if is_planned else FIRST).format(said=said, want=hop.want)
        if is_planned:
            thought = f"{PLAN[len(hops) - 1]} {thought}"
        turns.append(f"<think> {thought} </think>\n<search> {hop.query} </search>")
        said = hop.said
    thought = rng.choice(LAST).format(said=said, answer=answer)
    return [*turns, f"<think> {thought} </think>\n<answer> {answer} </answer>"]


def world_hops(world: World, example: Example, find: Find, rng: random.Random) -> list[Hop] | None:
    """Returns the facts behind a question of the synthetic world; None where a search does not find its fact."""
    hops = []
    for subject, object_ in example.supporting:
        name = next(name for name in RELATIONS if (f := world.facts.get((subject, name))) and f.object == object_)
        relation = RELATIONS[name]
        query = subject if rng.random() < 0.25 else f"{subject} {relation.noun}"
        if not any(passage.title == subject and object_ in passage.text for passage in find(query)):
            return None
        hops.append(Hop(rng.choice(relation.phrases).format(s=subject), query, relation.sentence(subject, object_)))
    return hops


def data_hops(example: Example, find: Find) -> list[Hop] | None:
    """Returns the searches of a question of a data set; None where they do not find what answers it.

    Its supporting passages are read if they are known and there. If the corpus has none of them, as one that is cut in
    other places, a search with the question's own words must find the answer, but for comparisons, which name it.
    """
    if not example.supporting:
        return answer_hops(example, find)
    compares = contains_gold(example.question, example.golden_answers)
    hops = supported_hops(example, find)
    return hops or (None if compares or is_supported(example, find) else answer_hops(example, find))


def is_supported(example: Example, find: Find) -> bool:
    """Tells whether the corpus has a supporting passage: one that is found by its title and first words."""
    return any(
        is_meant(passage, title, words)
        for title, words in example.supporting
        for passage in find(f"{compared_title(title)} {words}".strip())
    )


def supported_hops(example: Example, find: Find) -> list[Hop] | None:
    """Returns a search by title for each supporting passage that is in reach, those that the question names first.

    In reach is a title that stands in the question or in a passage that was read, whatever the order in which the data
    set lists them. Where none is, the question's own words are searched for, once, and so they are for a paragraph
    whose title is that of its article (SQuAD). None where the answer was not read in the end (yes and no are exempt),
    or where not all of a comparison was read.
    """
    golden, question = example.golden_answers, example.question
    words_of = dict(reversed(example.supporting))
    titles = list(dict.fromkeys(title for title, _ in example.supporting))
    titles.sort(key=lambda title: not is_named(title, question))
    hops: list[Hop] = []
    waiting, read, used = titles, question, set()
    while waiting:
        # with words it is a paragraph, and others of its article have the same title
        named = [title for title in waiting if not words_of[title] and is_named(title, read)][:1]
        query = neutralize_tags(bare_title(named[0])) if named else own_words(question)
        passages = [] if query in used else find(query)
        used.add(query)
        tried = named or waiting
        pairs = ((title, p) for title in tried for p in passages if is_meant(p, title, words_of[title]))
        title, passage = next(pairs, (tried[0], None))
        if passage is None and not named:
            break
        waiting = [other for other in waiting if other != title]
        if passage is not None:
            read += f" {compared_title(passage.title)} {passage.text}"
            hops.append(Hop(query, query, quotation(passage, [*golden, *waiting, *titles])))
    is_read = is_closed(golden) or any(contains_gold(hop.said, golden) for hop in hops)
    compares = is_closed(golden) or contains_gold(question, golden) or all(is_named(t, question) for t in titles)
    return hops if hops and is_read and (len(hops) == len(titles) or not compares) else None


def answer_hops(example: Example, find: Find) -> list[Hop] | None:
    """Returns one search with the question's own words; None where no passage that it finds holds the answer.

    Yes and no stand in nearly every passage, and answer nothing there.
    """
    if is_closed(example.golden_answers):
        return None
    query = own_words(example.question)
    passage = next((p for p in find(query) if contains_gold(p.text, example.golden_answers)), None)
    said = quotation(passage, example.golden_answers) if passage else ""
    return [Hop(query, query, said)] if contains_gold(said, example.golden_answers) else None


def answer_of(example: Example, hops: Sequence[Hop]) -> str:
    """Returns the gold answer that a script gives: the first that was said; the first of all where none has to be.

    Of several spellings of an answer a passage has one, and what stands in no passage teaches to make answers up.
    """
    golden = () if is_closed(example.golden_answers) else example.golden_answers
    said = (gold for gold in golden if any(contains_gold(hop.said, [gold]) for hop in hops))
    return next(said, example.golden_answers[0])


def is_meant(passage: Passage, title: str, words: str) -> bool:
    """Tells whether a passage is the supporting one of this title with these words (`Example.supporting`)."""
    return compared_title(passage.title) == compared_title(title) and words in passage.text


def is_named(title: str, text: str) -> bool:
    """Tells whether a text names a title, less what stands in brackets behind it: `Hamlet (play)`."""
    return contains_gold(text, [bare_title(title)])


def bare_title(title: str) -> str:
    """Returns a title as a text names it: `Oslo Ferry` of `Oslo_Ferry_(ship)`."""
    return _NAME_ADDITION.sub("", compared_title(title))


def own_words(question: str) -> str:
    """Returns the question's words without English function words, in their order, as a query."""
    words = [word for word in re.findall(r"[\w'’.-]+", question) if word.lower().strip(".'’-") not in STOP_WORDS]
    return " ".join(word.strip(".") for word in words) or neutralize_tags(question)


def quotation(passage: Passage, wanted: Sequence[str]) -> str:
    """Quotes a passage's first sentence with something wanted, else its first; cut to `MOST_WORDS` around that.

    Earlier parts of `wanted` count more. Yes and no are not looked for, which stand in nearly every passage, nor is the
    passage's own title; what stands in brackets behind a name may be missing. Our own tags in the quotation are
    neutralized, as they are where the passage is read.
    """
    sentences = _SENTENCE.split(passage.text.strip())
    others = [part for part in wanted if not is_closed([part]) and not is_meant(passage, part, "")]
    forms = dict.fromkeys(form for part in others for form in (part, bare_title(part)))
    held = ((sentence, form) for form in forms for sentence in sentences if contains_gold(sentence, [form]))
    sentence, form = next(held, (sentences[0], ""))
    words = sentence.split()
    if len(words) > MOST_WORDS:
        starts = [
            start
            for start in range(0, len(words) - MOST_WORDS + 1)
            if contains_gold(" ".join(words[start : start + MOST_WORDS]), [form or passage.title])
        ]
        start = starts[len(starts) // 2] if starts else 0
        words = words[start : start + MOST_WORDS]
    return neutralize_tags(" ".join(words))


def up_to_stop(turn: str) -> str:
    """Cuts a turn behind its first `</search>` or `</answer>`, where a rollout's turn ends."""
    ends = [turn.find(stop) + len(stop) for stop in STOP_STRINGS if stop in turn]
    return turn[: min(ends, default=len(turn))]


def written(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """Returns a turn without control tokens, and its ids; a tag that is a token of the tokenizer's is that token."""
    text = break_added_tokens(text, tokenizer)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def play_script(
    example: Example,
    turns: Sequence[str],
    make_method: MakeMethod,
    policy: Policy,
    retriever: Retriever,
    limits: RolloutLimits,
) -> Trajectory | None:
    """Plays one conversation in which these turns are the policy's; None if it does not end with the last of them.

    Prompt, passages and their cutting are those of a rollout, so that what is imitated has the very form of what is
    sampled. A turn that is longer than the method lets it be, or that goes on behind its stop string, or a context that
    is full, ends it early.
    """
    waiting = list(turns)

    def write(context: list[int], _stops: Sequence[str], most: int) -> Turn:
        text = waiting.pop(0) if waiting else ""
        if len(waiting) == len(turns) - 1 and opened_by(policy.tokenizer.decode(context)).strip() == "<think>":
            text = text.removeprefix("<think>")  # which the chat template has written
        text, ids = written(text, policy.tokenizer)
        if not ids or len(ids) > most or up_to_stop(text) != text:
            raise Unplayable
        return Turn(ids, [0.0] * len(ids), text, "stop")

    try:
        trajectory = play(example, make_method, policy, retriever, limits, write)
    except Unplayable:
        return None
    return trajectory if trajectory.finish_reason == "answer" and not waiting else None
