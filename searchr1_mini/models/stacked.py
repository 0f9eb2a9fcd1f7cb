"""The forward of rollouts for Llama's family, in few launches: projections stacked, a decode step captured as a graph.

transformers and peft compute q, k and v in three products, and each adapter in two more; a decode step is then
thousands of small kernels, and both GPU and CPU wait for Python. Here q, k and v are one product, gate and up are one,
and the adapters on them are two (A over all of them, B as a block-diagonal matrix). Nothing is merged: in 16 bits that
would round what the adapter adds, and the rollouts would be another policy's. On CUDA a step of one token per row is
replayed as a graph: one launch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from searchr1_mini.core.errors import is_out_of_memory
from searchr1_mini.core.kv_cache import RowCache
from searchr1_mini.core.policy import Policy

FAMILIES = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
STILL_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the length
SPAN = 256  # positions in a bucket of attention


def stacked(policy: Policy, compiles: bool = False) -> StackedModel | None:
    """Builds the forward of a policy's weights as they are now; None where its model is not of this family.

    Args:
        compiles: let torch.compile make the step of one token per row.
    """
    return StackedModel(policy, compiles) if can_stack(policy.backbone) else None


def can_stack(backbone: nn.Module) -> bool:
    """Tells whether a backbone's layers are of a family that this forward computes, with positions of one rate."""
    layers, rotary = getattr(backbone, "layers", ()), getattr(backbone, "rotary_emb", None)
    is_known = bool(layers) and all(type(layer) in FAMILIES and has_known_parts(layer) for layer in layers)
    return is_known and getattr(rotary, "rope_type", None) in STILL_ROPE


def has_known_parts(layer: nn.Module) -> bool:
    """Tells whether a layer attends to every position, has SwiGLU, and adapters that are plain LoRA."""
    attention, mlp = layer.self_attn, layer.mlp
    names = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    projections = [getattr(part, name, None) for part, own in zip((attention, mlp), names, strict=True) for name in own]
    is_full = getattr(attention, "sliding_window", None) is None and attention.config.hidden_act == "silu"
    is_full &= getattr(attention.config, "sliding_window", None) is None or not isinstance(layer, MistralDecoderLayer)
    return is_full and all(is_plain(projection) for projection in projections)


def is_plain(projection: nn.Module | None) -> bool:
    """Tells whether a projection is a linear layer, alone or below LoRA's A and B."""
    if isinstance(projection, LoraLayer):
        variants = [*getattr(projection, "lora_variant", {}), *[k for k, v in projection.lora_bias.items() if v]]
        return not variants and isinstance(projection.base_layer, nn.Linear)  # in 4 bits or not
    return isinstance(projection, nn.Linear)


@dataclass
class Stacked:
    """Several projections of one input as one product, and what their adapters add.

    Attributes:
        weight, bias: of all, stacked (out, in) and (out,); a None weight leaves the product to `bases`, which are in
            4 bits.
        a, b: (R, in) of all adapters, and their B * scaling as one block-diagonal matrix (out, R), transposed.
    """

    bases: Sequence[nn.Linear]
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        if self.weight is None:
            out = torch.cat([base(x) for base in self.bases], -1)
        else:
            x = x.to(self.weight.dtype)
            out = F.linear(x, self.weight, self.bias)
        return out if self.a is None else torch.addmm(out, F.linear(x, self.a), self.b)


def stack(projections: Sequence[nn.Module]) -> Stacked:
    """Stacks linear layers with the same input, and their active adapters.

    A frozen base is not held twice: its weights become views of the stacked one.
    """
    bases = [getattr(projection, "base_layer", projection) for projection in projections]
    weight = bias = None
    if all(type(base) is nn.Linear for base in bases):
        weight = in_one_piece([base.weight for base in bases])
        if any(base.bias is not None for base in bases):
            biases = [torch.zeros(len(b.weight)).to(weight) if b.bias is None else b.bias for b in bases]
            bias = torch.cat([own.to(weight.dtype) for own in biases])
    a, b = stacked_adapters(projections, bases)
    return Stacked(bases, weight, bias, a, b)


def in_one_piece(weights: Sequence[nn.Parameter]) -> Tensor:
    """Stacks weights (out, in) below each other; frozen ones become views of the result, and are found so again."""
    first = weights[0].data
    if len(weights) == 1:
        return first
    rows, starts = sum(len(weight) for weight in weights), [first.data_ptr()]
    for weight in weights:
        starts.append(starts[-1] + weight.numel() * weight.element_size())
    is_there = all(w.data_ptr() == start and w.is_contiguous() for w, start in zip(weights, starts, strict=False))
    if is_there and first.untyped_storage().nbytes() == rows * first.shape[1] * first.element_size():
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    whole = torch.cat([weight.data for weight in weights])
    if not any(weight.requires_grad for weight in weights):
        for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
    return whole


