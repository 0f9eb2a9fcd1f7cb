"""What must hold of a base's files before its weights are read: a config to build from, no quantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.models.weights import INDEX, refuse_odd_index
from searchr1_mini.storage.files import read_json
from searchr1_mini.storage.hub import hub_file

LARGEST = {  # of these a config names whole numbers from 1 to about ten times what the largest models have
    "vocab_size": 10_000_000, "hidden_size": 1_000_000, "num_hidden_layers": 10_000, "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000, "head_dim": 100_000, "intermediate_size": 10_000_000,
    "max_position_embeddings": 1_000_000_000, "n_layer": 10_000, "n_layers": 10_000, "num_layers": 10_000,
}  # fmt: skip
QUANTIZED = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
BESIDE = ("quantize_config.json", "quant_config.json")  # where older GPTQ and AWQ weights say it


def check_files(source: str) -> None:
    """Refuses weights that are quantized, or in files of other kinds or places; reads no weights.

    Args:
        source: a folder or hub id.

    Raises:
        UserError: names the file and the remedy.
    """
    config = find_file(source, "config.json")
    try:
        values = read_json(config) if config else {}
    except UserError as error:
        raise UserError(f"cannot load {source!r}: {error}") from error
    refuse_quantized(source, values)
    for part in (values, values.get("text_config")):  # a config that is built for 10 ** 9 layers has a list of them
        refuse_sizes(source, part if isinstance(part, dict) else {}, least=None)
    named = values.get("transformers_weights")
    if named is not None and not (
        isinstance(named, str) and named.endswith(".safetensors") and Path(named).name == named
    ):
        raise UserError(f"config.json of {source} has its weights in {str(named)[:80]!r}, which is no safetensors file "
                        "of its folder; take transformers_weights out")  # fmt: skip
    index = None if Path(source).is_dir() else find_file(source, INDEX)  # a folder's is looked into as it is loaded
    if index:
        refuse_odd_index(index, f"cannot load {source!r}")


def find_file(source: str, name: str) -> Path | None:
    """Returns a file of a folder or hub id, or None."""
    if Path(source).exists():
        return Path(source, name) if Path(source, name).is_file() else None
    return hub_file(source, name)


def refuse_quantized(source: str, values: dict[str, Any]) -> None:
    """Refuses a base that is quantized already: no adapter can be merged into it, and many cannot be trained on.

    Raises:
        UserError: names the method and what to take instead.
    """
    found = next((values[name] for name in QUANTIZED if values.get(name)), None)
    if found is None and Path(source).is_dir() and any(Path(source, name).is_file() for name in BESIDE):
        found = {}
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else None
    if isinstance(found, dict) and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = f"bitsandbytes, {8 if found.get('load_in_8bit') else 4} bits"
    about = f" ({str(method)[:40]})" if method else ""
    raise UserError(
        f"{source} is quantized already{about}, so that what is trained on it could not be merged and exported; take "
        "the model that it was made from, with --load-in-4bit where memory is short"
    )


def check_config(config: Any, source: str) -> None:
    """Refuses a config that describes no causal language model, or one that cannot be built; takes no memory.

    Args:
        config: of transformers.

    Raises:
        UserError: names the value.
    """
    import torch
    from transformers import AutoModelForCausalLM

    named = getattr(config, "architectures", None)
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise UserError(
            f"config.json of {source} is damaged: architectures is {json.dumps(named)[:80]}, not a list of names"
        )
    if named and not set(named) & causal_classes():
        raise UserError(f"{source} is no causal language model but {', '.join(named)[:80]}; take another --model")
    text = config.get_text_config()
    refuse_sizes(source, {name: getattr(text, name, None) for name in LARGEST})
    heads, groups = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if heads and groups and heads % groups:
        raise UserError(
            f"config.json of {source} is damaged: {heads} num_attention_heads cannot share {groups} num_key_value_heads"
        )
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a model's own code raises
        raise UserError(
            f"config.json of {source} describes no causal language model that can be built "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0][:150] if str(error).strip() else ''}); take "
            "another copy of it, or another --model"
        ) from error


def refuse_sizes(source: str, values: dict[str, Any], least: int | None = 1) -> None:
    """Refuses sizes that no model has.

    Args:
        least: None looks for sizes that are too large alone, and leaves other types to whoever reads the config.

    Raises:
        UserError: names the first.
    """
    for name, largest in LARGEST.items():
        value = values.get(name)
        is_number = isinstance(value, int | float)
        if value is None or (least is None and not (is_number and value > largest)):
            continue
        if not (isinstance(value, int) and (least or 1) <= value <= largest):
            raise UserError(
                f"config.json of {source} is damaged: {name} is {str(value)[:40]}, not a number from 1 to {largest:,}"
            )


def causal_classes() -> set[str]:
    """Returns the names of transformers' causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return {name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)}
