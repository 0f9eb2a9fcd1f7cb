"""`--init`: a run starts from what another learned, an adapter or whole weights, and keeps a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.names import ADAPTER
from searchr1_mini.models.bases import from_pretrained, load_tokenizer
from searchr1_mini.models.identity import (
    BASE_FILE,
    base_identity,
    check_base,
    computing_settings,
    text_ends,
    token_ids,
)
from searchr1_mini.models.weights import (
    ADAPTER_CONFIG,
    adapter_folder,
    adapter_settings,
    find_adapter,
    init_folder,
    refuse_pickles,
)
from searchr1_mini.storage.checkpoint import MANIFEST, best_checkpoint, checkpoint_step, is_whole, latest_checkpoint
from searchr1_mini.storage.files import read_json

KEPT = "init"  # the copy's folder within the run's
PARTS = (".", "model", "adapter", "merged")  # where a folder may hold weights: itself, a checkpoint, an export


def init_weights(name: str, run: Path | None = None) -> Path:
    """Returns the folder of the weights that `--init` names, or the copy of them that a run keeps.

    Args:
        name: the folder of a run (its best checkpoint is taken, without evaluations its newest), of a checkpoint, an
            adapter, an export, or a fine-tuned model.
        run: the run that is resumed.

    Raises:
        UserError: there are none, or they are damaged.
    """
    if run and (run / KEPT).is_dir():
        return run / KEPT
    folder = init_folder(name)
    if is_run(folder):
        checkpoint = best_checkpoint(folder) or latest_checkpoint(folder)
        if checkpoint is None:
            raise UserError(f"--init {name}: this run has no whole checkpoint yet; train it on with --resume")
        return checkpoint / "model"
    if (folder / MANIFEST).is_file() and not is_whole(folder):
        raise UserError(f"--init {name}: this checkpoint is damaged; name another, or the run's folder")
    for part in (folder / name for name in PARTS):
        refuse_pickles(part, f"--init {name}")
        if has_adapter(part) or has_whole_weights(part):
            return part
    raise UserError(f"--init {name}: there are no weights in it; name a run, a checkpoint, an adapter or a model")


def open_init(name: str, source: str, run: Path | None = None) -> Path:
    """Opens `init_weights` of a run that begins or is resumed; says what they are, refuses those of another base.

    Raises:
        UserError: there are none, or they do not belong to the base.
    """
    folder = init_weights(name, run)
    if run is None:
        check_init(folder, source)
        print(f"starts from {origin(name, folder)}, which is its reference too", flush=True)
    return folder


def is_run(folder: Path) -> bool:
    """Tells whether it is a run's folder: a model's folder has a config.json too."""
    return (folder / "config.json").is_file() and "algorithm" in read_json(folder / "config.json")


def has_adapter(folder: Path) -> bool:
    """Tells whether `find_adapter` finds one."""
    return (folder / ADAPTER).is_dir() or (folder / ADAPTER_CONFIG).is_file()


def has_whole_weights(folder: Path) -> bool:
    """Tells whether it is a model of transformers."""
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def init_settings(folder: Path) -> dict[str, float]:
    """Returns `lora_rank` and `lora_alpha` of the adapter; of whole weights the rank is 0.

    Raises:
        UserError: the adapter is none that can be trained on.
    """
    return adapter_settings(folder) if has_adapter(folder) else {"lora_rank": 0}


def trained_model(name: str, folder: Path) -> str | None:
    """Returns the `--model` of the run that `--init` names or is a checkpoint of; None where no run is known."""
    run = next(
        (path for path in (Path(name).expanduser(), *folder.parents[:3]) if path.is_dir() and is_run(path)), None
    )
    return read_json(run / "config.json").get("model") if run else None


def origin(name: str, folder: Path) -> str:
    """Names where weights come from, `NAME, step 40` or the folder's name, never a path."""
    checkpoint = folder.resolve().parent
    if (checkpoint / MANIFEST).is_file() and checkpoint.name.startswith("step-"):
        return f"{checkpoint.parent.parent.name}, step {checkpoint_step(checkpoint)}"
    return Path(name).expanduser().resolve().name


def check_init(folder: Path, source: str) -> None:
    """Refuses weights that do not belong to the base, before any is loaded.

    Raises:
        UserError: names what differs.
    """
    config, tokenizer = from_pretrained(AutoConfig, source), load_tokenizer(source, is_first_look=True)
    check_base(folder, source, base_identity(source, tokenizer, config))
    if has_whole_weights(folder):
        refuse_other_settings(folder, source, config)
        if (folder / "tokenizer.json").is_file():
            refuse_other_tokens(folder, source, tokenizer)


def refuse_other_settings(folder: Path, source: str, config: PreTrainedConfig) -> None:
    """Refuses whole weights that do not compute as the base does, of whose form their reference is.

    Raises:
        UserError: names the first setting that differs.
    """
    own, given = (computing_settings(each) for each in (from_pretrained(AutoConfig, str(folder)), config))
    for name in own:
        if own[name] != given.get(name):
            told = [str(values.get(name))[:80] for values in (own, given)]
            raise UserError(
                f"--init {folder} has {name} {told[0]}, but {source} has {told[1]}; name its own base, or that folder "
                "itself, as --model"
            )


def refuse_other_tokens(folder: Path, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses whole weights that learned other token ids than the base's; says if their chat template is another.

    Raises:
        UserError: a token has another id, or a text becomes other tokens.
    """
    own = load_tokenizer(str(folder), is_first_look=True)
    if token_ids(own) != token_ids(tokenizer):
        raise UserError(
            f"--init {folder} brings a tokenizer with other token ids than {source}; name its own base, or that folder "
            "itself, as --model"
        )
    if text_ends(own) != text_ends(tokenizer):
        print(f"--init {folder} has another chat template or end of text; those of {source} are taken", flush=True)


def keep_init(folder: Path, run: Path) -> Path:
    """Copies the weights into the run's folder, once, so that it can be resumed when where they came from is gone."""
    kept, aside = run / KEPT, run / f".{KEPT}"
    if kept.is_dir():
        return kept
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    if has_adapter(folder):
        adapter = adapter_folder(find_adapter(folder), may_search=True)
        shutil.copytree(adapter, aside / ADAPTER)
        files = [path for path in (adapter.parent / BASE_FILE, adapter / BASE_FILE) if path.is_file()]
    else:
        files = [path for path in folder.iterdir() if path.is_file()]
    for path in files:
        shutil.copy(path, aside)
    aside.rename(kept)
    return kept
