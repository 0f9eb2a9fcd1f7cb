"""Weights are opened as safetensors only: a pickle can run code when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.names import ADAPTER
from searchr1_mini.models.adapter_check import check_adapter, searches_for_modules
from searchr1_mini.storage.files import read_json

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
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
    """Refuses a local model whose weights are pickles, or whose index names others; a hub id is left to what loads it.

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
        if (part / INDEX).is_file() and not (part / WEIGHTS).is_file():
            for name in refuse_odd_index(part / INDEX, what):
                refuse_other_file(part / name, what)


def refuse_odd_index(index: Path, what: str) -> list[str]:
    """Returns the files that an index of weights names, once it is known that all are safetensors in its own folder.

    Raises:
        UserError: names the first that is not.
    """
    named = read_json(index).get("weight_map")
    if not (isinstance(named, dict) and named and all(isinstance(name, str) for name in named.values())):
        raise UserError(f"{what}: {index} is damaged, it has no weight_map of tensors to files; take another copy")
    names = sorted(set(named.values()))
    for name in names:
        if not (name.endswith(".safetensors") and name.isprintable()) or set("/\\:") & set(name):
            raise UserError(
                f"{what}: {index} names {name[:80]!r}, which is no *.safetensors file of its folder; what it names "
                f"{REMEDY}"
            )
    return names


def refuse_other_file(path: Path, what: str) -> None:
    """Refuses what is called safetensors and is none, also behind a link.

    Raises:
        UserError: names the file.
    """
    if not path.is_file():
        raise UserError(f"{what}: {path} is missing, though the index names it; take another copy of the model")
    with path.open("rb") as file:
        length, start = int.from_bytes(file.read(8), "little"), file.read(1)
    if start != b"{" or length > LONGEST_HEADER:
        raise UserError(f"{what}: {path} is no safetensors file and {REMEDY}")


def init_folder(name: str) -> Path:
    """Returns the folder that `--init` names.

    Raises:
        UserError: it is not there.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"--init {name}: there is no such folder; name a run, a checkpoint, an adapter or a model")
    return folder


def find_adapter(weights: Path) -> Path:
    """Finds the folder of the policy's adapter: within a run's checkpoint, or itself as the export and peft write it.

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
    """Returns `lora_rank` and `lora_alpha` as the adapter itself has them, by the options' names.

    Raises:
        UserError: there is no adapter, it is no LoRA or trains more than its matrices, or its config is damaged.
    """
    path = find_adapter(weights) / ADAPTER_CONFIG
    saved = check_adapter(path)
    beside = next((name for name in BESIDE_MATRICES if saved.get(name)), None)
    if beside:
        raise UserError(
            f"{path}: {beside} trains more than LoRA's matrices; merge it with peft, and name the result as --model"
        )
    return {"lora_rank": saved["r"], "lora_alpha": saved["lora_alpha"]}


def save_adapter(model: PeftModel, name: str, base: str, folder: Path) -> None:
    """Writes one adapter of a model to `folder`/name, with what its base is called; peft's own card is left out, which
    names the folder where the base lies.
    """
    model.peft_config[name].base_model_name_or_path = base
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def adapter_folder(folder: Path, may_search: bool = False) -> Path:
    """Returns the folder of an adapter, once it is known to be plain LoRA in safetensors.

    Args:
        may_search: take one that names its modules by a pattern, too; whoever loads it must not let peft search by it.

    Raises:
        UserError: it is not.
    """
    saved = check_adapter(folder / ADAPTER_CONFIG)
    if not may_search and searches_for_modules(saved):
        raise UserError(f"{folder / ADAPTER_CONFIG} has no list of target_modules, as the run wrote it; put it back")
    if not (folder / ADAPTER_FILE).is_file():
        raise UserError(f"{folder} has no {ADAPTER_FILE}; an adapter of another form {REMEDY}")
    return folder
