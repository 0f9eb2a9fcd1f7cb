"""The command behind eval.py: a trained run, or any model, on held-out questions or on one question of the user's."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from searchr1_mini import checkpoint
from searchr1_mini.config import EvalConfig, TrainConfig
from searchr1_mini.data import Example
from searchr1_mini.errors import UserError
from searchr1_mini.evaluation import evaluate
from searchr1_mini.models import Policy, load_policy, pick_device, pick_dtype
from searchr1_mini.resolve import resolve, resolve_model
from searchr1_mini.retrieval import EmptyRetriever
from searchr1_mini.rewards import reward
from searchr1_mini.rollout import rollout
from searchr1_mini.session import limits_of, load_task, method_of
from searchr1_mini.tracking import render_segment, summary_table, trajectory_row, write_json_atomic

OF_THE_DATASET = ("data_path", "corpus", "world_difficulty", "world_hops", "world_noise")


def evaluate_command(config: EvalConfig) -> None:
    """Evaluates, or answers `--ask`.

    Raises:
        UserError: anything that the user can mend.
    """
    settings, weights = as_train_config(config)
    policy = load(config, settings, weights)
    if config.ask:
        answer_live(config, settings, policy)
        return
    seed = settings.seed if config.world_seed is None else config.world_seed
    task = load_task(replace(settings, seed=seed, eval_questions=config.questions), "eval")
    retriever = EmptyRetriever() if config.retriever == "empty" else task.retriever
    summary, trajectories = evaluate(
        task.examples, method_of(settings), policy, retriever, limits_of(settings),
        temperature=config.temperature, seed=config.seed,
    )  # fmt: skip
    how = "greedy" if config.temperature == 0 else f"sampled at T = {config.temperature}"
    print(summary_table({how: summary}))
    if config.output:
        rows = [
            trajectory_row(t, e, reward(t, e.golden_answers)) for t, e in zip(trajectories, task.examples, strict=True)
        ]
        write_json_atomic(Path(config.output), {"settings": asdict(config), "summary": summary, "trajectories": rows})
        print(f"written to {config.output}")


def as_train_config(config: EvalConfig) -> tuple[TrainConfig, Path | None]:
    """The run's own settings, or those of a model by itself, under the flags given now; and the weights to load."""
    shared = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(EvalConfig)}
    shared -= {"temperature", "retriever"}  # a run samples; only an evaluation may be greedy or have no retriever
    given = {n: v for n in shared if (v := getattr(config, n)) is not None} | {"seed": config.seed}
    if config.retriever not in (None, "empty"):
        given["retriever"] = config.retriever
    if config.run is None:
        if config.checkpoint:
            raise UserError("--checkpoint is a step of a run; name the run with --run")
        return resolve(TrainConfig(**given)), Path(config.adapter) if config.adapter else None
    if config.model or config.adapter:
        raise UserError("--run brings its own model and adapter; leave out --model and --adapter")
    path = Path(config.run) / "config.json"
    if not path.is_file():
        raise UserError(f"{config.run} holds no run (no config.json); name a folder that train.py wrote")
    saved = json.loads(path.read_text(encoding="utf-8"))
    values = {f.name: saved[f.name] for f in fields(TrainConfig) if f.name in saved}
    given.pop("seed")
    if given.get("dataset", values["dataset"]) != values["dataset"]:  # what belonged to the run's own data set
        defaults = TrainConfig()
        values |= {name: getattr(defaults, name) for name in OF_THE_DATASET}
    return resolve(TrainConfig(**values | given)), checkpoint_of(config) / "model"


def checkpoint_of(config: EvalConfig) -> Path:
    """The checkpoint that was asked for, or the newest whole one.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = Path(config.run)
    if config.checkpoint is None:
        path = checkpoint.latest_checkpoint(folder)
        if path is None:
            raise UserError(f"the run in {folder} has no whole checkpoint yet; train on with --resume")
        return path
    path = folder / "checkpoints" / f"step-{config.checkpoint:06d}"
    if not checkpoint.is_whole(path):
        steps = [checkpoint.checkpoint_step(p) for p in reversed(checkpoint.list_checkpoints(folder))]
        raise UserError(f"there is no whole checkpoint of step {config.checkpoint} in {folder}; it has {steps}")
    return path


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


def answer_live(config: EvalConfig, settings: TrainConfig, policy: Policy) -> None:
    """Prints one trajectory while it grows, coloured by who wrote what."""
    colour = config.colour == "always" or (config.colour == "auto" and sys.stdout.isatty())
    task = load_task(replace(settings, eval_questions=2 if settings.dataset == "world" else 1), "eval")
    retriever = EmptyRetriever() if config.retriever == "empty" else task.retriever

    def show(kind: str, text: str) -> None:
        print(render_segment(kind, text, colour), end="", flush=True)

    example = Example("ask", config.ask, (), "ask")
    (trajectory,), _ = rollout(
        [example], method_of(settings), policy, retriever, limits_of(settings),
        temperature=config.temperature, seed=config.seed, on_segment=show,
    )  # fmt: skip
    verdict = trajectory.answer or f"no answer ({trajectory.finish_reason})"
    print(f"\nanswer: {verdict}\nsearches: {len(trajectory.queries)}, tokens: {trajectory.n_policy_tokens}")
