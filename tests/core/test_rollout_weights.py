"""The weights that rollouts use are the policy that is trained."""

from __future__ import annotations

import pytest
import torch
from helpers.models import CPU

from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.models.loading import load_policy
from searchr1_mini.retrievers.probes import EmptyRetriever
from searchr1_mini.run.methods import make_method

LIMITS = RolloutLimits(n_rows=8, max_total_tokens=400, max_observation_tokens=120)


@pytest.mark.parametrize(("load_in_4bit", "dequantize"), [(False, False), (True, False), (True, True)])
def test_rollout_weights_are_the_same_policy_and_leave_no_trace(random_qwen2, load_in_4bit, dequantize):
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=load_in_4bit, dtype=torch.float32, device=CPU
    )
    policy.dequantize = dequantize
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    ids = torch.arange(1, 41).view(2, 20)
    state = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    trainable = [p.requires_grad for p in policy.model.parameters()]
    with torch.no_grad():
        apart = policy.hidden(input_ids=ids)
        with policy.reference():
            base = policy.hidden(input_ids=ids)
        with pytest.raises(KeyboardInterrupt), policy.for_rollouts():
            merged = policy.hidden(input_ids=ids)
            is_adapted = any(not torch.equal(tensor, state[n]) for n, tensor in policy.model.state_dict().items())
            raise KeyboardInterrupt
        again = policy.hidden(input_ids=ids)
    assert (apart - base).abs().max() > 0.1
    assert is_adapted == (dequantize or not load_in_4bit)
    torch.testing.assert_close(merged, apart, atol=1e-4, rtol=1e-4)
    assert torch.equal(again, apart)
    assert all(torch.equal(tensor, state[name]) for name, tensor in policy.model.state_dict().items())
    assert trainable == [p.requires_grad for p in policy.model.parameters()]


def test_a_dequantized_base_in_16_bits_is_not_rounded_again(random_qwen2):
    """Its products are those of the 4-bit base, bit for bit, and the adapter stays beside it."""
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=True, dtype=torch.bfloat16, device=CPU
    )
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    ids = torch.arange(1, 41).view(2, 20)
    with torch.no_grad():
        packed = policy.hidden(input_ids=ids)
        policy.dequantize = True
        with policy.for_rollouts():
            unpacked = policy.hidden(input_ids=ids)
    assert torch.equal(packed, unpacked)


def in_16_bits(random_qwen2, load_in_4bit: bool = False):
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=load_in_4bit, dtype=torch.bfloat16, device=CPU
    )
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return policy


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_an_adapter_cast_for_rollouts_computes_the_same(random_qwen2, load_in_4bit):
    """It is cast once for each rollout and restored afterwards, even after an interrupt."""
    policy = in_16_bits(random_qwen2, load_in_4bit)
    before = [parameter.clone() for parameter in policy.trainable()]
    ids = torch.arange(1, 41).view(2, 20)
    with torch.no_grad():
        apart = policy.hidden(input_ids=ids)
        with pytest.raises(KeyboardInterrupt), policy.for_rollouts():
            cast = policy.hidden(input_ids=ids)
            assert {parameter.dtype for parameter in policy.trainable()} == {torch.bfloat16}
            raise KeyboardInterrupt
    assert torch.equal(apart, cast)
    assert all(map(torch.equal, before, policy.trainable()))


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_rollout_keeps_nothing_for_a_backward(random_qwen2, lora_rank, monkeypatch):
    """In full fine-tuning and in 16 bits too, where no merged adapter rules gradients out by itself."""
    policy = load_policy(
        str(random_qwen2), lora_rank=lora_rank, lora_alpha=8, load_in_4bit=False, dtype=torch.bfloat16, device=CPU
    )
    graphs, start = [], Decoder.start

    def seen(decoder, *arguments):
        start(decoder, *arguments)
        graphs.append(any(tensor.requires_grad for tensor in decoder.cache.keys))

    monkeypatch.setattr(Decoder, "start", seen)
    make = make_method("direct", template="short", max_turns=1, max_new_tokens=4, topk=1)
    rollout(
        [Example("q", "Who is it?", ("x",), "s")] * 3, make, policy, EmptyRetriever(), LIMITS, temperature=1, seed=0
    )
    assert graphs == [False] * 3


@pytest.mark.parametrize("dequantize", [False, True])
def test_a_rollout_out_of_memory_names_the_copy_first(random_qwen2, monkeypatch, dequantize):
    """An unpacked base is most of what a rollout holds."""
    policy = in_16_bits(random_qwen2, load_in_4bit=True)
    policy.dequantize = dequantize
    make = make_method("direct", template="short", max_turns=1, max_new_tokens=4, topk=1)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "step", full)
    with pytest.raises(UserError) as told:
        rollout([Example("q", "Who?", ("x",), "s")], make, policy, EmptyRetriever(), LIMITS, temperature=1, seed=0)
    first = "add --rollout-weights base, or " if dequantize else ""
    assert str(told.value).startswith(f"out of memory in a rollout; {first}lower --rollout-batch-size")
