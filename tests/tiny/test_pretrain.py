"""The making of the tiny base: the device of its measurements, and workers that die."""

from __future__ import annotations

import argparse
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2ForCausalLM

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.tiny.curriculum import STAGES
from searchr1_mini.tiny.pretraining import next_batch, reading_accuracy, start_workers, step_loss, tokenize

TRACE = [("prompt", "Question: who?"), ("policy", " <answer> Ada Brook </answer>")]


class Knowing:
    """Says that it is on a device, insists on input there, and finds the next token of one known row the likeliest."""

    device = torch.device("meta")

    def __init__(self, ids: list[int]) -> None:
        self.ids = torch.tensor([ids])

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        assert input_ids.device == self.device and input_ids.shape == self.ids.shape
        return SimpleNamespace(logits=torch.nn.functional.one_hot(self.ids.roll(-1, 1)).float())


def test_reading_is_measured_on_the_models_device(tokenizer):
    ids, _ = tokenize(tokenizer, TRACE)
    assert reading_accuracy(Knowing(ids), tokenizer, [TRACE]) == 1.0
    assert reading_accuracy(Knowing([*ids[:-2], 5, ids[-1]]), tokenizer, [TRACE]) == 0.0


def test_a_worker_that_died_is_told_and_not_waited_for(tmp_path, monkeypatch):
    args = argparse.Namespace(workers=1, seed=0, batch_tokens=64, max_length=64)
    batches, workers = start_workers(args, tmp_path / "no tokenizer here", STAGES[0], 1)
    monkeypatch.setattr(batches, "get", partial(batches.get, timeout=20))  # who waits for ever fails here instead
    with pytest.raises(UserError, match="ended with exit code 1 "):
        next_batch(batches, workers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_have_the_precision_that_is_asked_for(dtype):
    model = Qwen2ForCausalLM.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    ids = torch.arange(5, 13).view(2, 4)
    loss = step_loss(model, ids, ids, dtype)
    hook.remove()
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert seen == [dtype]
