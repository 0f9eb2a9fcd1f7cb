"""What must hold of an adapter_config.json before peft reads it: plain LoRA, in the right types."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.storage.files import read_json

READ = set(  # fields that a run takes as they are, or never looks at
    "peft_type r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform layers_pattern bias "
    "fan_in_fan_out use_rslora use_dora lora_bias modules_to_save init_lora_weights rank_pattern alpha_pattern "
    "task_type inference_mode base_model_name_or_path revision auto_mapping peft_version runtime_config "
    "ensure_weight_tying loftq_config megatron_core qalora_group_size".split()
)
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal")  # others change the base when they are loaded
NAMES = re.compile(r"[\w.^$-]+")  # as a regular expression it never looks back


def check_adapter(path: Path) -> dict[str, Any]:
    """Reads an adapter_config.json, and checks that it is a LoRA adapter which peft reads in bounded time.

    Raises:
        UserError: names the field, its value and the remedy.
    """
    saved = read_json(path)
    kind, rank, alpha = saved.get("peft_type", "LORA"), saved.get("r"), saved.get("lora_alpha")
    if kind != "LORA":
        raise UserError(f"{path} is of an adapter of the type {str(kind)[:40]}; --adapter takes a LoRA adapter")
    if not (is_number(rank, int) and is_number(alpha, int | float)):
        raise UserError(f"{path} names no rank (r) and lora_alpha, numbers above 0; --adapter takes a LoRA adapter")
    targets = saved.get("target_modules")
    if not (targets is None or isinstance(targets, str) or is_list_of_names(targets)):
        raise UserError(f"{path} is damaged: target_modules is {str(targets)[:60]}, not a list of names")
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, value in expect_dict(saved, name, path).items():
            if not (NAMES.fullmatch(pattern) and is_number(value, int | float)):
                raise UserError(
                    f"{path}: {name} has {pattern[:60]!r}: {str(value)[:20]}, and only names of modules with a number "
                    "above 0 are taken; spell the names out"
                )
    if saved.get("bias", "none") != "none":
        raise UserError(
            f"{path}: bias is {saved['bias']!r}, so that it changes the base itself; train one with bias none"
        )
    if saved.get("init_lora_weights") not in PLAIN_STARTS:
        raise UserError(
            f"{path}: init_lora_weights is {str(saved['init_lora_weights'])[:40]!r}, which changes the base when it is "
            "loaded; save it as plain LoRA (peft: path_initial_model_for_weight_conversion)"
        )
    odd = sorted(name for name, value in saved.items() if name not in READ and value)
    if odd:
        raise UserError(f"{path} uses {odd[0]}, which is more than plain LoRA; give an adapter without it")
    return saved


def expect_dict(saved: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Returns a field that is an object, or nothing.

    Raises:
        UserError: it is anything else.
    """
    value = saved.get(name) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: {name} is {str(value)[:60]}, not names with numbers")
    return value


def is_number(value: Any, kinds: Any) -> bool:
    """Tells whether it is a finite number above 0 of these types; JSON's true is none."""
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def is_list_of_names(value: Any) -> bool:
    """Tells whether it is a list of strings that holds at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def searches_for_modules(saved: dict[str, Any]) -> bool:
    """Tells whether the config names its modules by a pattern, or leaves them open; the tensors then say which."""
    narrowed = any(saved.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    return narrowed or not isinstance(saved.get("target_modules"), list)


def module_names(tensors: Iterable[str]) -> list[str]:
    """Returns the full names of the modules that an adapter's tensors belong to.

    Args:
        tensors: names, as `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`.
    """
    found = (name.partition(".lora_A.")[0] for name in tensors if ".lora_A." in name)
    return sorted({name.removeprefix("base_model.model.") for name in found})
