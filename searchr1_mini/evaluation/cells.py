"""The command behind eval.py: methods x data sets -> one table, or questions of the user's answered live.

A cell is a row on a column of the table. A finished cell is kept in the output folder under a hash of all that it
depends on, so that an interrupted evaluation goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile

from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rollout import rollout
from searchr1_mini.core.scores import score
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.evaluation.columns import Column
from searchr1_mini.evaluation.plan import (
    OF_A_SEARCH,
    OF_AN_ENGINE,
    OF_THE_MODEL,
    Plan,
    Row,
    cell_settings,
    run_folders,
    slug,
    train_row,
)
from searchr1_mini.evaluation.shots import as_in_rollouts, check_room, draw_shots, placed, write_shots
from searchr1_mini.evaluation.tables import Results
from searchr1_mini.models.bases import check_model, check_source
from searchr1_mini.models.chat_template import parse_day, refuse_day, writes_day
from searchr1_mini.models.identity import digest
from searchr1_mini.models.loading import load_policy, pick_device, pick_dtype, report_no_gpu
from searchr1_mini.models.names import base_revision
from searchr1_mini.models.prompting import open_message_ids
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import SEARCHING
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import get, with_options
from searchr1_mini.options.own_parts import own_hashes
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.retrievers.engines import configured_engine
from searchr1_mini.retrievers.names import READ_BY
from searchr1_mini.run.held_out import chosen_by, folders_of, learned_from_files, trained_on
from searchr1_mini.run.log import trajectory_row
from searchr1_mini.run.opening import configured_method, rollout_limits
from searchr1_mini.run.preflight import unpacks
from searchr1_mini.run.task import Library, Task, load_task
from searchr1_mini.run.templates import Worked
from searchr1_mini.storage import checkpoint, status
from searchr1_mini.storage.files import append_jsonl, read_jsonl, write_jsonl_atomic
from searchr1_mini.storage.forms import CELL, misfit
from searchr1_mini.storage.printable import one_line

CHUNK = 512  # questions whose answers are written at a time


def prepare_output(out: Path) -> None:
    """Makes the folder, so that one that cannot be written is told before any work.

    Raises:
        UserError: it cannot be written.
    """
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another --output-dir") from error


def run_cells(config: EvalConfig, plan: Plan, out: Path) -> Results:
    """Computes every row on every column; kept results are read, and weights are loaded once."""
    library, results, done = Library(), Results(), 0
    tasks, prompts = {}, {}
    check_models(config, [row.settings for row in plan.rows])
    chose = chosen_by(run_folders(config)) if config.checkpoint == "best" else []
    runs = list(dict.fromkeys([*run_folders(config), *folders_of(config.adapter, config.model)]))
    of_files = [run for run in runs if learned_from_files(run)]  # who knows what files hold of a test set
    if chose:
        plan.notes.append(
            f"The best checkpoint was chosen by {len(chose)} held-out questions of its run, which no row is asked here."
        )
    status.now("reading questions and passages")
    for column in plan.columns:  # what cannot be read is told before any work
        learned = (
            trained_on(runs if column.data["data_path"] else of_files) if column.data["dataset"] != "world" else ()
        )
        for row in plan.rows:
            tasks[row.label, column.name] = make_task(config, row, column, library, tasks, chose, learned)
        if learned:
            plan.notes.append(f"Of {column.name} no row is asked a question that a run was trained on.")
        if config.shots:
            tell_shots(config, plan, column, library, tasks, prompts)
    rows = [train_row(config, row, out) if row.must_train else row for row in plan.rows]
    for (_, model), of_weights in groupby(rows, key=lambda row: (row.weights, row.settings.run.model)):
        policy: Policy | None = None
        for row in of_weights:
            for column in plan.columns:
                task, settings = tasks[row.label, column.name], cell_settings(config, row, column)
                done, began = done + 1, time.perf_counter()
                worked = prompts.get((row.label, column.name), ())
                name = f"{slug(row.label)}--{slug(column.name)}-{fingerprint(config, row, settings, task, worked)}"
                path = out / "cells" / f"{name}.jsonl"
                found = kept_lines(path, task)
                is_kept = len(found) == len(task.examples)
                if path.exists() and not is_kept:
                    print(f"warning: {path} is damaged or cut; what is missing is answered again", file=sys.stderr)
                    path.replace(path.with_suffix(".part"))
                if not is_kept:
                    policy = policy or load(config, row.settings, model, row.weights)
                    with status.phase(f"{row.label} on {one_line(column.name)}"):
                        run_cell(config, policy, settings, task, path, worked)
                    found = read_jsonl(path)
                results.add(row, column.name, settings, found)
                em = sum(line["scores"]["em"] for line in found) / len(found)
                told = "kept from before" if is_kept else f"{time.perf_counter() - began:.0f} s"
                total = len(rows) * len(plan.columns)
                print(f"[{done}/{total}] {row.label} on {one_line(column.name)}: EM {em:.3f} ({told})", flush=True)
    return results


def tell_shots(
    config: EvalConfig, plan: Plan, column: Column, library: Library, tasks: dict[tuple, Task], prompts: dict
) -> None:
    """Puts the worked examples of a column into `prompts`, and takes their questions out of what any row is asked.

    Raises:
        UserError: no question is left to ask, or the examples leave it no room.
    """
    rows = [row for row in plan.rows if row.shots]
    settings = cell_settings(config, next((row for row in rows if row.method in SEARCHING), rows[0]), column)
    tokenizer = first_look(settings.run.model, settings.data.date)
    render = as_in_rollouts(tokenizer, rollout_limits(settings))
    methods = list(dict.fromkeys(row.method for row in rows))
    drawn, find = draw_shots(settings, config.shots, config.seed, library, methods, render)
    shown = {example.question for shots in drawn.values() for example, _ in shots}
    for row in plan.rows:
        key = row.label, column.name
        rest = [example for example in tasks[key].examples if example.question not in shown]
        if not rest:
            raise UserError(
                f"--shots {config.shots} takes every question of {column.name}, which has none to train on; ask more "
                "(--limit), or show fewer"
            )
        tasks[key] = replace(tasks[key], examples=rest)
        if row.shots:
            of_row = cell_settings(config, row, column)
            prompts[key] = write_shots(row.method, drawn[row.method], find, of_row.data.template, config.seed, render)
            check_room(of_row, prompts[key], [example.question for example in rest], tokenizer)


def make_task(
    config: EvalConfig,
    row: Row,
    column: Column,
    library: Library,
    tasks: dict[tuple, Task],
    without: Sequence[Example] = (),
    trained: Collection[str] = (),
) -> Task:
    """Returns the questions of a column with the retriever of a row; one that never searches needs no passages."""
    settings = cell_settings(config, row, column)
    if row.method not in SEARCHING:
        settings = with_options(settings, retriever="empty", retriever_url=None)
    key = (column.name, configured_engine(settings.retrieval))
    if key not in tasks:
        tasks[key] = load_task(with_options(settings, method="search-r1"), column.split, library, without, trained)
    return tasks[key]


def fingerprint(config: EvalConfig, row: Row, settings: TrainConfig, task: Task, shots: Sequence[Worked] = ()) -> str:
    """Returns a hash of all that a cell's result depends on."""
    names = ("method", "retriever", *OF_AN_ENGINE, *OF_THE_MODEL, *OF_A_SEARCH)
    unread = ("rollout_batch_size", "rollout_weights", "memory_limit", "date")  # the date only where prompts show it
    day = prompt_date(settings.run.model, settings.data.date)
    parts = {
        "code": code_hash(),
        "own parts": own_hashes({"method": settings.run.method, "retriever": settings.retrieval.retriever}),
        "settings": {name: get(settings, name) for name in names if name not in unread},
        "base": model_state(resolve_model(settings.run.model)),
        "encoders": [
            model_state(get(settings, name))
            for name in ("dense_model", "reranker")
            if get(settings, name) and settings.retrieval.retriever in READ_BY[name]
        ],
        "weights": weights_state(row.weights) if row.weights else None,
        "dtype": str(pick_dtype(config.dtype, pick_device(config.device))),  # auto is another on another device
        "temperature": [config.temperature, config.seed if config.temperature else 0],
        "questions": [asdict(example) for example in task.examples],
        "passages": task.corpus_hash,
        **({"date": day} if day else {}),
    }
    parts |= {"worked examples": shots} if shots else {}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def code_hash(package: Path = Path(__file__).parents[1]) -> str:
    """Hashes the modules that a cell's prompts, answers and scores come from, as they lie on the disk."""
    rooms = "core variants models retrievers data run evaluation".split()
    files = sorted(path for room in rooms for path in (package / room).rglob("*.py"))
    return digest(b"".join(path.read_bytes() for path in files))


