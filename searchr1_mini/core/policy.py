"""The policy: a causal language model with what is trained on it, and its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.kv_cache import RowCache
from searchr1_mini.core.names import ADAPTER, REFERENCE

UNDEFINED_LOGIT = -1e9  # no -inf: 0 * inf in an entropy is nan


class Policy:
    """A causal language model that is trained, its tokenizer, and its reference.

    Attributes:
        model: the transformers model, wrapped by peft when it has an adapter.
        tokenizer: its tokenizer, with a pad token.
        frozen: the reference of full fine-tuning; an adapter needs none.
        has_own_reference: whether the reference is no longer the base, see `freeze_reference`.
        device, dtype: where it runs and what it computes in.
        encode_prompt: text of the first message -> the ids that a conversation begins with.
        eos_ids: ids that end a turn by themselves.
        base_name: what its base is called, wherever it lies.
        base_identity: what tells its base from another, see identity.py; saved beside the weights.
        dequantize: whether rollouts hold a 4-bit base in `dtype` too, see `for_rollouts`.
        gradient_checkpointing: whether an update computes activations anew in its backward pass, to save memory.
        merges: whether rollouts may add the adapter into a float32 base; the load probe finds out.
        undefined: ids of the head that no token has; they have no probability.
        stacks: whether rollouts may run a forward of their own, with stacked projections; the same.
        packs: whether an update may compute a prompt that rows share once, see packing.py; the same.
        faster: what `for_rollouts` enters; models/rollout_weights.py has it.
        stacked: inside, that forward, called as `cached_hidden` is, where the model has one.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        frozen: nn.Module | None = None,
        encode_prompt: Callable[[str], list[int]] | None = None,
        eos_ids: Collection[int] = (),
    ) -> None:
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.device = next(model.parameters()).device
        self.frozen, self.encode_prompt, self.eos_ids = frozen, encode_prompt, eos_ids
        self.has_own_reference = False
        self.dequantize = self.gradient_checkpointing = False
        self.merges = self.stacks = self.packs = True
        self.base_identity: dict = {}
        self.base_name = ""
        self.faster: Callable[[Policy], AbstractContextManager] = nullcontext
        self.stacked: Callable[..., Tensor] | None = None
        head = self.causal_lm.get_output_embeddings()
        self.undefined = torch.tensor(undefined_ids(tokenizer, head.weight.shape[0]), device=self.device)

    @property
    def causal_lm(self) -> nn.Module:
        """The `...ForCausalLM` inside any adapter wrapper."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def config(self):
        """The settings of the language model, which a model of several parts has inside its own."""
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
        """Computes last hidden states (B, T, H) of `input_ids` (B, T); other arguments as transformers takes them."""
        inputs.setdefault("use_cache", inputs.get("past_key_values") is not None)
        with self.autocast():
            return self.backbone(**inputs).last_hidden_state

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Computes the model's own logits (.., V) of hidden states (.., H), less ids that no token has."""
        with self.autocast():
            logits = final_logits(self.causal_lm.get_output_embeddings()(hidden), self.config)
            return without_undefined(logits, self.undefined)

    def cached_hidden(self, rows: Tensor, ids: Tensor, positions: Tensor, is_real: Tensor, cache: RowCache) -> Tensor:
        """Computes hidden states (n, t, H) of ids at positions, both (n, t), of the cache's rows (n,), and fills it.

        The arguments are on the CPU; what is not real is padding.
        """
        if self.stacked:
            return self.stacked(rows, ids, positions, is_real, cache)
        mask = cache.place(rows, positions, is_real)
        inputs = {"input_ids": ids.to(self.device), "position_ids": positions.to(self.device)}
        return self.hidden(**inputs, attention_mask=mask, past_key_values=cache)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Makes the model pi_ref inside: the adapter switched off, or its frozen twin; in full fine-tuning a copy."""
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

    def freeze_reference(self) -> None:
        """Makes the policy as it is now its reference, from now on; a later call replaces it.

        An adapter gets a frozen twin, so that no weight is rounded; full fine-tuning has a frozen copy anyway.
        """
        if self.has_adapter:
            if not self.has_own_reference:
                self.model.add_adapter(REFERENCE, copy.deepcopy(self.model.peft_config[ADAPTER]))
            weights = get_peft_model_state_dict(self.model, adapter_name=ADAPTER, save_embedding_layers=False)
            set_peft_model_state_dict(self.model, weights, adapter_name=REFERENCE)
        else:
            self.frozen.load_state_dict(self.model.state_dict())
        self.has_own_reference = True

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Makes another model compute in place of the policy's own inside."""
        own, self.model = self.model, model
        try:
            yield
        finally:
            self.model = own

    @contextmanager
    def for_rollouts(self) -> Iterator[None]:
        """Gives the same policy a quicker form, without gradients, inside; afterwards all is what it was."""
        with self.faster(self):
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """Switches gradient checkpointing on inside; it needs train mode, in which the KV cache would be off."""
        self.model.train(self.gradient_checkpointing)
        try:
            yield
        finally:
            self.model.eval()

    def trainable(self) -> list[nn.Parameter]:
        """Returns the policy's parameters that the optimizer updates; a critic has its own."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def final_logits(logits: Tensor, config: Any) -> Tensor:
    """Does to logits (.., V) what some families do after the head: scale (Cohere, Granite), soft cap (Gemma 2)."""
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


def undefined_ids(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> list[int]:
    """Returns rows of the head that no token of the tokenizer has: they are padding, and may never be sampled."""
    known = set(tokenizer.get_vocab().values())
    return [id_ for id_ in range(n_rows) if id_ not in known]


def without_undefined(logits: Tensor, undefined: Tensor) -> Tensor:
    """Returns logits (.., V) in which the ids of `undefined` have no probability; written in place."""
    lowest = max(UNDEFINED_LOGIT, torch.finfo(logits.dtype).min)
    return logits.index_fill_(-1, undefined, lowest) if len(undefined) else logits
