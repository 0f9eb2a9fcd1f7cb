"""Weights that are quicker to decode with, for the time of a rollout; they compute the same policy."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from searchr1_mini.core.names import ADAPTER
from searchr1_mini.core.policy import Policy
from searchr1_mini.models.stacked import stacked


@contextmanager
def faster(policy: Policy, compiles: bool = False) -> Iterator[None]:
    """Makes a policy compute rollouts in the quickest way that its flags allow inside; afterwards all is as before.

    Gradients do not reach the weights. Meanwhile a matrix may be in memory twice.

    Args:
        compiles: let torch.compile make the step of one token per row, see `stacked`.
    """
    with ExitStack() as stack:
        if policy.dequantize:
            stack.enter_context(unpacked(policy.model, policy.dtype))
        if policy.has_adapter and policy.merges and policy.dtype == torch.float32:
            stack.enter_context(merged(policy.model, ADAPTER))
        stack.enter_context(cast_once(policy.model, policy.dtype))
        if compiles:
            stack.callback(gc.collect)  # torch.compile leaves cycles that hold the weights it saw
        stack.callback(setattr, policy, "stacked", None)
        policy.stacked = stacked(policy, compiles) if policy.stacks else None
        yield


@contextmanager
def unpacked(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Holds each 4-bit matrix in `dtype` inside: the very numbers that its product is computed from.

    They are unpacked once per rollout, and not once per token.
    """
    from bitsandbytes.functional import dequantize_4bit  # not on every platform
    from bitsandbytes.nn import Linear4bit

    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    packed = [place for place in children if isinstance(place[2], Linear4bit)]
    try:
        for parent, name, linear in packed:
            weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state).to(dtype)
            dense = nn.Linear(linear.in_features, linear.out_features, device="meta").requires_grad_(False)
            dense.weight, dense.bias = nn.Parameter(weight, requires_grad=False), linear.bias
            parent.register_module(name, dense)
        yield
    finally:
        for parent, name, linear in packed:
            parent.register_module(name, linear)


@contextmanager
def merged(model: PeftModel, adapter: str) -> Iterator[None]:
    """Adds an adapter into a float32 base inside: one matrix product per layer instead of three.

    In 16 bits that would round what is added, and the rollouts would be another policy's: such a base is left alone.
    """
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    layers = [layer for layer in adapted if adapter in (*layer.lora_A, *layer.lora_embedding_A)]
    weights = [adapted_weight(layer) for layer in layers]
    if any(weight.dtype != torch.float32 for weight in weights):
        yield
        return
    bases = [weight.data for weight in weights]
    try:
        with torch.no_grad(), model.disable_adapter():
            for layer, weight in zip(layers, weights, strict=True):
                weight.data = weight.data + layer.get_delta_weight(adapter)
            yield
    finally:
        for weight, base in zip(weights, bases, strict=True):
            weight.data = base


def adapted_weight(layer: LoraLayer) -> nn.Parameter:
    """Returns what an adapter's layer adds to: the weight of a linear layer, or the one of all experts of a mixture."""
    return layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight


@contextmanager
def cast_once(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Holds float32 matrices in `dtype` inside, as autocast would cast them at every token.

    Embeddings, norms and vectors stay, since autocast leaves them alone.
    """
    kinds = (nn.Linear, Conv1D) if dtype != torch.float32 else ()
    owners = [module for module in model.modules() if isinstance(module, kinds)]
    owners = [module for module in owners if module.weight.dtype == torch.float32]
    kept = [(owner, name, weight) for owner in owners for name, weight in owner.named_parameters(recurse=False)]
    try:
        for owner, name, weight in kept:  # a parameter of its own: an embedding may be tied to it
            owner.register_parameter(name, nn.Parameter(weight.data.to(dtype), requires_grad=weight.requires_grad))
        yield
    finally:
        for owner, name, weight in kept:
            owner.register_parameter(name, weight)
