"""The rotary angles that a GGUF file states. Of these transformers reads the base alone, and leaves any scaling out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchr1_mini.core.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel

# of Llama 3.1 to 3.3, as published; the file holds what comes of them, and that is compared
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
REMEDY = "take the model's safetensors"


def restore_angles(path: Path, model: PreTrainedModel) -> None:
    """Writes into a model's config what its file says of rotary angles, and makes sure that they come out of it.

    Raises:
        UserError: they do not.
    """
    import torch
    from gguf import GGUFReader

    reader = GGUFReader(path)
    scaling = scaling_of(path, reader)
    rotaries = [module for module in model.modules() if "inv_freq" in dict(module.named_buffers(recurse=False))]
    if not rotaries:
        if scaling["rope_type"] != "default":
            raise UserError(f"{path} scales its rotary angles, which transformers does not read for it; {REMEDY}")
        return
    config = model.config
    kept = {name: value for name, value in config.rope_parameters.items() if name not in ("rope_type", "type")}
    config.rope_parameters = kept | {"rope_theta": stated(reader, "rope.freq_base", 10_000.0)} | scaling
    wanted = angles_of(reader, scaling)
    for rotary in rotaries:
        found = type(rotary)(config).inv_freq
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=0):
            raise UserError(f"{path} has other rotary angles than transformers makes of it; {REMEDY}")


def scaling_of(path: Path, reader: GGUFReader) -> dict[str, Any]:
    """Returns a file's scaling as `rope_parameters` name it.

    Raises:
        UserError: it is of a kind that a GGUF file does not state in full.
    """
    factors = factors_of(reader)
    kind, factor = stated(reader, "rope.scaling.type", "none"), stated(reader, "rope.scaling.factor", 1.0)
    if kind not in ("none", "linear") or any(tensor.name.startswith("rope_factors") for tensor in reader.tensors):
        raise UserError(
            f"{path} scales its rotary angles by {kind}, which transformers does not read from it; {REMEDY}"
        )
    if factors is not None:
        return LLAMA3 | {"factor": float(factors.max())}
    return {"rope_type": "linear", "factor": float(factor)} if kind == "linear" else {"rope_type": "default"}


def angles_of(reader: GGUFReader, scaling: dict[str, Any]):
    """Computes the angle by which a position turns each pair of dimensions, (width / 2,)."""
    import torch

    heads = stated(reader, "attention.head_count", 1)
    heads = heads[0] if isinstance(heads, list) else heads
    head_width = stated(reader, "attention.key_length") or stated(reader, "embedding_length", 0) // heads
    width = stated(reader, "rope.dimension_count", head_width)
    angles = stated(reader, "rope.freq_base", 10_000.0) ** -(torch.arange(0, width, 2) / width)
    factors = factors_of(reader)
    if factors is not None:
        return angles / factors if len(factors) == len(angles) else angles.new_zeros(0)
    return angles / scaling.get("factor", 1.0)


def factors_of(reader: GGUFReader):
    """Returns by what a file divides each angle, (width / 2,), where it has such a tensor."""
    import torch

    found = [tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    return torch.tensor(found[0].data.copy(), dtype=torch.float32) if found else None


def stated(reader: GGUFReader, name: str, default: Any = None) -> Any:
    """Returns a value of the metadata of the file's architecture."""
    architecture = reader.fields["general.architecture"].contents()
    field = reader.fields.get(f"{architecture}.{name}")
    return default if field is None else field.contents()
