"""The command behind eval.py: methods x data sets -> one table, or one question of the user's answered live.

A row is a method with its weights and retriever, a cell is a row on a data set. A finished cell is kept in the output
folder under a hash of all that it depends on, so that an interrupted evaluation goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, fields, replace
from itertools import groupby
from pathlib import Path

from searchr1_mini import __version__, checkpoint
from searchr1_mini.config import EvalConfig, TrainConfig
from searchr1_mini.data import Example
from searchr1_mini.defaults import SEARCHING
from searchr1_mini.errors import UserError
from searchr1_mini.evaluation import score
from searchr1_mini.models import Policy, load_policy, pick_device, pick_dtype
from searchr1_mini.plan import OF_AN_EVALUATION, Row, base_settings, on_dataset, plan_datasets, plan_rows, slug
from searchr1_mini.resolve import resolve_model
from searchr1_mini.rollout import rollout
from searchr1_mini.session import limits_of, method_of
from searchr1_mini.tables import Results, write_tables
from searchr1_mini.task import Library, Task, load_task
from searchr1_mini.tracking import read_jsonl, render_segment, trajectory_row, write_jsonl_atomic
from searchr1_mini.trajectory import Trajectory

CHUNK = 512  # questions whose answers are written at a time


def evaluate_command(config: EvalConfig) -> None:
    """Evaluates, or answers `--ask`.

    Raises:
        UserError: anything that the user can mend.
    """
    base = base_settings(config)
    if config.ask:
        answer_live(config, base)
        return
    out = Path(config.output_dir or f"runs/eval-{slug(config.run or config.adapter or base.model)}")
    rows, notes = plan_rows(config, base, out)
    datasets = plan_datasets(config, base)
    results = run_cells(config, rows, datasets, out)
    print(write_tables(results, out, base.model, config.compare, config.against, notes))
    print(f"\nwritten to {out} (table.md, table.tex, results.json, and every trajectory under cells)", flush=True)


def run_cells(config: EvalConfig, rows: list[Row], datasets: list[str], out: Path) -> Results:
    """Every row on every data set: kept results are read, the others computed; weights are loaded once."""
    library, results, done = Library(), Results(), 0
    plan = [(row, dataset, *on_dataset(config, row, dataset)) for row in rows for dataset in datasets]
    tasks: dict[tuple, Task] = {}

    def task_of(row: Row, settings: TrainConfig, split: str) -> Task:
        retriever = settings.retriever if row.method in SEARCHING else "empty"  # needs no corpus
        key = (settings.dataset, settings.data_path, settings.corpus, retriever, settings.seed, split)
        if key not in tasks:
            tasks[key] = load_task(replace(settings, retriever=retriever, method="search-r1"), split, library)
        return tasks[key]

    for row, _, settings, split in plan:  # what cannot be read is told before any work
        task_of(row, settings, split)
    for _, of_weights in groupby(plan, key=lambda cell: (cell[0].weights, cell[0].settings.model)):
        policy: Policy | None = None
        for row, dataset, settings, split in of_weights:
            task, done, began = task_of(row, settings, split), done + 1, time.perf_counter()
            path = (
                out / "cells" / f"{slug(row.label)}--{slug(dataset)}-{fingerprint(config, row, settings, task)}.jsonl"
            )
            kept = path.exists()
            if not kept:
                policy = policy or load(config, row.settings, row.weights)
                run_cell(config, policy, settings, task, path)
            found = read_jsonl(path)
            results.add(row.label, row.method, settings, found)
            em = sum(line["scores"]["em"] for line in found) / len(found)
            told = "kept from before" if kept else f"{time.perf_counter() - began:.0f} s"
            print(f"[{done}/{len(plan)}] {row.label} on {dataset}: EM {em:.3f} ({told})", flush=True)
    return results


def fingerprint(config: EvalConfig, row: Row, settings: TrainConfig, task: Task) -> str:
    """A hash of all that a cell's result depends on."""
    parts: dict = {
        "version": __version__,
        "method": settings.method,
        "settings": {f.name: getattr(settings, f.name) for f in fields(settings)
                     if f.metadata["group"] in OF_AN_EVALUATION and f.name != "rollout_batch_size"},
        "model": settings.model,
        "temperature": [config.temperature, config.seed if config.temperature else 0],
        "questions": [[example.id, example.question] for example in task.examples],
    }  # fmt: skip
    if row.weights:
        manifest = row.weights.parent / checkpoint.MANIFEST
        parts["weights"] = manifest.read_text() if manifest.exists() else str(row.weights.resolve())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def run_cell(config: EvalConfig, policy: Policy, settings: TrainConfig, task: Task, path: Path) -> None:
    """One trajectory a question with its scores, written by chunks; what an interrupted evaluation wrote is kept."""
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    written = read_jsonl(part)
    if part.exists():
        write_jsonl_atomic(part, written)  # without a torn last line
    for start in range(len(written), len(task.examples), CHUNK):
        examples = task.examples[start : start + CHUNK]
        trajectories, _ = rollout(
            examples, method_of(settings), policy, task.retriever, limits_of(settings),
            temperature=config.temperature, seed=config.seed + start,
        )  # fmt: skip
        lines = [json.dumps(cell_row(*pair)) + "\n" for pair in zip(trajectories, examples, strict=True)]
        with part.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    part.replace(path)


def cell_row(trajectory: Trajectory, example: Example) -> dict:
    """A trajectory with its scores, as a line of a cell's file."""
    scores = score(example, trajectory)
    asides = {"asides": [asdict(segment) for segment in trajectory.asides]} if trajectory.asides else {}
    return trajectory_row(trajectory, example, scores["em"]) | asides | {"scores": scores}


def load(config: EvalConfig, settings: TrainConfig, weights: Path | None) -> Policy:
    """The policy, with the run's adapter or fine-tuned weights on it."""
    device = pick_device(config.device)
    return load_policy(
        resolve_model(settings.model),
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        load_in_4bit=settings.load_in_4bit,
        dtype=pick_dtype(config.dtype, device),
        device=device,
        weights=weights,
    )


def answer_live(config: EvalConfig, base: TrainConfig) -> None:
    """Prints one trajectory while it grows, coloured by who wrote what."""
    colour = config.colour == "always" or (config.colour == "auto" and sys.stdout.isatty())
    (row, *others), _ = plan_rows(config, base, Path())
    if others:
        raise UserError("--ask answers with one method and one run; name one")
    settings, split = on_dataset(config, row, plan_datasets(config, base)[0])
    task = load_task(replace(settings, eval_questions=2 if settings.dataset == "world" else 1), split)

    def show(kind: str, text: str) -> None:
        print(render_segment(kind, text, colour), end="", flush=True)

    example = Example("ask", config.ask, (), "ask")
    (trajectory,), _ = rollout(
        [example], method_of(settings), load(config, settings, row.weights), task.retriever, limits_of(settings),
        temperature=config.temperature, seed=config.seed, on_segment=show,
    )  # fmt: skip
    verdict = trajectory.answer or f"no answer ({trajectory.finish_reason})"
    print(f"\nanswer: {verdict}\nsearches: {len(trajectory.queries)}, tokens: {trajectory.n_policy_tokens}")
