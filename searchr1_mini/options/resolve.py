"""What is left open in a config is filled in for the model at hand."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.data.names import DATASETS, WORLD_DIFFICULTY
from searchr1_mini.data.rows import is_question_file
from searchr1_mini.models.gguf_base import find_gguf, unpacked
from searchr1_mini.models.weights import init_folder
from searchr1_mini.options.checks import check_given, check_own_parts, check_resolved, world_hops_list
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import (
    COLD_START_RATES,
    CRITIC_LEARNING_RATES,
    HUB_MODELS,
    HUNT_TURNS,
    IMITATION,
    IMITATION_RATES,
    LEARNING_RATES,
    MAX_TURNS,
    PAPERS_ROLLOUTS,
    PPO,
    REAL,
    TINY,
)
from searchr1_mini.options.needs import NEEDS, check_ranges, check_saved, idle, refuse_idle, shown, without
from searchr1_mini.options.nested import flag_name, flat, get, make, options_of, with_options
from searchr1_mini.options.own_parts import FITS, METHOD_SETTINGS, with_whole_path
from searchr1_mini.options.words import as_now
from searchr1_mini.storage.checkpoint import CHANGED, changed_since
from searchr1_mini.storage.files import read_json


def is_tiny(config: TrainConfig) -> bool:
    """Tells whether the run is on the base that ships with the package."""
    return config.run.model == "tiny"


def resolve_model(name: str) -> str:
    """Returns what transformers loads: an existing folder, a hub id, a known short name, or the packaged tiny base.

    A GGUF file, or a folder that holds one, is unpacked, which takes its time once.

    Raises:
        UserError: it is none of these; names the closest.
    """
    if name == "tiny":
        return str(Path(__file__).parents[1] / "tiny_base")
    if gguf := find_gguf(name):
        return str(unpacked(gguf))
    if Path(name).is_dir() or "/" in name:
        folder = os.path.expanduser(name)
        is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        if not is_hub_id and not Path(folder).is_dir():
            raise UserError(f"there is no folder {name}; --model takes a folder, a hub id or a short name")
        return folder if Path(folder).is_dir() else name
    if name in HUB_MODELS:
        return HUB_MODELS[name]
    raise UserError(
        f"unknown model {name!r}{suggest(name, ['tiny', *HUB_MODELS])}; a hub id or a local folder works too"
    )


def saved_config(folder: Path) -> dict[str, Any]:
    """Returns what a run was trained with.

    Raises:
        UserError: the folder holds no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no run (no config.json); name a folder that train.py wrote")
    return checked(path, read_json(path))


def resumed_config(folder: Path) -> dict[str, Any]:
    """Returns what a run goes on with: what it was trained with, and what an earlier `--resume` changed.

    Raises:
        UserError: as `saved_config`, of either file.
    """
    saved, changed = saved_config(folder), changed_since(folder)
    return saved | (checked(folder / CHANGED, saved | changed) if changed else {})


