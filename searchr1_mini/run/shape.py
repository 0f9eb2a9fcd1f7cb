"""What of a model decides its memory, read from its config.json alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory. Counts are of numbers, not bytes; `linear` are the matrices of the layers.

    Attributes:
        hidden, intermediate, query, key_value: widths (H), (I), heads x head_dim, kv_heads x head_dim.
        linear: numbers in all matrices that NF4 and LoRA take: those of the layers, not the embeddings.
        largest: numbers in the largest of them.
        other: the rest: embeddings, a head of its own, norms, biases.
        lora: numbers of an adapter, a rank.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    query: int
    key_value: int
    vocabulary: int
    linear: int
    largest: int
    other: int
    lora: int

    @property
    def all(self) -> int:
        return self.linear + self.other


def model_shape(config: Any) -> Shape:
    """Reads the shape of the model that a transformers config describes, on the meta device, without memory.

    Where a config has no name for a width, the widest matrix stands for it.

    Raises:
        UserError: there is no causal language model of that family, or one that a run cannot compute.
    """
    from searchr1_mini.models.architecture import model_without_weights, weight_matrices

    model = model_without_weights(config)
    config, matrices = config.get_text_config(), [matrix.weight.shape for matrix in weight_matrices(model)]
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    linear, widest = sum(map(math.prod, matrices)), max(map(max, matrices))
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=width if isinstance(width := getattr(config, "intermediate_size", None), int) else widest,
        heads=heads,
        query=heads * head_dim,
        key_value=key_value_width(config, head_dim),
        vocabulary=config.vocab_size,
        linear=linear,
        largest=max(map(math.prod, matrices)),
        other=sum(parameter.numel() for parameter in model.parameters()) - linear,
        lora=sum(map(sum, matrices)),
    )


def key_value_width(config: Any, head_dim: int) -> int:
    """Returns the numbers of a token's keys in a layer's cache, as many as of values; their mean where they differ."""
    heads = config.num_attention_heads
    if getattr(config, "qk_nope_head_dim", None):  # latent attention, whose cache transformers keeps unpacked
        return heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) // 2
    return (getattr(config, "num_key_value_heads", None) or heads) * head_dim
