"""Weights are opened as safetensors only: a pickle can run code when it is opened."""

from __future__ import annotations

from pathlib import Path

from searchr1_mini.errors import UserError
from searchr1_mini.robust.files import read_json

ADAPTER = "policy"
REFERENCE = "reference"  # an adapter, or a folder, that holds the reference
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
# of an adapter's config: what a matrix product for each layer does not say
BESIDE_MATRICES = (
    "modules_to_save use_dora lora_bias trainable_token_indices target_parameters layer_replication "
    "alora_invocation_tokens use_qalora"
).split()
INSTEAD = {"pytorch_model*.bin": "model*.safetensors", "adapter_model.bin": ADAPTER_FILE}
REMEDY = (
    "is not opened, since a pickle can run code: save the model as safetensors where you trust it "
    "(`save_pretrained` of a current transformers or peft), or take a model that has them"
)


def refuse_pickles(folder: Path, what: str) -> None:
    """Refuses a local model whose weights are pickles alone; a hub id is left to what loads it.

    Args:
        folder: of the model; those of the layers of a sentence-transformers model (`1_Dense`) are looked into.
        what: how the error calls it.

    Raises:
        UserError: names the file and the remedy.
    """
    for part in (folder, *folder.glob("[0-9]_*")):
        for pickled, instead in INSTEAD.items():
            if any(part.glob(pickled)) and not any(part.glob(instead)):
                raise UserError(f"{what}: {min(part.glob(pickled))} {REMEDY}")


def find_adapter(weights: Path) -> Path:
    """The folder of the policy's adapter: within one that a run saved, or itself one as the export and peft write it.

    Raises:
        UserError: it is neither.
    """
    if (weights / ADAPTER).is_dir():
        return weights / ADAPTER
    if not (weights / ADAPTER_CONFIG).is_file():  # peft would ask the hub
        raise UserError(
            f"there is no adapter in {weights}; name a folder that a run saved, with {ADAPTER}/ in it, or one with "
            f"{ADAPTER_CONFIG}"
        )
    return weights


def adapter_settings(weights: Path) -> dict[str, float]:
    """`lora_rank` and `lora_alpha` as the adapter itself has them, by the options' names.

    Raises:
        UserError: there is no adapter, it is no LoRA or trains more than its matrices, or its config is damaged.
    """
    path = find_adapter(weights) / ADAPTER_CONFIG
    saved = read_json(path)
    rank, alpha = saved.get("r"), saved.get("lora_alpha")
    is_lora = saved.get("peft_type", "LORA") == "LORA"
    if not (is_lora and isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0):
        raise UserError(f"{path} names no rank (r) and lora_alpha; only a LoRA adapter is taken")
    beside = [name for name in BESIDE_MATRICES if saved.get(name)] + ["bias"] * (saved.get("bias", "none") != "none")
    if beside:
        raise UserError(
            f"{path}: {beside[0]} trains more than LoRA's matrices; merge it with peft, and name the result as --model"
        )
    return {"lora_rank": rank, "lora_alpha": alpha}


def adapter_folder(folder: Path) -> Path:
    """The folder of an adapter, once it is known to hold safetensors.

    Raises:
        UserError: it does not.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise UserError(f"{folder} has no {ADAPTER_FILE}; an adapter of another form {REMEDY}")
    return folder
