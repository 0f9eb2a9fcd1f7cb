"""What an evaluation consists of: the rows (a method, its weights, its retriever) and the data sets asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from searchr1_mini import checkpoint
from searchr1_mini.config import EvalConfig, TrainConfig, suggest
from searchr1_mini.defaults import DATASETS, PROMPTED, SEARCHING, TRAINED
from searchr1_mini.errors import UserError
from searchr1_mini.resolve import name_file, resolve

METHODS = (*PROMPTED, *TRAINED)  # in the order of the paper's table
GENERATORS = {"sft": "direct", "rejection-sampling": "search-r1"}  # others are called as their method
OF_THE_DATASET = ("data_path", "corpus", "world_difficulty", "world_hops", "world_noise")
OF_AN_EVALUATION = ("data", "retrieval", "rollout", "model")  # groups of a run's options that its evaluation keeps
ALL_DATASETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "world")
RETRIEVERS = ("auto", "bm25", "bm25s", "http", "none", "empty", "random", "oracle")


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, under settings of its own, with these weights on the base (None: as it is)."""

    label: str
    method: str
    settings: TrainConfig
    weights: Path | None
    own_data: str | None = None  # the local file that it was trained on


def slug(text: str) -> str:
    """A name for a file: `runs/a,runs/b` -> `runs-a-runs-b`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:80]


def chosen(text: str | None, known: Sequence[str], flag: str, every: Sequence[str] | None = None) -> list[str]:
    """The names of a comma-separated list, each once; `all` stands for `every` one of them.

    Raises:
        UserError: an unknown name, with what was meant.
    """
    names = list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    if names == ["all"]:
        return list(every or known)
    for name in names:
        if name not in known:
            raise UserError(f"{flag}: unknown {name!r}{suggest(name, known)}; known: all, {', '.join(known)}")
    return names


def base_settings(config: EvalConfig) -> TrainConfig:
    """Settings of the first run, or of a model by itself, under the flags given now."""
    if config.run is None:
        if config.checkpoint:
            raise UserError("--checkpoint is a step of a run; name the run with --run")
        return settings_of(config, None)
    if config.model or config.adapter:
        raise UserError("--run brings its own model and adapter; leave out --model and --adapter")
    return settings_of(config, run_folders(config)[0])


def run_folders(config: EvalConfig) -> list[Path]:
    """The folders that --run names."""
    return [Path(part.strip()) for part in (config.run or "").split(",") if part.strip()]


def saved_config(folder: Path) -> dict:
    """What a run was trained with.

    Raises:
        UserError: the folder holds no run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no run (no config.json); name a folder that train.py wrote")
    return json.loads(path.read_text(encoding="utf-8"))


def settings_of(config: EvalConfig, folder: Path | None) -> TrainConfig:
    """A run's settings, as far as an evaluation reads them, or a model's defaults; flags given now go over both."""
    values = {}
    if folder is not None:
        saved = saved_config(folder)
        kept = [f.name for f in fields(TrainConfig) if f.metadata["group"] in OF_AN_EVALUATION]
        values = {name: saved[name] for name in (*kept, "model", "seed") if name in saved}
        values["retriever"] = "auto" if values["retriever"] in ("none", "empty") else values["retriever"]
    shared = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(EvalConfig)}
    shared -= {"temperature", "retriever", "output_dir", "seed"}
    values |= {name: value for name in shared if (value := getattr(config, name)) is not None}
    if config.retriever:
        values["retriever"] = chosen(config.retriever, RETRIEVERS, "--retriever")[0]
    if folder is None:
        values["seed"] = config.seed
        datasets = [name for name in (config.datasets or "").split(",") if name]
        if datasets and datasets != ["all"]:
            values["dataset"] = datasets[0].strip()
    return resolve(TrainConfig(**values))


def plan_rows(config: EvalConfig, base: TrainConfig, out: Path) -> tuple[list[Row], list[str]]:
    """The rows that were asked for, in the order of the paper's table; and what was left out, with the remedy.

    Raises:
        UserError: an unknown method, or a run that is not there.
    """
    wanted = chosen(config.methods, METHODS, "--methods")
    of_runs = [(run_method(saved_config(folder)), folder) for folder in run_folders(config)]
    if config.methods is None:
        wanted = [method for method, _ in of_runs] or ["search-r1"]
    is_table = config.methods is not None and len(wanted) > 1
    trains = is_table and (config.train if config.train is not None else base.model == "tiny")
    rows, notes = [], []
    for method in [name for name in METHODS if name in wanted]:
        folders = [folder for name, folder in of_runs if name == method]
        if method in PROMPTED:
            weights = Path(config.adapter) if config.adapter else None
            rows.append(Row(method, method, replace(base, method=generator_of(method)), weights))
        elif folders:
            rows += [row_of_run(config, method, folder, len(folders) > 1) for folder in folders]
        elif trains:
            rows.append(row_of_run(config, method, train_missing(config, method, out), False))
        elif method == "search-r1" and not is_table:
            weights = Path(config.adapter) if config.adapter else None
            label = method if weights else "search-r1, untrained"
            rows.append(Row(label, method, replace(base, method="search-r1"), weights))
        else:
            flags = train_flags(method)
            notes.append(
                f"{method} is left out: train it with `python train.py --model {base.model} {flags}--output-dir DIR` "
                "and name it with --run DIR, or add --train"
            )
    return list(with_retrievers(config, rows)), notes


