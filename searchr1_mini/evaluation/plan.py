"""What an evaluation consists of: its columns (columns.py), and rows: a method, its weights, its retriever."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.data.datasets import load_examples
from searchr1_mini.evaluation.columns import (
    OF_THE_WORLD,
    Column,
    chosen,
    chosen_engines,
    corpus_source,
    listed,
    own_data,
    plan_columns,
)
from searchr1_mini.models.chat_template import today
from searchr1_mini.models.weights import adapter_settings
from searchr1_mini.options.checks import LEAST_TEMPERATURE, check_retriever, refuse_unread
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PROMPTED, SEARCHING, TRAINED
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import default_value, flag_name, get, make, options_of, with_options
from searchr1_mini.options.own_parts import METHOD_SETTINGS, is_own, short_name, unread_settings
from searchr1_mini.options.resolve import resolve, saved_config
from searchr1_mini.pages.report import write_report
from searchr1_mini.retrievers.names import ENGINES, PROBES, READ_BY
from searchr1_mini.run.data_identity import TRAINING_QUESTIONS, data_identity
from searchr1_mini.run.held_out import folders_of
from searchr1_mini.storage import checkpoint
from searchr1_mini.storage.files import listed_paths

METHODS = (*PROMPTED, *TRAINED)  # in the order of the paper's table
GENERATORS = {"sft": "direct", "rejection-sampling": "search-r1"}  # others are called as their method
OF_THE_MODEL = (
    "model template observation max_new_tokens max_total_tokens max_observation_tokens rollout_batch_size lora_rank "
    "lora_alpha load_in_4bit rollout_weights memory_limit date"
).split()
OF_NO_CONSEQUENCE = "output_dir resume date rollout_weights memory_check memory_limit".split()  # for what is learned
OF_A_SEARCH = ("topk", "max_turns")
OF_AN_ENGINE = tuple(READ_BY)
TRAIN_AS = {
    "sft": {"algorithm": "sft"},
    "r1": {"method": "r1"},
    "rejection-sampling": {"algorithm": "rejection-sampling"},
}


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, its settings, and the weights on the base; None is the base as it is.

    `shots` worked examples stand in the prompt of a row that nothing was trained for.
    """

    label: str
    method: str
    settings: TrainConfig
    weights: Path | None = None
    must_train: bool = False
    shots: int = 0


@dataclass(frozen=True)
class Plan:
    """Rows in the order of the paper's table, columns, and what was left out, with the remedy."""

    rows: list[Row]
    columns: list[Column]
    notes: list[str]


def plan_evaluation(config: EvalConfig, unasked: Collection[str] = ()) -> Plan:
    """Plans everything that the flags ask for, checked before any work.

    Args:
        unasked: names of options whose values come from a preset: they may do nothing.

    Raises:
        UserError: a name, run, file or combination of flags that makes no sense.
    """
    for name in ("run", "methods", "retriever"):
        if getattr(config, name) is not None and not listed(getattr(config, name)):
            raise UserError(f"{flag_name(name)} {getattr(config, name)!r} names nothing; give a name, or leave it out")
    if config.run and (config.model or config.adapter):
        raise UserError("--run brings its own model and adapter; leave out --model and --adapter")
    if 0 < config.temperature < LEAST_TEMPERATURE:
        raise UserError(f"--temperature {config.temperature}: it must be 0, or at least {LEAST_TEMPERATURE}")
    runs = {folder: saved_config(folder) for folder in run_folders(config)}
    if config.checkpoint and not runs:
        raise UserError("--checkpoint is a step of a run; name the run with --run")
    own = own_data(config, next(iter(runs.values()), None))
    rows, notes = plan_rows(config, runs, own)
    if not rows:
        raise UserError(" ".join(notes))
    refuse_idle(config, rows, notes, unasked)
    columns = plan_columns(config, own, list(runs.values()))
    is_drawn = config.temperature > 0 or config.shots > 0 or any(row.must_train for row in rows)
    has_own_world = not runs and any(column.data["dataset"] == "world" for column in columns)
    if config.seed != EvalConfig.seed and not is_drawn and not has_own_world:
        raise UserError(
            "--seed does nothing: answers are greedy, and no world is made; add --temperature 1, or leave it out"
        )
    return Plan(rows, columns, notes)


