"""One base in memory (4-bit or not), and the policy on it: LoRA adapters or full fine-tuning, with its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from searchr1_mini.adapters import load_adapter
from searchr1_mini.bases import auto_class, check_source, load_base
from searchr1_mini.distributed import local_rank
from searchr1_mini.errors import UserError
from searchr1_mini.robust.base_check import check_files
from searchr1_mini.robust.identity import BASE_FILE, base_identity, check_base
from searchr1_mini.robust.names import base_name
from searchr1_mini.tracking import write_json_atomic
from searchr1_mini.weights import ADAPTER, REFERENCE, adapter_folder, find_adapter, save_adapter


class Policy:
    """A causal language model that is trained, its tokenizer, and its reference.

    Attributes:
        model: the transformers model, wrapped by peft when it has an adapter.
        tokenizer: its tokenizer, with a pad token.
        frozen: the reference of full fine-tuning; an adapter needs none.
        has_own_reference: whether the reference is no longer the base, see reference.py.
        device, dtype: where it runs and what it computes in.
        day: what a chat template with a date takes for today.
        base_name: what its base is called, wherever it lies.
        base_identity: what tells its base from another, see identity.py; saved beside the weights.
        dequantise: whether rollouts hold a 4-bit base in `dtype` too, see `for_rollouts`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        frozen: nn.Module | None = None,
        day: date | None = None,
    ) -> None:
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.device = next(model.parameters()).device
        self.frozen, self.day = frozen, day or date.today()
        self.has_own_reference = False
        self.dequantise = False
        self.base_identity: dict = {}
        self.base_name = ""
        self._decode_step: Callable | None = None

    @property
    def causal_lm(self) -> nn.Module:
        """The `...ForCausalLM` inside any adapter wrapper."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def config(self):
        return self.causal_lm.config

    @property
    def has_adapter(self) -> bool:
        """False in full fine-tuning."""
        return isinstance(self.model, PeftModel)

    def activate(self, adapter: str) -> None:
        """Switches the base to one of its adapters; peft then lets gradients into that one alone."""
        if self.has_adapter:
            self.model.set_adapter(adapter)

    def autocast(self):
        """Computes in `dtype` when the trained weights are kept in float32 beside it."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def hidden(self, **inputs) -> Tensor:
        """Last hidden states (B, T, H) of `input_ids` (B, T); other arguments as transformers takes them."""
        is_decoding = inputs.get("past_key_values") is not None
        inputs.setdefault("use_cache", is_decoding)
        is_step = is_decoding and inputs["input_ids"].shape[1] == 1
        backbone = self._decode_step if is_step and self._decode_step else self.causal_lm.model
        with self.autocast():
            return backbone(**inputs).last_hidden_state

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits (.., V) of hidden states (.., H)."""
        with self.autocast():
            return self.causal_lm.lm_head(hidden)

    def compile_decode(self, backend: str = "inductor") -> None:
        """Compiles the step of one token a row: its many small kernels become few. The first rollout takes longer."""
        self._decode_step = torch.compile(self.causal_lm.model.forward, dynamic=True, backend=backend)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is pi_ref: the adapter switched off, or its frozen twin; in full fine-tuning a copy."""
        if not self.has_adapter:
            with self.standing_in(self.frozen):
                yield
        elif not self.has_own_reference:
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(REFERENCE, inference_mode=True)
            try:
                yield
            finally:
                self.activate(ADAPTER)

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Inside, another model computes in place of the policy's own."""
        own, self.model = self.model, model
        try:
            yield
        finally:
            self.model = own

    @contextmanager
    def for_rollouts(self) -> Iterator[None]:
        """Inside, the same policy with weights that are quicker to decode with; afterwards all are what they were.

        Where `dequantise` is set, each 4-bit matrix is there in `dtype` too: the very numbers that its product is
        computed from, unpacked once per rollout and not once per token. Where the base is in float32, or was unpacked
        to it, the adapter is added into it: one matrix product per layer instead of three. In 16 bits that would round
        what is added, so that the rollouts would be another policy's; there the adapter is cast, as autocast would at
        every token. Gradients do not reach the adapter. Meanwhile a matrix may be in memory twice.
        """
        with self._dequantised() if self.dequantise else nullcontext(), self._merged(), self._adapter_cast():
            yield

    @contextmanager
    def _adapter_cast(self) -> Iterator[None]:
        parameters = self.trainable() if self.has_adapter and self.dtype != torch.float32 else []
        trained = [parameter.data for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.data = parameter.data.to(self.dtype)
            yield
        finally:
            for parameter, weight in zip(parameters, trained, strict=True):
                parameter.data = weight

    @contextmanager
    def _dequantised(self) -> Iterator[None]:
        from bitsandbytes.functional import dequantize_4bit  # not on every platform
        from bitsandbytes.nn import Linear4bit

        layers = [module for module in self._lora_layers() if isinstance(module.get_base_layer(), Linear4bit)]
        packed = [layer.base_layer for layer in layers]
        try:
            for layer, linear in zip(layers, packed, strict=True):
                weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state).to(self.dtype)
                dense = nn.Linear(linear.in_features, linear.out_features, device="meta").requires_grad_(False)
                dense.weight, dense.bias = nn.Parameter(weight, requires_grad=False), linear.bias
                layer.base_layer = dense
            yield
        finally:
            for layer, linear in zip(layers, packed, strict=True):
                layer.base_layer = linear

    def _lora_layers(self) -> list[LoraLayer]:
        return [module for module in self.model.modules() if isinstance(module, LoraLayer)]

    @contextmanager
    def _merged(self) -> Iterator[None]:
        layers = self._lora_layers()
        weights = [layer.get_base_layer().weight for layer in layers]
        if not layers or any(weight.dtype != torch.float32 for weight in weights) or self.dtype != torch.float32:
            yield
            return
        bases = [weight.data for weight in weights]
        try:
            with torch.no_grad(), self.model.disable_adapter():
                for layer, weight in zip(layers, weights, strict=True):
                    weight.data = weight.data + layer.get_delta_weight(ADAPTER)
                yield
        finally:
            for weight, base in zip(weights, bases, strict=True):
                weight.data = base

    @contextmanager
    def training(self, gradient_checkpointing: bool) -> Iterator[None]:
        """Inside, gradient checkpointing is at work; it needs train mode, in which the KV cache would be off."""
        self.model.train(gradient_checkpointing)
        try:
            yield
        finally:
            self.model.eval()

    def trainable(self) -> list[nn.Parameter]:
        """The policy's parameters that the optimiser updates; a critic has its own."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def save(self, folder: Path) -> None:
        """Writes the adapter, or the whole model in full fine-tuning, the tokenizer, and what base they belong to."""
        if self.has_adapter:
            save_adapter(self.model, ADAPTER, self.base_name, folder)
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json_atomic(folder / BASE_FILE, self.base_identity)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the device that was asked for is not there.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(candidate for candidate in ("cuda", "mps", "cpu") if has[candidate])
    if not has[name]:
        raise UserError(f"--device {name}: this machine has no usable {name} device; use --device auto or --device cpu")
    return torch.device(name, local_rank()) if name == "cuda" else torch.device(name)


def tell_of_no_gpu(name: str, device: torch.device, load_in_4bit: bool) -> None:
    """Says before anything is fetched or read that a model meant for a GPU will be computed without one."""
    if name == "auto" and device.type == "cpu" and load_in_4bit:
        print("there is no GPU here that torch can use: a model in 4 bits runs on the CPU, very slowly", flush=True)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on a GPU that has it in hardware, float16 on one that has not (a T4), float32 elsewhere."""
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_policy(
    source: str,
    *,
    lora_rank: int,
    lora_alpha: int,
    load_in_4bit: bool,
    dtype: torch.dtype,
    device: torch.device,
    gradient_checkpointing: bool = False,
    fused_kernels: bool = False,
    weights: Path | None = None,
    seed: int = 0,
    day: date | None = None,
) -> Policy:
    """Loads a base and puts the policy on it.

    Args:
        source: a folder or hub id.
        lora_rank: rank of the adapter on all linear layers; 0 trains every weight.
        load_in_4bit: quantise the base to NF4 with double quantisation (QLoRA, arXiv 2305.14314).
        fused_kernels: take Liger's kernels for norms, rotary positions and SwiGLU.
        dtype: what matrices are multiplied in; trained weights are kept in float32.
        weights: a folder with an adapter (or model, with rank 0) to go on from, see `find_adapter`.
        seed: initialises the adapter.
        day: what a chat template with a date takes for today; None is today.

    Raises:
        UserError: there is no such model, it cannot be read, or the saved weights belong to another.
    """
    day = day or date.today()
    tokenizer = check_source(source, day)
    if weights:
        check_files(str(weights)) if lora_rank == 0 else adapter_folder(find_adapter(weights), may_search=True)
    if lora_rank == 0:
        torch.manual_seed(seed)
        auto = auto_class(fused_kernels)
        model = load_base(auto, str(weights) if weights else source, False, torch.float32, device)
        frozen = load_base(auto, source, False, torch.float32, device) if weights else copy.deepcopy(model)
        frozen.requires_grad_(False)
        _prepare(model, gradient_checkpointing)
        return _identified(Policy(model, tokenizer, dtype, frozen, day), source, weights)
    base = load_base(auto_class(fused_kernels), source, load_in_4bit, dtype, device).requires_grad_(False)
    _prepare(base, gradient_checkpointing)
    policy = _identified(Policy(base, tokenizer, dtype, day=day), source, weights)
    if weights:
        policy.model = load_adapter(base, find_adapter(weights), source)
    else:
        torch.manual_seed(seed)
        lora = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        policy.model = get_peft_model(base, lora, adapter_name=ADAPTER)
    policy.model.eval()
    return policy


def _identified(policy: Policy, source: str, weights: Path | None) -> Policy:
    """The policy, which knows its base by now; refused if saved weights belong to another."""
    policy.base_name, policy.base_identity = base_name(source), base_identity(source, policy.tokenizer, policy.config)
    if weights:
        check_base(weights, source, policy.base_identity)
    return policy


def _prepare(model: nn.Module, gradient_checkpointing: bool) -> None:
    """Evaluation mode: no dropout, so that rollout and update see the same distribution."""
    model.eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
