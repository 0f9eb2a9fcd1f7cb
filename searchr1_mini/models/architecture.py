"""Which architectures a run computes right: what their configs tell before any weight is read, and what is set after.

What a config does not tell, the load probe (probe.py) finds out. docs/models.md lists the families that were tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from searchr1_mini.core.errors import UserError

SUPPORTED = (
    "take a decoder-only model whose layers all attend to every token before, such as one of the Qwen2, Qwen3, Llama 3 "
    "or SmolLM families (docs/models.md lists those that were tried)"
)
ATTENTION = "sdpa"
# attention over every token before; windows are looked at by their length
FULL_KINDS = {"full_attention", "attention", "global", "dense", "sparse", "moe"}  # the last three name kinds of MLPs
LIMITED_KINDS = {"sliding_attention", "chunked_attention", "local"}
# how many tokens back a layer of limited attention looks
WINDOWS = (
    "sliding_window sliding_window_size window_size attention_window attention_window_size attention_chunk_size "
    "index_topk"
).split()
POSITIONS = "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length max_seq_length".split()
NOISE = ("drop", "jitter")  # in the name of every option that makes a forward in train mode random


def unsupported(config: Any, reason: str) -> UserError:
    """Builds the one sentence for a family that a run would compute wrongly, or not at all."""
    return UserError(f"models of the family {config.model_type} are not supported: {reason}; {SUPPORTED}")


def check_architecture(config: Any) -> None:
    """Refuses what is known from a transformers config to be no decoder with full attention.

    Raises:
        UserError: names the family, the reason, and what is supported.
    """
    text = config.get_text_config()
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise unsupported(config, "transformers has no causal language model of it")
    model_class = mapping[type(config)]
    if config.is_encoder_decoder:
        raise unsupported(config, "it is an encoder-decoder")
    kinds = {str(kind) for kind in layer_kinds(text)}
    if odd := sorted(kinds - FULL_KINDS - LIMITED_KINDS):
        raise unsupported(config, f"it has layers of the kind {odd[0]}, whose state is no cache of keys and values")
    if getattr(model_class, "_is_stateful", False):
        raise unsupported(config, "its layers keep a recurrent state, which is no cache of keys and values")
    if getattr(text, "alibi", False):
        raise unsupported(config, "its positions are a bias of the attention (ALiBi)")
    if not getattr(model_class, "_supports_sdpa", False):
        raise unsupported(config, f"transformers has no {ATTENTION} attention for it")


def model_without_weights(config: Any) -> PreTrainedModel:
    """Builds the causal language model that a config describes, on the meta device, where it takes no memory.

    Raises:
        UserError: as `check_architecture`, or its sizes do not fit together.
    """
    check_architecture(config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever the code of an architecture makes of odd sizes
        raise unsupported(config, f"its config.json builds no model ({' '.join(str(error).split())[:150]})") from error
    if model.get_output_embeddings() is None or not weight_matrices(model):
        raise unsupported(config, "it has no linear layers, or no head, that transformers names")
    return model


def weight_matrices(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the linear layers that NF4 and LoRA take: all but the head."""
    head = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]


def layer_kinds(config: Any) -> list:
    """Tells how each layer attends, as far as the config says."""
    return getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []


def check_length(config: Any, max_total_tokens: int) -> None:
    """Refuses contexts beyond what the model computes alike in rollout and update, or was made for.

    Args:
        config: of the text model.

    Raises:
        UserError: names the limit, and the --max-total-tokens that works.
    """
    limits = [limit for limit in length_limits(config) if limit[0] < max_total_tokens]
    if limits:
        most, reason = min(limits)
        raise UserError(
            f"--max-total-tokens {max_total_tokens} is too long for this model ({config.model_type}): {reason}; take "
            f"--max-total-tokens {most}, or another --model"
        )


def length_limits(config: Any) -> Iterator[tuple[int, str]]:
    """Yields the numbers of tokens that a context may hold, each with the reason."""
    kinds = {str(kind) for kind in layer_kinds(config)}
    for name in WINDOWS if not kinds or kinds & LIMITED_KINDS else ():
        if window := getattr(config, name, None):
            yield window, f"some of its layers see the last {window} tokens only ({name})"
    ropes = list(rope_parameters(config))
    stretched = [1]
    for rope in ropes:
        kind, original = rope.get("rope_type", "default"), rope.get("original_max_position_embeddings")
        original = getattr(config, "original_max_position_embeddings", None) or original
        if kind in ("dynamic", "longrope"):
            most = original or config.max_position_embeddings
            yield most, f"its positions turn at another rate beyond {most} tokens (rope_type {kind})"
        elif kind in ("linear", "yarn") and (rope.get("factor") or 0) > 1:
            stretched.append(int((original or positions(config) or 0) * rope["factor"]))
    if most := positions(config):
        most = max(most, *stretched)
        yield most, f"it has {most} positions (max_position_embeddings)"


def positions(config: Any) -> int | None:
    """Returns how many positions the config names, by the first of the names that it has."""
    return next((value for name in POSITIONS if (value := getattr(config, name, None))), None)


def rope_parameters(config: Any) -> Iterator[dict]:
    """Yields the settings of its rotary positions: one dict, or one per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in rope or not all(isinstance(part, dict) for part in rope.values()):
        yield rope
    else:
        yield from rope.values()


def settle(model: PreTrainedModel) -> None:
    """Sets what a run rests on, whatever the model's config says: our attention, and no dropout of any kind.

    Raises:
        UserError: the model cannot compute so.
    """
    model.set_attn_implementation(ATTENTION)
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    for config in [part.config for part in parts]:
        if config._attn_implementation != ATTENTION:
            raise unsupported(config, f"its attention stays {config._attn_implementation}, not {ATTENTION}")
    still(model)


def still(model: nn.Module) -> None:
    """Sets every dropout and noise of train mode to 0: gradient checkpointing needs that mode, and the update must see
    the distribution that was sampled from."""
    configs = {id(config): config for part in model.modules() if (config := getattr(part, "config", None)) is not None}
    for owner in (*model.modules(), *configs.values()):
        if isinstance(owner, nn.modules.dropout._DropoutNd):
            owner.p = 0.0
        for name, value in list(vars(owner).items()):
            if type(value) in (int, float) and value and any(word in name for word in NOISE):
                setattr(owner, name, type(value)(0))
