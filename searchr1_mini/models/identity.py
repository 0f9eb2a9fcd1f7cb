"""Which base saved weights belong to, told by hashes beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.names import ADAPTER
from searchr1_mini.models.names import HUB_ID, base_name, is_same_name
from searchr1_mini.models.weights import ADAPTER_CONFIG
from searchr1_mini.storage.files import read_json
from searchr1_mini.storage.printable import one_line

BASE_FILE = "base.json"
SIZES = (
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
).split()
# settings that no forward pass reads: layer_types tells which layers have windows
UNREAD = ("use_cache", "initializer_range", "max_window_layers")
PROBE = "<think> Who won in 1998, and where? </think>\n<search>Zürich 東京 \U0001f600</search>\n\n<|im_end|>"
NUMBERS = 64  # read from a tensor of one dimension; of others the first row


def base_identity(source: str, tokenizer: Any, config: Any) -> dict[str, Any]:
    """Returns what tells one base from another: sizes as numbers, token ids (the tokenizer) and weights as hashes.

    Args:
        source: the folder or hub id that the base was loaded from; a hub id must be in the cache by now.
        tokenizer: of transformers.
        config: of transformers; sizes that it does not have are left out.
    """
    sizes = {name: getattr(config, name) for name in SIZES if hasattr(config, name)}
    return sizes | {"token ids": tokenizer_hash(tokenizer), "weights": weights_hash(base_folder(source))}


def check_base(weights: Path, source: str, identity: dict[str, Any]) -> None:
    """Refuses a base that saved weights do not belong to; of weights without `BASE_FILE`, as other programs save them,
    the name of their base is all that is known.

    Raises:
        UserError: names what differs.
    """
    paths = [folder / BASE_FILE for folder in (weights, weights.parent)]  # an adapter by itself lies one deeper
    saved = next((read_json(path) for path in paths if path.is_file()), None)
    if saved is None:
        refuse_other_hub_id(weights, source)
        return
    for name, value in identity.items():
        if None in (value, saved.get(name)) or saved[name] == value:
            continue
        what = f"{name} {value}, not {str(saved[name])[:60]}" if name in SIZES else f"other {name}"
        raise UserError(
            f"{weights} was trained on another base: {source} has {what}; give back the base that it was trained on, "
            "or train on this one in a new --output-dir"
        )


def named_base(weights: Path) -> str | None:
    """Returns what an adapter calls its base, where no `BASE_FILE` says more; None of whole weights."""
    if any((folder / BASE_FILE).is_file() for folder in (weights, weights.parent)):
        return None
    paths = [folder / ADAPTER_CONFIG for folder in (weights / ADAPTER, weights)]
    path = next((path for path in paths if path.is_file()), None)
    named = read_json(path).get("base_model_name_or_path") if path else None
    return one_line(named)[:120] if isinstance(named, str) else None


def refuse_other_hub_id(weights: Path, source: str) -> None:
    """Refuses an adapter whose base has another hub id than the one in use; mirrors of one name pass.

    Raises:
        UserError: names both.
    """
    named, used = named_base(weights), base_name(source)
    if named and HUB_ID.fullmatch(base_name(named)) and HUB_ID.fullmatch(used) and not is_same_name(named, used):
        raise UserError(
            f"{weights} was trained on {named}, as its {ADAPTER_CONFIG} says, and not on {used}; give --model {named}, "
            f"or put {used} in its place there if that is another name of it"
        )


def tell_other_name(weights: Path, source: str) -> None:
    """Says in one line that an adapter calls its base otherwise than the one in use; refuses as above."""
    refuse_other_hub_id(weights, source)
    named, used = named_base(weights), base_name(source)
    are_ids = named is not None and all(HUB_ID.fullmatch(name) for name in (base_name(named), used))
    if named and not (base_name(named) == used if are_ids else is_same_name(named, used)):
        print(
            f"{weights} was trained on {named}, as its {ADAPTER_CONFIG} says, and goes onto {used}: another model "
            "would compute nonsense with it",
            flush=True,
        )


def tokenizer_hash(tokenizer: Any) -> str:
    """Hashes the vocabulary, the merges as a probe shows them, and the chat template."""
    return digest(json.dumps([*token_ids(tokenizer), *text_ends(tokenizer)]).encode())


def token_ids(tokenizer: Any) -> list[Any]:
    """Returns what texts become: the vocabulary, and the ids of a probe."""
    return [sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"]]


def text_ends(tokenizer: Any) -> list[Any]:
    """Returns what stands around texts: the id that ends one, and the chat template."""
    return [tokenizer.eos_token_id, tokenizer.chat_template]


def computing_settings(config: Any) -> dict[str, Any]:
    """Returns of a config of transformers what its family computes with, sizes included, and its `model_type`."""
    from transformers import PreTrainedConfig

    config = config.get_text_config()
    named = set(type(config)().to_dict()) - set(PreTrainedConfig().to_dict()) - set(UNREAD)
    kept = {name for name in named if not name.endswith(("_token_id", "dropout", "pdrop"))}
    values = config.to_dict()
    return {"model_type": config.model_type} | {name: values.get(name) for name in sorted(kept)}


def base_folder(source: str) -> Path:
    """Returns the folder itself, or the one that the hub's cache keeps the model in."""
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file

    return Path(cached_file(source, "config.json", local_files_only=True)).parent


def weights_hash(folder: Path) -> str | None:
    """Hashes some numbers of every tensor, in any files and precision; None without safetensors.

    Numbers are read as float32, so that the same weights in bfloat16 and in float32 have the same hash.
    """
    from safetensors import safe_open

    digests = []
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part = file.get_slice(name)
                shape = part.get_shape()
                numbers = part[: 1 if len(shape) > 1 else NUMBERS] if shape else file.get_tensor(name)
                digests.append((name, shape, digest(numbers.float().contiguous().numpy().tobytes())))
    return digest(json.dumps(sorted(digests)).encode()) if digests else None


def digest(content: bytes) -> str:
    """Hashes bytes: the first 16 hex digits of their SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
