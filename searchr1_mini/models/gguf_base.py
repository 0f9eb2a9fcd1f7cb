"""A GGUF file as a base: unpacked once, by transformers, into a folder that everything else loads like any other.

What is trained on are the file's numbers in float32, as transformers dequantizes them. The folder lies in the user's
cache, under a hash of the file, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil

from searchr1_mini.core.errors import UserError
from searchr1_mini.models.gguf_rope import restore_angles
from searchr1_mini.storage import status
from searchr1_mini.storage.hub import hide_loading_bars
from searchr1_mini.storage.lock import aside_folder
from searchr1_mini.storage.printable import first_line, one_line

SAMPLE = 2**20  # bytes in five places, the header among them, that tell a file from another
FLOAT32 = 4
TOKEN_BYTES = 4_000  # that the gguf package and the tokenizer take for each token of the vocabulary
RECIPE = 2  # of what is unpacked; one more where the same file gives another model


def find_gguf(name: str) -> Path | None:
    """Finds the GGUF file that `--model` names, or the only one of a folder without safetensors; else None.

    Raises:
        UserError: it is not there or several are, or it is a part of a model.
    """
    path = Path(name).expanduser()
    if _is_gguf(path) and not path.is_file():
        raise UserError(f"there is no file {name}; --model takes a GGUF file, a folder, a hub id or a short name")
    if path.is_dir() and not any(path.glob("*.safetensors")):
        found = sorted(filter(_is_gguf, path.iterdir()))
        models = [file for file in found if not _is_image_part(file)] or found
        whole = [file for file in models if not _is_shard(file)] or models[:1]  # which is refused below
        if len(whole) > 1:
            names = ", ".join(file.name for file in whole[:5])
            raise UserError(f"{name} holds {len(whole)} GGUF files ({names}); name one of them as --model")
        path = whole[0] if whole else path
    if not _is_gguf(path):
        return None
    if _is_shard(path):
        raise UserError(f"{path} is one part of several; join them with `llama-gguf-split --merge` and name the result")
    if _is_image_part(path):
        raise UserError(f"{path} is the image part of a model; name the GGUF file of its language model")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is no GGUF file, or a damaged one; download it again")
    return path


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _is_image_part(path: Path) -> bool:
    return "mmproj" in path.name.lower()


def _is_shard(path: Path) -> bool:
    """Whether it is one part of several: the one part of one is whole."""
    return bool(re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", path.name, re.IGNORECASE))


def unpacked(path: Path) -> Path:
    """Returns the folder with a GGUF file's weights, config, tokenizer and chat template; made if it is not there.

    Raises:
        UserError: the `gguf` package is missing, the file is damaged or of no known architecture, there is no room.
    """
    folder = cache_folder() / f"{path.stem}-{file_hash(path)}"
    if folder.is_dir():
        return folder
    if not find_spec("gguf"):
        raise UserError(f'{path} needs the gguf package; run `pip install -e ".[gguf]" -c constraints.txt`')
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"unpacking {path.name} to float32, once, into {folder}", file=sys.stderr, flush=True)
    hide_loading_bars()
    with status.phase(f"unpacking {path.name}"), read_once():
        look_ahead(path, folder.parent)
        with aside_folder(folder.parent, "unpacking") as aside:
            write_unpacked(path, aside / "whole")
            try:
                (aside / "whole").rename(folder)
            except OSError:
                if not folder.is_dir():  # another process was faster
                    raise
    return folder


@contextmanager
def read_once() -> Iterator[None]:
    """Has the gguf package read a file, and name tensors, once; transformers asks for the same several hundred times.

    Reading 50,000 tokens takes it two seconds.
    """
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    read = cache(reader)
    gguf.GGUFReader, gguf.get_tensor_name_map = lambda path: read(str(path)), cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def cache_folder() -> Path:
    """Returns `~/.cache/searchr1_mini/gguf`, or as XDG_CACHE_HOME says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "searchr1_mini" / "gguf"


def file_hash(path: Path) -> str:
    """Hashes the file's size, header, and samples."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{RECIPE}/{size}".encode())
    with path.open("rb") as file:
        for start in (0, size // 4, size // 2, size * 3 // 4, max(size - SAMPLE, 0)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]


def look_ahead(path: Path, folder: Path) -> None:
    """Refuses what a file's header shows to be of no use: a tokenizer that no run can take, no room to unpack it.

    Raises:
        UserError: names what it has, or needs.
    """
    try:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        sizes = [FLOAT32 * int(tensor.n_elements) for tensor in reader.tensors]
        kind, tokens = (reader.fields.get(f"tokenizer.ggml.{name}") for name in ("model", "tokens"))
        kind, n_tokens = kind and kind.contents(), len(tokens.data) if tokens else 0
    except Exception as error:  # the package raises whatever a wrong byte leads to
        raise UserError(f"{path} is damaged, or cut ({first_line(error)}); download it again") from error
    if kind not in (None, "gpt2"):
        raise UserError(
            f"the tokenizer of {path} is no byte-level BPE but of the kind {one_line(str(kind))[:40]!r}, and stop "
            "strings are matched on bytes; use a model of the Qwen2, Qwen2.5, Qwen3 or Llama 3 families"
        )
    refuse_without_room(path, folder, sizes, n_tokens)


def refuse_without_room(path: Path, folder: Path, sizes: list[int], n_tokens: int) -> None:
    """Refuses a file that memory or disk cannot hold unpacked.

    Args:
        sizes: bytes of each tensor in float32; one of them is in memory three times while it is made.
        n_tokens: of the vocabulary.

    Raises:
        UserError: names what is needed.
    """
    needed = sum(sizes) + 2 * max(sizes, default=0) + TOKEN_BYTES * n_tokens
    held = psutil.virtual_memory().available
    if needed > held:
        raise UserError(
            f"{path} takes {needed / 1e9:.1f} GB of memory while unpacked, but {held / 1e9:.1f} GB are free; take "
            "a smaller model, or its safetensors"
        )
    free = shutil.disk_usage(folder).free
    if sum(sizes) > free:
        raise UserError(
            f"{path} takes {sum(sizes) / 1e9:.1f} GB unpacked, but {folder} has {free / 1e9:.1f} GB; free some space, "
            "or set XDG_CACHE_HOME to a folder on another disk"
        )


def write_unpacked(path: Path, folder: Path) -> None:
    """Has transformers load the file, and saves what it loaded as a model that was never quantized.

    Raises:
        UserError: transformers does not know the architecture, reads it otherwise than it is meant, or the file lacks
            tensors.
    """
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from searchr1_mini.core.stops import token_bytes

    arguments = {"dtype": torch.float32, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # with a kernel at hand it would keep the weights packed
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        token_bytes(tokenizer)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, use_safetensors=True, trust_remote_code=False, **arguments
        )
    except UserError:  # no byte-level tokenizer, told before the weights are read
        raise
    except Exception as error:  # the same
        raise UserError(
            f"cannot load {path}: {first_line(error)}; take a GGUF file of an architecture that transformers reads "
            "(llama, qwen2, qwen3 and others), or the model's safetensors"
        ) from error
    if missing := sorted(loading["missing_keys"]):  # transformers would make them up
        raise UserError(f"{path} lacks {len(missing)} tensors, {missing[0]} among them; download it again")
    if max(tokenizer.get_vocab().values()) >= model.get_input_embeddings().num_embeddings:
        raise UserError(f"transformers cannot make the tokenizer of {path} anew; take the model's safetensors")
    restore_angles(path, model)
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # a tied head is its embeddings
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