def model_state(source: str) -> list:
    """Returns what tells whether a folder, or a hub id, holds another model than before: its files, or its commit."""
    return [*weights_state(Path(source)), base_revision(source)]


@lru_cache(maxsize=16)
def prompt_date(model: str, date: str) -> str | None:
    """Returns the date that prompts of a model show; None where its chat template writes none.

    Raises:
        UserError: the model cannot be used.
    """
    return date if writes_day(first_look(model, date)) else None


@lru_cache(maxsize=16)
def first_look(model: str, date: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model, which is checked as far as it can be before its weights are read.

    Raises:
        UserError: the model cannot be used.
    """
    return check_source(resolve_model(model), parse_day(date), is_first_look=True)


def check_models(config: EvalConfig, rows: list[TrainConfig]) -> None:
    """Looks at the device, and into every model, before any work; refuses a `--date` that none of them shows.

    Raises:
        UserError: names the model.
    """
    report_no_gpu(config.device, pick_device(config.device), any(row.weights.load_in_4bit for row in rows))
    days = [prompt_date(row.run.model, row.data.date) for row in rows]
    if config.date and not any(days):
        raise refuse_day(rows[0].run.model)


def weights_state(folder: Path) -> list:
    """Returns what tells whether weights have changed: a checkpoint's checksums, else sizes and times of files."""
    manifest = folder.parent / checkpoint.MANIFEST
    if manifest.is_file() and folder.parent.name.startswith("step-"):
        return [manifest.read_text(encoding="utf-8")]
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files] or [str(folder)]