def slug(text: str) -> str:
    """Makes a name for a file: `runs/a,runs/b` -> `runs-a-runs-b`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:80]


def run_folders(config: EvalConfig) -> list[Path]:
    """Returns the folders that --run names."""
    return [Path(part) for part in dict.fromkeys(listed_paths(config.run))]


def run_method(saved: dict[str, Any]) -> str:
    """Returns the method of the table that a run trained."""
    name = saved["algorithm"] if saved["algorithm"] in TRAINED else saved["method"]
    return "search-r1" if is_own(name) else name


def row_settings(config: EvalConfig, saved: dict[str, Any] | None) -> TrainConfig:
    """Returns model, bounds and retriever of a run, or a model's defaults; flags given now go over both."""
    values = {name: saved[name] for name in (*OF_THE_MODEL, *OF_A_SEARCH)} if saved else {}
    if values.get("rollout_weights") == "dequantized":  # also what auto became, by the memory of the run's device
        values["rollout_weights"] = "auto"
    given = {name: getattr(config, name) for name in (*OF_THE_MODEL, *OF_A_SEARCH) if hasattr(config, name)}
    values |= {name: value for name, value in given.items() if value is not None}
    settings = resolve(make(TrainConfig, **values), unasked=values)
    engine = saved["retriever"] if saved and saved["retriever"] not in PROBES else "auto"
    of_engine = {name: (saved or {}).get(name, default_value(TrainConfig, name)) for name in OF_AN_ENGINE}
    of_engine |= {name: value for name in OF_AN_ENGINE if (value := getattr(config, name)) is not None}
    return with_options(settings, retriever=engine, date=settings.data.date or today().isoformat(), **of_engine)