def checked(path: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """Returns what a file says that a run was trained with, with the defaults of what an older version did not have.

    Raises:
        UserError: no flag could have set one of its options.
    """
    missing = [name for name in ("model", "method", "algorithm", "dataset") if saved.get(name) is None]
    if missing:
        raise UserError(f"{path} is damaged: it names no {missing[0]}; put back a copy of it, or name another run")
    saved |= {name: as_now(saved[name]) for name in ("overlong", "rollout_weights") if name in saved}
    check_saved(path, saved, TrainConfig)
    filled_in = {*TINY, "max_turns"} - {"drop_zero_variance"}
    empty = [name for name in saved if name in filled_in and saved[name] is None]
    wrong = [name for name in ("data_hashes", "versions") if not isinstance(saved.get(name) or {}, dict)]
    for name in empty + wrong:
        raise UserError(
            f"{path} is damaged: {name} is {shown(saved[name])}; put back a copy of it, or name another run"
        )
    defaults = flat(TrainConfig()) | {"observation": "plain"}
    old_bugs = [name for name, is_planted in saved.items() if name.startswith("bug_") and is_planted is True]
    for name in old_bugs:  # an older version had a flag for each
        saved["bug"] = name.removeprefix("bug_").replace("retokenise", "retokenize").replace("_", "-")
    return defaults | saved  # an older version had fewer, and showed passages plainly


def config_from(saved: dict[str, Any]) -> TrainConfig:
    """Makes the config of what `checked` returned, whatever was left open filled in.

    Raises:
        UserError: its hops are none.
    """
    config = filled(make(TrainConfig, **{name: saved[name] for name in options_of(TrainConfig)}))
    if config.data.dataset == "world":
        world_hops_list(config)
    return config


def resolve(config: TrainConfig, unasked: Collection[str] = ()) -> TrainConfig:
    """Fills every open value for the model at hand and refuses what does not fit together.

    Args:
        unasked: names of options whose values come from a preset or an earlier run, and not from the user: where such
            a value does nothing, that is no fault; see `fitted`.

    Raises:
        UserError: one sentence that names the flag, its value and the remedy.
    """
    check_ranges(config)
    given = with_whole_paths(name_file(config))
    check_given(given, unasked)
    given = with_options(given, **init_values(given, unasked)) if given.run.init else given
    given = fitted(given, unasked)
    config = filled(given)
    check_resolved(config)
    bare = filled(without(given, {*idle(config, NEEDS), *METHOD_SETTINGS}))
    check_own_parts(given, bare, unasked)
    refuse_idle(given, config, bare, NEEDS, unasked)
    return config


def fitted(config: TrainConfig, unasked: Collection[str]) -> TrainConfig:
    """Fits a preset's phases to the run that the user's own options make of it; a resumed run keeps its own.

    A cold start whose episodes this run could not play is left out. The fall of the learning rate takes half of the
    steps at most, rounded up, where the number of steps is the user's.
    """
    if config.run.resume:
        return config
    if "cold_start" in unasked and "cold_start" in idle(filled(config), NEEDS):
        config = without(config, ["cold_start"])
    step = config.optimization
    if "decay_steps" in unasked and "steps" not in unasked and None not in (step.decay_steps, step.steps):
        config = with_options(config, decay_steps=min(step.decay_steps, -(-step.steps // 2)))
    return config


def with_whole_paths(config: TrainConfig) -> TrainConfig:
    """Names the files of parts of the user's own so that they are found from any folder."""
    return with_options(config, **{name: with_whole_path(get(config, name)) for name in FITS})


def filled(config: TrainConfig) -> TrainConfig:
    """Returns the config with every open value filled in for its model and algorithm."""
    size = "tiny" if is_tiny(config) else "real"
    values = dict(TINY if size == "tiny" else REAL)
    imitates = config.run.algorithm in ("sft", "rejection-sampling")
    if config.run.algorithm == "ppo":
        values |= PPO[size]
    if imitates:
        values |= IMITATION[size] | {"group_size": 1 if config.run.algorithm == "sft" else PAPERS_ROLLOUTS}
        del values["drop_zero_variance"]
    objective = config.objective
    if objective.dynamic_sampling > 1:  # which leaves such groups out
        values["drop_zero_variance"] = True
    if config.variant.baseline in ("batch", "none") or config.variant.turn_coef or objective.llds_coef:
        # there equal rewards teach too
        values["drop_zero_variance"] = False
    if config.weights.lora_rank == 0:
        values["load_in_4bit"] = False
    values |= {name: value for name, value in flat(config).items() if value is not None}
    if config.optimization.decay_steps is None:  # a short run keeps a constant half
        values["decay_steps"] = min(values["decay_steps"], values["steps"] // 2)
    way = "full" if values["lora_rank"] == 0 else "lora"
    values.setdefault("learning_rate", (IMITATION_RATES if imitates else LEARNING_RATES)[size, way])
    values.setdefault("method", "direct" if config.run.algorithm == "sft" else "search-r1")
    values.setdefault("max_turns", MAX_TURNS if config.run.mystery is None else HUNT_TURNS)
    values.setdefault("lora_alpha", max(2 * values["lora_rank"], 1))
    if config.imitation.cold_start:
        values.setdefault("cold_start_learning_rate", COLD_START_RATES[size, way])
    if config.run.algorithm == "ppo":
        values.setdefault("critic_learning_rate", CRITIC_LEARNING_RATES[size, way])
    if not imitates:
        values.setdefault("clip_eps_high", config.objective.clip_eps)
        values.setdefault("kl_estimator", "k1" if config.run.algorithm == "ppo" else "k3")
    if values["dataset"] == "world":
        values.setdefault("world_difficulty", WORLD_DIFFICULTY)
        values.setdefault("world_hops", "1,2")
    return with_options(config, **values)


def init_values(config: TrainConfig, unasked: Collection[str]) -> dict[str, int]:
    """Returns rank and alpha of what `--init` names; they take the place of a preset's (`unasked`).

    Raises:
        UserError: there is nothing to start from, it is of another model, or a flag says another rank or alpha.
    """
    if not config.run.resume:  # which goes on from its own copy
        init_folder(config.run.init)

    from searchr1_mini.models.initial import init_settings, init_weights, trained_model  # heavy

    folder = init_weights(config.run.init, Path(config.run.output_dir) if config.run.resume else None)
    model = None if config.run.resume else trained_model(config.run.init, folder)
    if is_tiny(config) and model not in (None, "tiny"):
        raise UserError(f"--init {config.run.init} was trained on {model}, not on tiny; add --model {model}")
    values = init_settings(folder)
    for name, value in values.items():
        if value != int(value):
            raise UserError(f"--init {config.run.init}: its {name} is {value:g}, and must be whole; merge it with peft")
        if get(config, name) not in (None, value) and name not in unasked:
            told = f"{flag_name(name)} {get(config, name)}: --init {config.run.init} has {value:g}"
            raise UserError(f"{told}; leave the flag out, or name the merged weights as --model instead")
    return {name: int(value) for name, value in values.items()}


def name_file(config: TrainConfig) -> TrainConfig:
    """Takes `--dataset questions.parquet`, or a folder's name, as `--dataset jsonl --data-path questions.parquet`.

    Raises:
        UserError: both name a file.
    """
    name, path = get(config, "dataset"), get(config, "data_path")
    is_file = name is not None and name not in DATASETS and (is_question_file(name) or Path(name).is_dir())
    if is_file and path not in (None, name):
        raise UserError(f"--dataset {name} and --data-path {path} both name a file of questions; name one")
    return with_options(config, dataset="jsonl", data_path=name) if is_file else config