def run_cell(
    config: EvalConfig, policy: Policy, settings: TrainConfig, task: Task, path: Path, shots: Sequence[Worked] = ()
) -> None:
    """Answers each question with one trajectory and its scores, in chunks; finished chunks are kept.

    Worked examples are earlier turns of the chat where the model's template takes such, else text before the question.
    """
    turns, shots = placed(settings.run.method, settings.data.template, shots, policy.tokenizer)
    policy = copy(policy)
    policy.encode_prompt = partial(policy.encode_prompt, before=turns)
    make = method_for(policy, settings, shots, turns)
    part = path.with_suffix(".part")
    written = kept_lines(part, task)
    written = written[: len(written) // CHUNK * CHUNK]  # the random streams are those of whole chunks
    write_jsonl_atomic(part, written)
    for start in range(len(written), len(task.examples), CHUNK):
        examples = task.examples[start : start + CHUNK]
        trajectories, _ = rollout(
            examples, make, policy, task.retriever, rollout_limits(settings),
            temperature=config.temperature, seed=config.seed + start,
        )  # fmt: skip
        append_jsonl(part, (cell_row(*pair) for pair in zip(trajectories, examples, strict=True)))
    part.replace(path)


def method_for(
    policy: Policy, settings: TrainConfig, shots: Sequence[Worked] = (), turns: Sequence[Worked] = ()
) -> MakeMethod:
    """Makes the method of a cell for a policy, whose chat template tells it where a message ends.

    Args:
        shots: worked examples in the message.
        turns: worked examples as earlier turns of the chat.
    """
    day = parse_day(settings.data.date)
    open_message = partial(open_message_ids, tokenizer=policy.tokenizer, day=day, before=turns)
    return configured_method(settings, shots, open_message)


def kept_lines(path: Path, task: Task) -> list[dict]:
    """Returns the lines of a cell's file from its first question on, up to one that is missing or damaged."""
    lines: list[dict] = []
    for text, example in zip(path.read_bytes().split(b"\n") if path.is_file() else [], task.examples, strict=False):
        try:
            row = json.loads(text)
            if misfit(row, CELL) or row["example_id"] != example.id:
                break
        except (ValueError, RecursionError):
            break
        lines.append(row)
    return lines


def cell_row(trajectory: Trajectory, example: Example) -> dict:
    """Returns a trajectory with its scores, as a line of a cell's file."""
    scores = score(example, trajectory)
    asides = {"asides": [asdict(segment) for segment in trajectory.asides]} if trajectory.asides else {}
    return trajectory_row(trajectory, example, scores["em"]) | asides | {"scores": scores}


def load(config: EvalConfig, settings: TrainConfig, model: str, weights: Path | None) -> Policy:
    """Loads the policy, with the run's adapter or fine-tuned weights on it."""
    device, source = pick_device(config.device), resolve_model(model)
    dtype = pick_dtype(config.dtype, device)
    check_model(source, settings.rollout.max_total_tokens)
    return load_policy(
        source,
        lora_rank=settings.weights.lora_rank,
        lora_alpha=settings.weights.lora_alpha,
        load_in_4bit=settings.weights.load_in_4bit,
        dtype=dtype,
        device=device,
        dequantize=unpacks(settings, source, device, dtype),
        weights=weights,
        day=parse_day(settings.data.date),
    )