def plan_rows(config: EvalConfig, runs: dict[Path, dict], own: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """Returns the rows that were asked for, and what was left out.

    Raises:
        UserError: an unknown method or retriever, or a run or adapter that no row uses, or no adapter.
    """
    base = row_settings(config, next(iter(runs.values()), None))
    methods = chosen(listed(config.methods), METHODS, "--methods")
    if not methods:
        methods = [run_method(saved) for saved in runs.values()] or ["search-r1"]
    trains = config.train if config.train is not None else len(methods) > 1 and base.run.model == "tiny"
    rows, notes = [], []
    for method in [name for name in METHODS if name in methods]:
        of_method = {folder: saved for folder, saved in runs.items() if run_method(saved) == method}
        settings = with_options(base, method=GENERATORS.get(method, method))
        if of_method:
            rows += run_rows(config, method, of_method)
        elif method in PROMPTED:
            rows.append(Row(method, method, settings, shots=config.shots))
        elif method == "search-r1" and config.adapter:
            folder = Path(config.adapter)
            rows.append(Row(method, method, with_options(settings, **adapter_settings(folder)), folder))
        elif trains:
            rows.append(Row(method, method, settings, must_train=True))
        elif method == "search-r1" and folders_of(config.model):
            rows.append(Row(method, method, settings))
        elif method == "search-r1" and not runs:
            rows.append(Row("search-r1, untrained", method, settings, shots=config.shots))
        else:
            flags = "".join(f"{flag_name(name)} {value} " for name, value in TRAIN_AS.get(method, {}).items())
            notes.append(
                f"{method} is left out: train it with `python train.py --model {base.run.model} {flags}--output-dir "
                "DIR` and name it with --run DIR, or add --train."
            )
    for folder, saved in runs.items():
        if run_method(saved) not in methods:
            raise UserError(f"{folder} trained {run_method(saved)}; add that to --methods, or leave the run out")
    if config.adapter and "search-r1" not in methods:
        raise UserError("--adapter is evaluated with search-r1; add it to --methods")
    if config.shots and not any(row.shots for row in rows):
        raise UserError("--shots does nothing for a trained row; leave it out, or add a prompted method")
    rows = [replace(row, label=f"{row.label}, {row.shots} shots") if row.shots else row for row in rows]
    rows = with_retrievers(config, rows)
    labels = [row.label for row in rows]
    if config.against and len(labels) == 1:
        raise UserError(
            "--against compares rows of the table, and there is one; add a method or a run, or leave it out"
        )
    if config.against and config.against not in labels:
        raise UserError(
            f"--against {config.against}: no such row{suggest(config.against, labels)}; rows: {', '.join(labels)}"
        )
    return rows, notes


def run_rows(config: EvalConfig, method: str, runs: dict[Path, dict]) -> list[Row]:
    """Runs of one method, at the checkpoint that was asked for; several are told apart by folder."""
    names = [folder.name for folder in runs]
    rows = []
    for folder, saved in runs.items():
        name = folder.name if names.count(folder.name) == 1 else str(folder)
        label = method if len(runs) == 1 and method in TRAINED else f"{method} ({name})"
        generator = saved["method"] if is_own(saved["method"]) else GENERATORS.get(method, method)
        settings = with_options(row_settings(config, saved), method=generator)
        rows.append(Row(label, method, settings, chosen_checkpoint(config, folder) / "model"))
    return rows


def chosen_checkpoint(config: EvalConfig, folder: Path) -> Path:
    """Returns the checkpoint that was asked for, or the newest whole one.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if config.checkpoint is None:
        path = checkpoint.latest_checkpoint(folder)
        if path is None:
            raise UserError(f"the run in {folder} has no whole checkpoint yet; train on with --resume")
        return path
    if config.checkpoint == "best":
        path = checkpoint.best_checkpoint(folder)
        if path is None:
            raise UserError(f"no checkpoint in {folder} is of a step with an evaluation; name one with --checkpoint")
        return path
    if not config.checkpoint.isdecimal():
        raise UserError(f"--checkpoint {config.checkpoint}: give the number of a step, or best")
    path = folder / "checkpoints" / f"step-{int(config.checkpoint):06d}"
    if not checkpoint.is_whole(path):
        steps = [checkpoint.checkpoint_step(p) for p in reversed(checkpoint.list_checkpoints(folder))]
        raise UserError(f"there is no whole checkpoint of step {config.checkpoint} in {folder}; it has {steps}")
    return path


def with_retrievers(config: EvalConfig, rows: list[Row]) -> list[Row]:
    """Pairs each row with each retriever of the list; a method that never searches stays as it is.

    Raises:
        UserError: an unknown retriever, or an option that none of them reads.
    """
    names = chosen_engines(config.retriever, (*ENGINES, *PROBES), ("auto", *PROBES))
    out, shorts = [], list(map(short_name, names))
    for row in rows:
        searches = row.method in SEARCHING
        for name in (names if searches else []) or [row.settings.retrieval.retriever]:
            if name == "none" and row.settings.run.method not in ("search-r1", "search-o1"):
                if len(names) == 1:
                    raise UserError(f"--retriever none: {row.method} always searches; take --retriever empty for it")
                continue
            settings = only_what_is_read(with_options(row.settings, retriever=name))
            check_retriever(settings, [name])
            short = short_name(name) if shorts.count(short_name(name)) == 1 else name  # two files by one name
            label = f"{row.label}, {short}" if searches and len(names) > 1 else row.label
            out.append(replace(row, label=label, settings=settings))
    refuse_unread(
        config, list(dict.fromkeys(row.settings.retrieval.retriever for row in out if row.method in SEARCHING))
    )
    return out


def refuse_idle(config: EvalConfig, rows: list[Row], notes: list[str], unasked: Collection[str] = ()) -> None:
    """Refuses a flag that no row reads, rather than letting it do nothing; a preset's options (`unasked`) may.

    Raises:
        UserError: names the flag, the remedy, and what was left out.
    """
    of_search = ("corpus", "retriever", *OF_A_SEARCH, "max_observation_tokens", "observation")
    asked = [name for name in of_search if getattr(config, name) is not None and name not in unasked]
    given = [flag_name(name) for name in asked]
    if given and not config.shots and not any(row.method in SEARCHING for row in rows):
        methods = ", ".join(dict.fromkeys(row.method for row in rows))
        told = f"no row searches ({methods}); leave out {', '.join(given)}, or add a method with a search"
        raise UserError(". ".join([told, *notes]))
    searching = {row.settings.retrieval.retriever for row in rows if row.method in SEARCHING}
    for name, idle in (("corpus", {"none", "empty", "http"}), ("topk", {"none", "empty"})):
        if name in asked and searching and searching <= idle:
            raise UserError(
                f"{flag_name(name)} does nothing with --retriever {', '.join(sorted(searching))}; leave it out"
            )
    fitted = "max_new_tokens" if config.max_total_tokens else None  # below which it must be, whoever reads it
    for name in METHOD_SETTINGS:
        is_given = getattr(config, name) is not None and name != fitted
        if is_given and all(name in unread_settings(row.settings.run.method) for row in rows):
            methods = ", ".join(dict.fromkeys(short_name(row.settings.run.method) for row in rows))
            raise UserError(f"{flag_name(name)} does nothing with {methods}, without a parameter {name}; leave it out")
    choices = {row.settings.weights.rollout_weights for row in rows if row.settings.weights.load_in_4bit}
    if config.rollout_weights is not None and not choices:
        raise UserError("--rollout-weights does nothing without a base in 4 bits; add --load-in-4bit, or leave it out")
    if config.memory_limit is not None and "auto" not in choices and not any(row.must_train for row in rows):
        raise UserError(
            "--memory-limit settles --rollout-weights auto of a base in 4 bits, which no row has; leave it out"
        )
    if config.train and not any(row.must_train for row in rows):
        raise UserError("--train: no row is left to train; leave it out, or add one of " + ", ".join(TRAINED))


def only_what_is_read(settings: TrainConfig) -> TrainConfig:
    """Returns the settings with options that their retriever does not read at their defaults."""
    unread = [name for name, readers in READ_BY.items() if settings.retrieval.retriever not in readers]
    return with_options(settings, **{name: default_value(TrainConfig, name) for name in unread})


def cell_settings(config: EvalConfig, row: Row, column: Column) -> TrainConfig:
    """Returns a row's settings on a column; the world's passages are on no server."""
    settings = with_options(row.settings, **column.data, eval_questions=config.limit)
    is_remote_world = column.data["dataset"] == "world" and settings.retrieval.retriever == "http"
    return with_options(settings, retriever="auto", retriever_url=None) if is_remote_world else settings


def train_row(config: EvalConfig, row: Row, out: Path) -> Row:
    """Trains a baseline on the first run's data, or the model's own, or goes on with it; the row with its weights.

    One that searches is trained with the engine and the corpus that it is evaluated with.
    """
    from searchr1_mini.run.training import train

    saved = next(map(saved_config, run_folders(config)), None)
    own = own_data(config, saved)
    values = {name: get(row.settings, name) for name in OF_THE_MODEL}
    values |= own | {name: value for name in OF_THE_WORLD if (value := getattr(config, name)) is not None}
    values |= {"device": config.device, "dtype": config.dtype, "tensorboard": False, "corpus": None}
    values |= TRAIN_AS.get(row.method, {})
    if row.method in SEARCHING:
        engine = row.settings
        if engine.retrieval.retriever in PROBES:  # all of them are put to the same weights, of an engine
            engine = with_options(row_settings(config, saved), retriever="auto")
        elif engine.retrieval.retriever == "http" and own["dataset"] == "world":
            engine = with_options(engine, retriever="auto")
        engine = only_what_is_read(engine)
        values |= {name: get(engine, name) for name in ("retriever", *OF_AN_ENGINE, *OF_A_SEARCH)}
        values["corpus"] = corpus_source(config, own)
    wanted = resolve(make(TrainConfig, **values), unasked=values)
    folder = folder_for(wanted, out / "runs" / row.method)
    if not (folder / "summary.json").exists():
        print(f"\ntraining {row.method} in {folder}", flush=True)
        train(
            with_options(wanted, output_dir=str(folder), resume=(folder / "config.json").exists(), date=config.date),
            write_report,
        )
    settings = with_options(row.settings, date=saved_config(folder)["date"] or row.settings.data.date)
    weights = chosen_checkpoint(replace(config, checkpoint=None), folder) / "model"
    return replace(row, settings=settings, weights=weights, must_train=False)


def on_same_questions(saved: dict[str, Any], wanted: TrainConfig) -> bool:
    """Tells whether a run's file of questions is what it was when the run began."""
    began_on = (saved.get("data_hashes") or {}).get(TRAINING_QUESTIONS)
    if not began_on or not wanted.data.data_path:
        return True
    examples = load_examples(wanted.data.dataset, wanted.data.data_path, "train")
    return data_identity(examples, "")[TRAINING_QUESTIONS] == began_on


def folder_for(wanted: TrainConfig, first: Path) -> Path:
    """Returns `sft`, or `sft-2`, .. where a run of other settings, or on a file as it was, stands already."""
    names = [name for name in options_of(TrainConfig) if name not in OF_NO_CONSEQUENCE]
    number, folder = 1, first
    while (folder / "config.json").exists():
        saved = saved_config(folder)
        is_same = all(saved.get(name, default_value(TrainConfig, name)) == get(wanted, name) for name in names)
        if is_same and on_same_questions(saved, wanted):
            break
        number, folder = number + 1, first.with_name(f"{first.name}-{number + 1}")
    return folder
