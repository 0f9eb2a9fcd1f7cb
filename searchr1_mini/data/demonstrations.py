"""Demonstrations of the user's own for a cold start: what is read of the file, and which of them teach a search."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.prompts import parse_action
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import contains_gold, exact_match
from searchr1_mini.core.scores import is_closed
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.data.answers import texts_of
from searchr1_mini.data.corpus import read_rows
from searchr1_mini.data.rows import is_text
from searchr1_mini.data.scripts import Script, up_to_stop
from searchr1_mini.storage.forms import misfit

ROLLOUT = {"question": str, "segments": [{"kind": str, "text": str}]}  # what is read of a rollout's line
NO_ACTION = "a turn of theirs holds no action, or passages"
NO_ROOM = "they do not fit into --max-total-tokens, --max-new-tokens and --max-turns"
NOT_FOUND = "no search of theirs finds a passage with their answer"
_PASSAGES = re.compile(r"</?information>", re.IGNORECASE)


def read_demonstrations(path: Path) -> Iterator[Script]:
    """Yields questions with their policy turns from a file of demonstrations, or from a run's own rollouts.

    A line is {"question", "turns": [texts]}, or a line of rollouts/step-N.jsonl, of which those that were right are
    taken; one with an invalid turn has None in the place of its turns. docs/recipes.md has an example.

    Raises:
        UserError: a line is of neither form, its last turn does not answer, or a turn of "turns" is none.
    """
    for row, where in read_rows(path):
        is_rollout = row.get("turns") is None and "segments" in row
        if is_rollout and not is_right(row, where):
            continue
        turns = row.get("turns")
        if is_rollout:
            turns = [part["text"] for part in row["segments"] if part["kind"] == "policy"]
        if not is_text(row.get("question")) or not is_list_of_texts(turns):
            raise UserError(
                f'{where}: not a demonstration; each line needs "question" (text) and "turns" (a list of texts), or is '
                "a line of a run's rollouts"
            )
        turns = [up_to_stop(turn) for turn in turns]
        kinds = [parse_action(turn).kind for turn in turns]
        if kinds[-1] != "answer" or "answer" in kinds[:-1]:
            raise UserError(f"{where}: the last turn, and no other, must hold <answer> and </answer>")
        is_valid = "invalid" not in kinds and not any(map(_PASSAGES.search, turns))
        if not (is_valid or is_rollout):
            raise UserError(
                f"{where}: each turn must hold a <search> or the <answer>, and no <information>, which the engine gives"
            )
        example = Example(
            f"demonstration/{where}", row["question"], (parse_action(turns[-1]).content,), "demonstration"
        )
        yield example, turns if is_valid else None


def is_right(row: dict[str, Any], where: str) -> bool:
    """Tells whether the answer of a rollout's line is one of its gold answers.

    Raises:
        UserError: it is not of a rollout's form; it names `where`.
    """
    wrong = misfit(row, ROLLOUT)
    try:
        answers, golden = (texts_of(row.get(name)) for name in ("answer", "golden_answers"))
    except ValueError as error:
        wrong = wrong or f"answer or golden_answers is no text ({error})"
    if wrong:
        raise UserError(f"{where}: not a line of a run's rollouts: {wrong}; take the file as the run wrote it")
    return any(exact_match(answer, golden) for answer in answers)


def is_list_of_texts(value: Any) -> bool:
    """Tells whether it is a list of texts, and not an empty one."""
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def n_searches(turns: Sequence[str]) -> int:
    """Counts the turns that search."""
    return sum(parse_action(turn).kind == "search" for turn in turns)


def why_left_out(example: Example, turns: Sequence[str] | None, played: Trajectory | None) -> str | None:
    """Tells why a demonstration is not imitated, with `played` as it went in this run; None if it is.

    What searches must be shown its answer, or it teaches to make answers up. Yes, no and what the question itself names
    (comparisons) stand in no passage.
    """
    if turns is None:
        return NO_ACTION
    if played is None:
        return NO_ROOM
    answers = example.golden_answers
    needs_none = not played.queries or is_closed(answers) or contains_gold(example.question, answers)
    return None if needs_none or contains_gold("\n".join(played.retrieved), answers) else NOT_FOUND
