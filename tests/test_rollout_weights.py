"""The weights and the decode step that rollouts use are the policy that is trained."""

from __future__ import annotations

import pytest
import torch
from conftest import CPU

from searchr1_mini import methods
from searchr1_mini.data import Example
from searchr1_mini.models import load_policy
from searchr1_mini.retrievers.probes import EmptyRetriever
from searchr1_mini.rollout import RolloutLimits, rollout

LIMITS = RolloutLimits(n_rows=8, max_total_tokens=400, max_observation_tokens=120)


@pytest.mark.parametrize(("load_in_4bit", "dequantise"), [(False, False), (True, False), (True, True)])
def test_weights_for_rollouts_are_the_same_policy_and_leave_no_trace(random_qwen2, load_in_4bit, dequantise):
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=load_in_4bit, dtype=torch.float32, device=CPU
    )
    policy.dequantise = dequantise
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
    assert is_adapted == (dequantise or not load_in_4bit)
    torch.testing.assert_close(merged, apart, atol=1e-4, rtol=1e-4)
    assert torch.equal(again, apart)
    assert all(torch.equal(tensor, state[name]) for name, tensor in policy.model.state_dict().items())
    assert trainable == [p.requires_grad for p in policy.model.parameters()]


def test_a_dequantised_base_in_16_bits_is_not_rounded_again(random_qwen2):
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
        policy.dequantise = True
        with policy.for_rollouts():
            unpacked = policy.hidden(input_ids=ids)
    assert torch.equal(packed, unpacked)


def test_a_compiled_decode_step_samples_the_same_before_and_after_training(random_qwen2):
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )
    example = Example("q", "Who is it?", ("x",), "s")

    def roll() -> list[int]:
        (trajectory,), _ = rollout(
            [example], methods.make_method("direct", template="short", max_turns=1, max_new_tokens=12, topk=1),
            policy, EmptyRetriever(), LIMITS, temperature=0, seed=0,
        )  # fmt: skip
        return trajectory.token_ids

    before = roll()
    policy.compile_decode(backend="aot_eager")
    assert roll() == before
    for parameter in policy.trainable():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    after = roll()
    policy._decode_step = None
    assert after == roll() != before
