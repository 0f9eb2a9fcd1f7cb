"""Bases and tokenizers, as transformers loads them from a folder or the hub."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

from searchr1_mini.errors import UserError
from searchr1_mini.robust.architecture import check_architecture, check_length, settle
from searchr1_mini.weights import refuse_pickles


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, padding with EOS where it has no pad token of its own."""
    tokenizer = from_pretrained(AutoTokenizer, source)
    if "enable_thinking" in (tokenizer.chat_template or ""):
        print("the chat template's own thinking is off: the prompt asks for <think> itself", flush=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def auto_class(fused_kernels: bool) -> type:
    """The class that loads a causal language model, with Liger's kernels if wanted.

    Raises:
        UserError: they are not installed.
    """
    if not fused_kernels:
        return AutoModelForCausalLM
    try:
        from liger_kernel.transformers import AutoLigerKernelForCausalLM
    except ImportError as error:
        raise UserError(
            f"--fused-kernels needs Liger's kernels ({error}); run `pip install liger-kernel` where there is a GPU, or "
            "leave it out"
        ) from error
    return AutoLigerKernelForCausalLM


def check_model(source: str, max_total_tokens: int) -> None:
    """Refuses what the config.json of a folder or hub id shows to be no model for contexts of that length.

    Raises:
        UserError: names the family or the limit, or as `from_pretrained`.
    """
    config = from_pretrained(AutoConfig, source)
    check_architecture(config)
    check_length(config.get_text_config(), max_total_tokens)


def load_base(auto: type, source: str, load_in_4bit: bool, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The causal language model, in NF4 with double quantisation if wanted.

    Raises:
        UserError: some of its weights are missing, or as `from_pretrained`.
    """
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model, loading = from_pretrained(
        auto,
        source,
        dtype=dtype,
        device_map={"": device},
        attn_implementation="sdpa",
        quantization_config=quantisation if load_in_4bit else None,
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):  # transformers would make them up
        raise UserError(f"the weights of {source} lack {len(missing)} tensors, {missing[0]} among them; load it anew")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # once used for a rollout, bitsandbytes' packed CPU weights pass no gradient back in the update
            module.support_avx512bf16_for_cpu = False
    settle(model)
    return model


def from_pretrained(auto_class: type, source: str, **arguments):
    """What one of transformers' auto classes loads from a folder or hub id; code that a model brings is never run.

    Raises:
        UserError: there is no such model, it cannot be read, or it needs code or a pickle to be run.
    """
    refuse_pickles(Path(source), f"cannot load {source!r}")
    try:
        return auto_class.from_pretrained(source, trust_remote_code=False, **arguments)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{source!r} brings code of its own, which is never run; take a model that transformers itself knows"
            ) from error
        if "use_safetensors" in str(error):
            raise UserError(
                f"{source!r} has no weights as safetensors, and pickles are not opened, since they can run code; take "
                "another revision or copy of the model that has them"
            ) from error
        raise UserError(
            f"cannot load {source!r} as a causal language model: {first_line} "
            "(check the name, the network and, for a gated model, `hf auth login`; a local folder works offline)"
        ) from error
