"""The columns of an evaluation: data sets by name or file, with the passages they are answered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.data.datasets import Split, file_examples, own_split
from searchr1_mini.data.names import BRING_PASSAGES, DATASETS, WORLD_DIFFICULTY
from searchr1_mini.evaluation.paper import PAPER_DATASETS
from searchr1_mini.options.checks import check_questions_named, world_hops_list
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import flag_name, flat, make
from searchr1_mini.options.own_parts import is_own, with_whole_path
from searchr1_mini.options.resolve import name_file, resolve
from searchr1_mini.run.data_identity import TRAINING_QUESTIONS, data_identity
from searchr1_mini.storage.files import listed_paths

ALL_DATASETS = (*PAPER_DATASETS, "world")
OF_THE_WORLD = ("world_difficulty", "world_hops", "world_noise")
OF_THE_DATA = ("dataset", "data_path", "corpus", *OF_THE_WORLD, "seed")


@dataclass(frozen=True)
class Column:
    """A data set: its values of `OF_THE_DATA`, and the split that is evaluated."""

    name: str
    data: dict[str, Any]
    split: Split


def listed(text: str | None) -> list[str]:
    """Returns the parts of a comma-separated list, each once."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def chosen(names: list[str], known: Sequence[str], flag: str, every: Sequence[str] | None = None) -> list[str]:
    """Returns the names as they are; `all` stands for `every` one.

    Args:
        every: () where there is no `all` [default: those that are known].

    Raises:
        UserError: an unknown name, with what was meant.
    """
    every = known if every is None else every
    if names == ["all"] and every:
        return list(every)
    for name in names:
        if name not in known:
            offered = ", ".join(["all", *known] if every else known)
            raise UserError(f"{flag}: unknown {name!r}{suggest(name, known)}; known: {offered}")
    return names


def chosen_engines(text: str | None, known: Sequence[str], every: Sequence[str] | None = None) -> list[str]:
    """Returns the search engines of a list as `chosen` does, those of the user's own with the whole path of their file.

    Raises:
        UserError: an unknown name, with what was meant.
    """
    names = listed(text)
    if names == ["all"]:
        return chosen(names, known, "--retriever", every)
    chosen([name for name in names if not is_own(name)], known, "--retriever", every)
    return [with_whole_path(name) for name in names]


def own_data(config: EvalConfig, saved: dict[str, Any] | None) -> dict[str, Any]:
    """Returns what the first run was trained on, or what the model would be, as values of `OF_THE_DATA`."""
    if saved is None:
        saved = flat(resolve(make(TrainConfig, model=config.model or "tiny", seed=config.seed)))
    return {name: saved[name] for name in OF_THE_DATA}


def plan_columns(config: EvalConfig, own: dict[str, Any], runs: list[dict]) -> list[Column]:
    """Returns the data sets that were asked for, by name or file; by default the first run's or the model's own.

    Raises:
        UserError: an unknown data set, flags that belong to none of them, or a file that cannot be read.
    """
    if not runs:
        check_questions_named(config.corpus, config.datasets, config.data_path, flag="--datasets")
    names = list(dict.fromkeys(listed_paths(config.datasets))) if config.datasets is not None else [own["dataset"]]
    files = [name for name in names if name_file(make(TrainConfig, dataset=name)).data.data_path]
    names = chosen([name for name in names if name not in files], DATASETS, "--datasets", ALL_DATASETS) + files
    if not names:
        raise UserError("--datasets names no data set; write all, or a list such as nq,hotpotqa")
    if config.data_path and files:
        raise UserError(f"--data-path {config.data_path} and --datasets {files[0]} are both files; name one of them")
    if config.data_path and (len(names) > 1 or names == ["world"]):
        raise UserError(
            "--data-path is the file of one data set; name that alone with --datasets, or the files themselves"
        )
    given = [flag_name(name) for name in (*OF_THE_WORLD, "world_seed") if getattr(config, name) is not None]
    if given and "world" not in names:
        raise UserError(f"{', '.join(given)}: the synthetic world is not among --datasets; add world, or leave it out")
    if config.corpus and names == ["world"]:
        raise UserError("--corpus does not go with the synthetic world, which brings its own passages")
    paths = {Path(saved["data_path"]).resolve() for saved in runs if saved["data_path"]}
    hashes = {(saved.get("data_hashes") or {}).get(TRAINING_QUESTIONS) for saved in runs} - {None}
    return [make_column(config, own, name, paths, hashes) for name in names]


def make_column(config: EvalConfig, own: dict[str, Any], name: str, paths: set[Path], hashes: set[str]) -> Column:
    """Builds one column: the run's own data as trained on, any other from its defaults; flags given now override.

    Args:
        config, own: the flags, and the first run's or the model's own data.
        name: of the data set, or a file.
        paths, hashes: the files that the runs were trained on, and the hashes of their training questions.
    """
    file = name_file(make(TrainConfig, dataset=name))
    path = file.data.data_path or config.data_path
    is_own_file = bool(path and own["data_path"]) and Path(path).resolve() == Path(own["data_path"]).resolve()
    is_own = is_own_file or (not path and name == own["dataset"])
    data = dict(own) if is_own else dict.fromkeys(OF_THE_DATA) | {"dataset": file.data.dataset, "data_path": path}
    if data["dataset"] == "world":
        data |= {} if is_own else {"world_difficulty": WORLD_DIFFICULTY, "world_hops": "1,2", "world_noise": 0}
        data |= {name: value for name in OF_THE_WORLD if (value := getattr(config, name)) is not None}
        world_hops_list(make(TrainConfig, world_hops=data["world_hops"]))
    else:
        data |= {"corpus": corpus_source(config, data), "world_noise": 0}
    data["seed"] = own["seed"] if config.world_seed is None else config.world_seed
    is_held_out = not data["data_path"] or was_trained_on(data, paths, hashes)
    return Column(name, data, "eval" if is_held_out else "all")


def corpus_source(config: EvalConfig, data: dict[str, Any]) -> str | None:
    """Names what a data set is answered from: --corpus, the run's, or HotpotQA's paragraphs; None is its own."""
    brings_passages = data["data_path"] or data["dataset"] in ("world", *BRING_PASSAGES)
    given = config.corpus if data["dataset"] != "world" else None
    return given or data["corpus"] or (None if brings_passages else "hotpotqa")


def was_trained_on(data: dict[str, Any], paths: set[Path], hashes: set[str]) -> bool:
    """Tells whether a run was trained on a file or a copy of it: its relative path may mean another folder now.

    Raises:
        UserError: the file cannot be read.
    """
    if Path(data["data_path"]).resolve() in paths:
        return True
    if not hashes:
        return False
    examples, articles = file_examples(data["dataset"], data["data_path"])
    return data_identity(own_split(examples, "train", articles), "")[TRAINING_QUESTIONS] in hashes
