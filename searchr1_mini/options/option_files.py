"""What sets several options at once: presets, and yaml files, of bounded size and depth, each option once."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.options.defaults import PRESETS
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.needs import SHOWN, convert, shown

MOST_BYTES = 100_000  # every option with a long comment takes 20,000
OF_A_RUN = ("model", "datasets", "template", "observation", "topk", "max_turns", "load_in_4bit")
LIMITS = ("max_new_tokens", "max_total_tokens", "max_observation_tokens", "rollout_batch_size", "dtype")
# option of a preset -> its name in an evaluation, which takes no other: how training samples is not how it answers
EVALUATED = {name: name for name in (*OF_A_RUN, *LIMITS) if name != "datasets"} | {"dataset": "datasets"}


def read_options(path: Path) -> dict[str, Any]:
    """Reads `option: value` lines: text as it is written (3e-5, 010, 2020-01-01), True, False or None.

    Raises:
        UserError: it cannot be read, is too large, too deep or damaged, has aliases, or names an option twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Leaves numbers and dates as text, which their option makes of them what a flag would."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias (*name); write the value itself")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [key.value.replace("-", "_") for key, _ in node.value if isinstance(key.value, str)]
            if len(names) < len(node.value):
                raise yaml.YAMLError("a name is not text")
            for name in names:
                if names.count(name) > 1:
                    raise yaml.YAMLError(f"{name} stands there twice")
            return super().construct_mapping(node, deep)

    for kind in ("int", "float", "timestamp", "binary"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_scalar)
    try:
        values = Loader(read_bounded(path).decode("utf-8-sig")).get_single_data()
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        told = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"cannot read --config {path}: {told}") from error
    if not isinstance(values, (dict, type(None))):
        raise UserError(f"--config {path} must hold `option: value` lines")
    return {str(key): value for key, value in (values or {}).items()}


def read_bounded(path: Path) -> bytes:
    """Reads a file's bytes, or a pipe's, where somebody writes into it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or a pipe into which nobody writes.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer waits for ever
    with open(descriptor, "rb") as file:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not is_file:
            os.set_blocking(descriptor, True)
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES} bytes, which no list of options is")
    if not content and not is_file:
        raise ValueError("nothing comes from it")
    return content


def preset_values(preset: str | None, config_class: type) -> dict[str, Any]:
    """Returns what a preset sets of a command's options; for an evaluation of those alone that `EVALUATED` lists.

    Raises:
        UserError: there is no such preset.
    """
    if preset is None:
        return {}
    if preset not in PRESETS:
        known_ones = ", ".join(PRESETS)
        raise UserError(f"unknown preset {shown(preset)!r}{suggest(preset[:SHOWN], PRESETS)}; known: {known_ones}")
    if config_class is not EvalConfig:
        return dict(PRESETS[preset])
    return {EVALUATED[name]: value for name, value in PRESETS[preset].items() if name in EVALUATED}


def brought_otherwise(values: Mapping[str, Any]) -> set[str]:
    """Names what an evaluation does not take of a preset: what a run brings, or its data set beside data of one's own.

    Args:
        values: every option of the evaluation.
    """
    if values["run"]:
        return set(OF_A_RUN)
    is_served = "http" in [name.strip() for name in (values["retriever"] or "").split(",")]
    return {"datasets"} if is_served or values["corpus"] or values["data_path"] else set()


def yaml_values(file: str | None, hints: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a `--config` file, each of the type of its option.

    Raises:
        UserError: it cannot be read, names an unknown option, or has a wrong value.
    """
    if file is None:
        return {}
    values = {key.replace("-", "_"): value for key, value in read_options(Path(file)).items()}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"--config {file}: unknown option {shown(key)}{suggest(key[:SHOWN], hints)}")
        if not isinstance(value, (str, bool, NoneType)):
            raise UserError(f"--config {file}: {key} must be a single value, not a {type(value).__name__}")
    return {key: convert(f"--config {file}: {key}", value, hints[key]) for key, value in values.items()}
