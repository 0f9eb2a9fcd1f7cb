"""One base in memory (4-bit or not), and the policy on it: LoRA adapters or full fine-tuning, with its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from searchr1_mini.adapters import load_adapter
from searchr1_mini.bases import auto_class, check_source, load_base
from searchr1_mini.decode_weights import cast_once, merged, unpacked
from searchr1_mini.distributed import local_rank
from searchr1_mini.errors import UserError
from searchr1_mini.robust.architecture import final_logits, still, undefined_ids, unsupported, without_undefined
from searchr1_mini.robust.base_check import check_files
from searchr1_mini.robust.identity import BASE_FILE, base_identity, check_base
from searchr1_mini.robust.names import base_name
from searchr1_mini.robust.probe import Probe
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
        merges: whether rollouts may add the adapter into a float32 base; the load probe finds out.
        undefined: ids of the head that no token has; they have no probability.
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
        self.merges = True
        self.base_identity: dict = {}
        self.base_name = ""
        self._decode_step: Callable | None = None
        head = self.causal_lm.get_output_embeddings()
        self.undefined = torch.tensor(undefined_ids(tokenizer, head.weight.shape[0]), device=self.device)

    @property
    def causal_lm(self) -> nn.Module:
        """The `...ForCausalLM` inside any adapter wrapper."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def config(self):
        return self.causal_lm.config.get_text_config()

    @property
    def backbone(self) -> nn.Module:
        """The causal language model less its head, under whatever name it has there."""
        backbone = self.causal_lm.base_model
        return backbone if backbone is not self.causal_lm else self.causal_lm.model

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
        backbone = self._decode_step if is_step and self._decode_step else self.backbone
        with self.autocast():
            return backbone(**inputs).last_hidden_state

    def lm_head(self, hidden: Tensor) -> Tensor:
        """The model's own logits (.., V) of hidden states (.., H), less ids that no token has."""
        with self.autocast():
            logits = final_logits(self.causal_lm.get_output_embeddings()(hidden), self.config)
            return without_undefined(logits, self.undefined)

    def compile_decode(self, backend: str = "inductor") -> None:
        """Compiles the step of one token a row: its many small kernels become few. The first rollout takes longer."""
        self._decode_step = torch.compile(self.backbone.forward, dynamic=True, backend=backend)

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

        Gradients do not reach the weights. Meanwhile a matrix may be in memory twice.
        """
        with ExitStack() as stack:
            if self.dequantise:
                stack.enter_context(unpacked(self.model, self.dtype))
            if self.has_adapter and self.merges and self.dtype == torch.float32:
                stack.enter_context(merged(self.model))
            stack.enter_context(cast_once(self.model, self.dtype))
            yield

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
    """The dtype of `--dtype`.

    `auto`: bfloat16 on a GPU that has it in hardware, float16 on one that has not (a T4), float32 elsewhere. `fast`:
    the same, but bfloat16 on a CPU that multiplies it in hardware, where it is quicker and less exact.
    """
    if name not in ("auto", "fast"):
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if name == "fast" and device.type == "cpu" and cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in hardware, as far as torch can tell (x86-64)."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public: another torch may lack them
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def load_policy(
    source: str,
    *,
    lora_rank: int,
    lora_alpha: int,
    load_in_4bit: bool,
    dtype: torch.dtype,
    device: torch.device,
    dequantise: bool = False,
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
        dequantise: let rollouts hold a 4-bit base in `dtype` too.
        fused_kernels: take Liger's kernels for norms, rotary positions and SwiGLU.
        dtype: what matrices are multiplied in; trained weights are kept in float32.
        weights: a folder with an adapter (or model, with rank 0) to go on from, see `find_adapter`.
        seed: initialises the adapter.
        day: what a chat template with a date takes for today; None is today.

    Raises:
        UserError: there is no such model, it cannot be read, the saved weights belong to another, or rollout and update
            would not compute it alike, see `Probe`.
    """
    day = day or date.today()
    tokenizer = check_source(source, day)
    if weights:
        check_files(str(weights)) if lora_rank == 0 else adapter_folder(find_adapter(weights), may_search=True)
    auto = auto_class(fused_kernels)
    if lora_rank == 0:
        torch.manual_seed(seed)
        model = load_base(auto, str(weights) if weights else source, False, torch.float32, device)
        frozen = load_base(auto, source, False, torch.float32, device) if weights else copy.deepcopy(model)
        frozen.requires_grad_(False)
        _prepare(model, gradient_checkpointing)
        policy = _identified(Policy(model, tokenizer, dtype, frozen, day), source, weights)
        with policy.reference():
            probe = Probe(policy)
    else:
        base = load_base(auto, source, load_in_4bit, dtype, device).requires_grad_(False)
        _prepare(base, gradient_checkpointing)
        policy = _identified(Policy(base, tokenizer, dtype, day=day), source, weights)
        policy.dequantise = dequantise
        probe = Probe(policy)
        policy.model = _with_adapter(base, source, lora_rank, lora_alpha, weights, seed)
        policy.model.eval()
    still(policy.model)
    probe.check(policy, gradient_checkpointing, is_loaded=weights is not None)
    return policy


def _with_adapter(
    base: nn.Module, source: str, lora_rank: int, lora_alpha: int, weights: Path | None, seed: int
) -> PeftModel:
    if weights:
        return load_adapter(base, find_adapter(weights), source)
    torch.manual_seed(seed)
    lora = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    try:
        return get_peft_model(base, lora, adapter_name=ADAPTER)
    except ValueError as error:
        raise unsupported(base.config, f"LoRA does not go onto it ({' '.join(str(error).split())[:150]})") from error


def _identified(policy: Policy, source: str, weights: Path | None) -> Policy:
    """The policy, which knows its base by now; refused if saved weights belong to another."""
    policy.base_name, policy.base_identity = base_name(source), base_identity(source, policy.tokenizer, policy.config)
    if weights:
        check_base(weights, source, policy.base_identity)
    return policy


def _prepare(model: nn.Module, gradient_checkpointing: bool) -> None:
    """Evaluation mode, and gradient checkpointing where it is wanted."""
    model.eval()
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise unsupported(
                model.config, "it has no gradient checkpointing (--no-gradient-checkpointing goes without)"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