def generator_of(method: str) -> str:
    """The generator in methods.py that a method of the table runs."""
    return GENERATORS.get(method, method)


def run_method(saved: dict) -> str:
    """The method of the table that a run trained."""
    return saved["algorithm"] if saved["algorithm"] in TRAINED else saved["method"]


def row_of_run(config: EvalConfig, method: str, folder: Path, is_one_of_several: bool) -> Row:
    """A run, at the checkpoint that was asked for."""
    settings = replace(settings_of(config, folder), method=generator_of(method))
    label = f"{method} ({folder.name})" if is_one_of_several else method
    return Row(label, method, settings, checkpoint_of(config, folder) / "model", saved_config(folder).get("data_path"))


def checkpoint_of(config: EvalConfig, folder: Path) -> Path:
    """The checkpoint that was asked for, or the newest whole one.

    Raises:
        UserError: there is none, or it is damaged.
    """
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


def train_flags(method: str) -> str:
    """What turns train.py's default into this baseline."""
    flags = {"sft": "--algorithm sft ", "rejection-sampling": "--algorithm rejection-sampling ", "r1": "--method r1 "}
    return flags.get(method, "")


def train_missing(config: EvalConfig, method: str, out: Path) -> Path:
    """Trains a baseline with train.py's defaults, or goes on with it; returns its folder."""
    from searchr1_mini.training import train

    folder = out / "runs" / method
    if not (folder / "summary.json").exists():
        print(f"\ntraining {method} in {folder}", flush=True)
        names = "model device dtype load_in_4bit template world_difficulty world_hops world_noise seed".split()
        values = {name: value for name in names if (value := getattr(config, name)) is not None}
        flag, _, value = train_flags(method).strip().partition(" ")
        values |= {flag.removeprefix("--"): value} if flag else {}
        resume = (folder / "config.json").exists()
        train(resolve(TrainConfig(**values, output_dir=str(folder), resume=resume, tensorboard=False)))
    return folder


def with_retrievers(config: EvalConfig, rows: list[Row]) -> Iterator[Row]:
    """Each row with each retriever of the list; one that a method never asks is left out after the first."""
    names = chosen(config.retriever, RETRIEVERS, "--retriever")
    for row in rows:
        if len(names) < 2 or row.method not in SEARCHING:
            yield row
            continue
        for name in names:
            if name != "none" or row.settings.method in ("search-r1", "search-o1"):
                yield replace(row, label=f"{row.label}, {name}", settings=replace(row.settings, retriever=name))


def plan_datasets(config: EvalConfig, base: TrainConfig) -> list[str]:
    """The data sets that were asked for, by name or file; by default the run's or the model's own."""
    if config.datasets is None:
        return [base.dataset]
    names = [part.strip() for part in config.datasets.split(",") if part.strip()]
    files = [name for name in names if name_file(TrainConfig(dataset=name)).data_path]
    known = chosen(",".join(name for name in names if name not in files), DATASETS, "--datasets", ALL_DATASETS)
    return known + files


def on_dataset(config: EvalConfig, row: Row, dataset: str) -> tuple[TrainConfig, str]:
    """The row's settings on a data set, and the split: a local file is held out from its own run only."""
    settings = row.settings
    if dataset != settings.dataset:
        default = TrainConfig()
        values = {name: getattr(default, name) for name in OF_THE_DATASET}
        values |= {name: value for name in OF_THE_DATASET if (value := getattr(config, name)) is not None}
        if dataset != "world":
            values |= {"world_difficulty": None, "world_hops": None, "world_noise": 0}
        method, settings = settings.method, resolve(replace(settings, **values, dataset=dataset, method=None))
        settings = replace(settings, method=method)
    if not settings.corpus and not settings.data_path and settings.dataset not in ("world", "hotpotqa"):
        settings = replace(settings, corpus="hotpotqa")  # the others bring no passages
    seed = settings.seed if config.world_seed is None else config.world_seed
    settings = replace(settings, seed=seed, eval_questions=config.limit)
    return settings, "eval" if settings.data_path in (None, row.own_data) else "all"