def stacked_adapters(
    projections: Sequence[nn.Module], bases: Sequence[nn.Linear]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns A (R, in) and B * scaling (R, out) of the active adapters on projections of one input, or None."""
    downs, ups = [], []
    for projection, base in zip(projections, bases, strict=True):
        layer = projection if isinstance(projection, LoraLayer) and not projection.disable_adapters else None
        active = [name for name in layer.active_adapters if name in layer.lora_A] if layer else []
        downs += [layer.lora_A[name].weight for name in active]
        scaled = [layer.lora_B[name].weight * layer.scaling[name] for name in active]
        ups.append(
            torch.cat(scaled, 1).T if scaled else base.weight.new_empty(0, base.out_features, dtype=torch.float32)
        )
    if not downs:
        return None, None
    return torch.cat(downs).detach(), torch.block_diag(*[up.to(downs[0].dtype) for up in ups]).detach()


@dataclass
class Layer:
    """A layer's stacked projections and norms, as the step reads them."""

    qkv: Stacked
    out: Stacked
    gate_up: Stacked
    down: Stacked
    norms: tuple[Tensor, Tensor]
    qk_norms: tuple[Tensor, Tensor] | None
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float


def read_layer(layer: nn.Module, dtype: torch.dtype) -> Layer:
    """Stacks a layer; `dtype` is that of the stream between layers."""
    attention, mlp, config = layer.self_attn, layer.mlp, layer.self_attn.config
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    own = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else None
    qkv = stack([attention.q_proj, attention.k_proj, attention.v_proj])
    return Layer(
        qkv,
        stack([attention.o_proj]),
        stack([mlp.gate_proj, mlp.up_proj]),
        stack([mlp.down_proj]),
        tuple(norm.weight.to(dtype) for norm in norms),
        own and tuple(norm.weight for norm in own),
        config.num_attention_heads,
        config.num_key_value_heads,
        attention.head_dim,
        attention.scaling,
    )


def compiled(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiles a step for each shape that it meets.

    The shapes are few, but more than the 8 after which torch raises; they stay compiled from rollout to rollout.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = limits.accumulated_recompile_limit = sys.maxsize
    return torch.compile(step, fullgraph=True, dynamic=False)


def can_capture(device: torch.device) -> bool:
    """Tells whether a step is captured as a graph there."""
    return device.type == "cuda"


class StackedModel:
    """The backbone of a policy inside a rollout: ids of some rows of a cache -> last hidden states."""

    may_capture = True  # until a capture has failed

    @torch.no_grad()
    def __init__(self, policy: Policy, compiles: bool = False) -> None:
        backbone = policy.backbone
        self.embedding, self.rotary = backbone.embed_tokens, backbone.rotary_emb
        stream = self.embedding.weight.dtype
        self.layers = [read_layer(layer, stream) for layer in backbone.layers]
        self.eps, self.norm = policy.config.rms_norm_eps, backbone.norm.weight.to(stream)
        step = StackedModel._step  # not bound: a cycle would keep all weights of a rollout through the update
        self.step, self.compiles = compiled(step) if compiles else step, compiles
        self.captures = can_capture(policy.device) and StackedModel.may_capture
        self.has_few_shapes = self.captures or compiles
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor] | None] = {}
        self.store: Tensor | None = None
        self.pool = None
        self.fed = self.staged = self.beside = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def __call__(self, rows: Tensor, ids: Tensor, positions: Tensor, is_real: Tensor, cache: RowCache) -> Tensor:
        """Returns hidden states (n, t, H) of ids (n, t), as `Policy.cached_hidden`; with t = 1, until the next call."""
        length = int(positions[is_real].max()) + 1
        if self.compiles:
            cache.reserve(cache.max_length)  # every size of the cache would be compiled anew
        is_step = ids.shape[1] == 1 and bool((rows == torch.arange(len(rows))).all())
        span = cache.reserve(length, SPAN if is_step and self.has_few_shapes else 1)
        for index, layer in enumerate(self.layers):
            cache.allocate(index, layer.kv_heads, layer.head_dim, layer.head_dim)
        if is_step:
            return self._one_each(ids[:, 0], positions[:, 0], is_real[:, 0], cache, span)[:, None]
        mask = cache.place(rows, positions, is_real)

        def attend(index: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pairs = cache.update(k.transpose(1, 2), v.transpose(1, 2), index)
            keys, values = (states.repeat_interleave(layer.heads // layer.kv_heads, 1) for states in pairs)
            q = q.transpose(1, 2).to(keys.dtype)
            return F.scaled_dot_product_attention(q, keys, values, mask, scale=layer.scaling).transpose(1, 2)

        return self._layers(ids.to(cache.device), positions.to(cache.device), attend)

    def _one_each(self, ids: Tensor, positions: Tensor, is_real: Tensor, cache: RowCache, span: int) -> Tensor:
        """Hidden states (n, H) of one more id for each of the first n rows; what is not real stays as it is.

        Where a step is captured or compiled, shapes come in few sizes: n is rounded up to a power of 2, and the
        positions that are attended to are rounded up to a multiple of `SPAN`.
        """
        n = len(ids)
        size = min(cache.n_rows, max(8, 1 << (n - 1).bit_length())) if self.has_few_shapes else n
        if self.store is not cache.keys[0]:
            self._begin(cache)
        fed, staged = (buffer[: 2 * size].view(2, size) for buffer in (self.fed, self.staged))  # one copy, in one piece
        staged[0, :n], staged[1, :n] = ids, torch.where(is_real, positions, cache.capacity)
        staged[:, n:] = self.beside
        fed.copy_(staged, non_blocking=True)
        inputs = fed[0], fed[1], cache.keys, cache.values, span
        return (self._replayed((size, span), inputs) if self.captures else self.step(self, *inputs))[:n]

    def _begin(self, cache: RowCache) -> None:
        """Makes the buffers for a cache; graphs of another, or of the same one before it grew, write elsewhere.

        The tensor itself is kept to know it by: its address may be given to another one.
        """
        self.graphs.clear()
        self.store, self.pool = cache.keys[0], None
        self.fed = torch.zeros(2 * cache.n_rows, dtype=torch.long, device=cache.device)
        self.staged = torch.zeros(2 * cache.n_rows, dtype=torch.long, pin_memory=cache.device.type == "cuda")
        self.beside = torch.tensor([[0], [cache.capacity]])  # id and position of rows that are not fed

    def _replayed(self, shape: tuple[int, int], inputs: tuple) -> Tensor:
        """The first step of a shape runs as it is, the second is captured, and all others are one launch."""
        if shape not in self.graphs:
            self.graphs[shape] = None
            return self.step(self, *inputs)
        if self.graphs[shape] is None and not self._capture(shape, inputs):
            return self.step(self, *inputs)
        graph, out = self.graphs[shape]
        graph.replay()
        return out

    def _capture(self, shape: tuple[int, int], inputs: tuple) -> bool:
        """Captures a step; where that cannot be done, says so once, and all steps from now on run as they are."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                out = self.step(self, *inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a capture that cannot be ended leaves its own behind
            first = " ".join(str(error.__context__ or error).split())  # the end of a capture fails too, and tells less
            if is_out_of_memory(RuntimeError(first)):
                raise
            self.captures = StackedModel.may_capture = False
            print(f"rollouts launch each kernel by itself, since no step can be captured: {first[:120]}", flush=True)
            return False
        self.pool, self.graphs[shape] = graph.pool(), (graph, out)
        return True

    @torch.no_grad()
    def _step(self, ids: Tensor, positions: Tensor, keys: list[Tensor], values: list[Tensor], span: int) -> Tensor:
        """Hidden states (n, H). Queries that share a key's head stand together, so that no key is copied."""
        n, device = len(ids), ids.device
        rows, sees = torch.arange(n, device=device), torch.arange(span, device=device) <= positions[:, None]
        mask = torch.zeros(n, span, device=device, dtype=keys[0].dtype).masked_fill_(~sees, -torch.inf)[:, None, None]

        def attend(index: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store = keys[index], values[index]
            store[0][rows, :, positions], store[1][rows, :, positions] = k[:, 0].to(mask.dtype), v[:, 0].to(mask.dtype)
            q = q.view(n, layer.kv_heads, -1, layer.head_dim).to(mask.dtype)
            return F.scaled_dot_product_attention(
                q, store[0][:n, :, :span], store[1][:n, :, :span], mask, scale=layer.scaling
            )

        return self._layers(ids[:, None], positions[:, None], attend)[:, 0]

    def _layers(self, ids: Tensor, positions: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Hidden states (n, t, H); `attend` writes the new keys and values, and reads all."""
        n, t = ids.shape
        x = self.embedding(ids)
        cos, sin = (part[:, :, None] for part in self.rotary(x, position_ids=positions))  # (n, t, 1, head_dim)
        half = cos.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        x = x.flatten(0, 1)
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(self._norm(x, layer.norms[0])).view(n, t, -1, layer.head_dim)
            qk, v = qkv.split((layer.heads + layer.kv_heads, layer.kv_heads), 2)
            if layer.qk_norms:
                parts = zip(qk.split((layer.heads, layer.kv_heads), 2), layer.qk_norms, strict=True)
                qk = torch.cat([self._norm(part, weight) for part, weight in parts], 2)
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            out = attend(index, layer, *qk.split((layer.heads, layer.kv_heads), 2), v)
            x = x + layer.out(out.reshape(n * t, -1))
            gate, up = layer.gate_up(self._norm(x, layer.norms[1])).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        return self._norm(x, self.norm).view(n, t, -1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.eps)
