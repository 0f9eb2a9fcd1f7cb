"""One base in memory (4-bit or not), and the policy on it: LoRA adapters or full fine-tuning, with its reference."""

from __future__ import annotations

import copy
import os
from datetime import date
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.distributed import local_rank
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.names import ADAPTER
from searchr1_mini.core.policy import Policy
from searchr1_mini.models.adapters import load_adapter
from searchr1_mini.models.architecture import still, unsupported
from searchr1_mini.models.base_check import check_files
from searchr1_mini.models.bases import auto_class, check_source, load_base
from searchr1_mini.models.identity import base_identity, check_base, tell_other_name
from searchr1_mini.models.names import base_name
from searchr1_mini.models.probe import Probe
from searchr1_mini.models.prompting import eos_ids, prompt_ids
from searchr1_mini.models.rollout_weights import faster
from searchr1_mini.models.stacked import can_stack
from searchr1_mini.models.weights import adapter_folder, find_adapter

KERNELS_KEPT = 64  # making one anew takes milliseconds


def pick_device(name: str) -> torch.device:
    """Picks the device of `--device`; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the device that was asked for is not there.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(candidate for candidate in ("cuda", "mps", "cpu") if has[candidate])
    if not has[name]:
        raise UserError(f"--device {name}: this machine has no usable {name} device; use --device auto or --device cpu")
    return torch.device(name, local_rank()) if name == "cuda" else torch.device(name)


def report_no_gpu(name: str, device: torch.device, load_in_4bit: bool) -> None:
    """Says before anything is fetched or read that a model meant for a GPU will be computed without one."""
    if name == "auto" and device.type == "cpu" and load_in_4bit:
        print("there is no GPU here that torch can use: a model in 4 bits runs on the CPU, very slowly", flush=True)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Picks the dtype of `--dtype`.

    `auto`: bfloat16 on a GPU that has it in hardware, float16 on one that has not (a T4), float32 elsewhere. `fast`:
    the same, but bfloat16 on a CPU that multiplies it in hardware, where it is quicker and less exact.
    """
    if name not in ("auto", "fast"):
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if name == "fast" and device.type == "cpu" and cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Tells whether this CPU multiplies matrices of bfloat16 in hardware, as far as torch can tell (x86-64)."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public: another torch may lack them
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def keep_few_kernels() -> None:
    """Has oneDNN keep `KERNELS_KEPT` of the kernels that it makes for each new shape of a 16-bit product on a CPU.

    It would keep 1,024, which take over a GB in a run of a real model: hardly two micro-batches have the same shape.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))  # read at the first product


def load_policy(
    source: str,
    *,
    lora_rank: int,
    lora_alpha: int,
    load_in_4bit: bool,
    dtype: torch.dtype,
    device: torch.device,
    dequantize: bool = False,
    gradient_checkpointing: bool = False,
    fused_kernels: bool = False,
    compile_decode: bool = False,
    weights: Path | None = None,
    seed: int = 0,
    day: date | None = None,
) -> Policy:
    """Loads a base and puts the policy on it.

    Args:
        source: a folder or hub id.
        lora_rank: rank of the adapter on all linear layers; 0 trains every weight.
        load_in_4bit: quantize the base to NF4 with double quantization (QLoRA, arXiv 2305.14314).
        dequantize: let rollouts hold a 4-bit base in `dtype` too.
        fused_kernels: take Liger's kernels for norms, rotary positions and SwiGLU.
        compile_decode: let torch.compile make the decode step.
        dtype: what matrices are multiplied in; trained weights are kept in float32.
        weights: a folder with an adapter (or model, with rank 0) to go on from, see `find_adapter`.
        seed: initializes the adapter.
        day: what a chat template with a date takes for today; None is today.

    Raises:
        UserError: there is no such model, it cannot be read, the saved weights belong to another, or rollout and update
            would not compute it alike, see `Probe`, or there is no decode step to compile.
    """
    day = day or date.today()
    keep_few_kernels()
    tokenizer = check_source(source, day)
    if weights:
        check_files(str(weights)) if lora_rank == 0 else adapter_folder(find_adapter(weights), may_search=True)
        tell_other_name(weights, source)
    auto = auto_class(fused_kernels)
    if lora_rank == 0:
        torch.manual_seed(seed)
        model = load_base(auto, str(weights) if weights else source, False, torch.float32, device)
        frozen = load_base(auto, source, False, torch.float32, device) if weights else copy.deepcopy(model)
        frozen.requires_grad_(False)
        _prepare(model, gradient_checkpointing)
        policy = _policy(model, tokenizer, dtype, source, weights, day, frozen)
        with policy.reference():
            probe = Probe(policy)
    else:
        base = load_base(auto, source, load_in_4bit, dtype, device).requires_grad_(False)
        _prepare(base, gradient_checkpointing)
        policy = _policy(base, tokenizer, dtype, source, weights, day)
        policy.dequantize = dequantize
        probe = Probe(policy)
        policy.model = _with_adapter(base, source, lora_rank, lora_alpha, weights, seed)
        policy.model.eval()
    still(policy.model)
    policy.gradient_checkpointing = gradient_checkpointing
    policy.faster = partial(faster, compiles=compile_decode)
    probe.check(policy, is_loaded=weights is not None)
    if compile_decode and not (policy.stacks and can_stack(policy.backbone)):
        raise UserError(
            f"--compile-decode does nothing for the family {policy.config.model_type}, "
            "whose rollouts run transformers' own forward; leave it out"
        )
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


def _policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    source: str,
    weights: Path | None,
    day: date,
    frozen: nn.Module | None = None,
) -> Policy:
    """A policy that knows its base and its prompts; refused if saved weights belong to another base."""
    encode_prompt = partial(prompt_ids, tokenizer=tokenizer, day=day)
    ends = eos_ids(tokenizer, model.config.get_text_config(), getattr(model, "generation_config", None))
    policy = Policy(model, tokenizer, dtype, frozen, encode_prompt, ends)
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
