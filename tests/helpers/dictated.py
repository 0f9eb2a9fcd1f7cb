"""A policy that says what it is told to and an engine with one answer: every token of a rollout is known beforehand."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import date
from functools import partial

import torch

from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.models.prompting import prompt_ids

DAY = date(2026, 1, 1)


class Dictated:
    """A policy that writes one stream of ids, whatever it is shown, and EOS once that has ended."""

    def __init__(self, tokenizer, ids: list[int]) -> None:
        self.tokenizer, self.device, self.dtype = tokenizer, torch.device("cpu"), torch.float32
        self.encode_prompt, self.eos_ids = partial(prompt_ids, tokenizer=tokenizer, day=DAY), {tokenizer.eos_token_id}
        self.ids, self.for_rollouts = iter(ids), nullcontext
        self.base_name = "dictated"
        self.config = torch.nn.Module()
        self.config.num_hidden_layers = self.config.num_key_value_heads = self.config.num_attention_heads = 1
        self.config.hidden_size, self.config.eos_token_id = 4, tokenizer.eos_token_id

    def cached_hidden(self, rows, ids, positions, is_real, cache):
        cache.place(rows, positions, is_real)
        cache.update(*(torch.zeros(len(ids), 1, ids.shape[1], 4),) * 2, 0)
        return torch.zeros(*ids.shape, 4)

    def lm_head(self, hidden):
        logits = torch.full((*hidden.shape[:-1], len(self.tokenizer)), -30.0)
        logits[..., next(self.ids, self.tokenizer.eos_token_id)] = 30.0
        return logits


LIMITS = RolloutLimits(n_rows=8, max_total_tokens=400, max_observation_tokens=120)


OSLO = Passage("0", "Oslo", "Oslo is the capital of Norway.")


class OneAnswer:
    """Returns the same passages for every query and remembers the calls."""

    def __init__(self, *passages: Passage) -> None:
        self.passages, self.calls = passages, []

    def search(self, queries, topk):
        self.calls.append(list(queries))
        return [[Hit(passage, 1.0) for passage in self.passages[:topk]] for _ in queries]
