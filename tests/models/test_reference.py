"""The reference: the base, or the weights of any moment, kept beside those that are trained on."""

from __future__ import annotations

import pytest
import torch
from helpers.models import CPU

from searchr1_mini.core.critic import Critic
from searchr1_mini.core.policy import Policy
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.saving import load_reference, save_policy, save_reference

IDS = torch.arange(1, 20)[None]
POSITIONS = torch.arange(19)[None]
KINDS = [{"lora_rank": 4}, {"lora_rank": 4, "load_in_4bit": True}, {"lora_rank": 0}]


def make(source, lora_rank: int, load_in_4bit: bool = False, weights=None) -> Policy:
    return load_policy(
        str(source), lora_rank=lora_rank, lora_alpha=8, load_in_4bit=load_in_4bit, dtype=torch.float32, device=CPU,
        weights=weights,
    )  # fmt: skip


def states(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.hidden(input_ids=IDS)


def reference_states(policy: Policy) -> torch.Tensor:
    with policy.reference():
        assert not policy.trainable()
        return states(policy)


def move(policy: Policy, by: float = 0.01) -> None:
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += by


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_policy_as_it_was_last_frozen(random_qwen2, kind):
    policy = make(random_qwen2, **kind)
    base = states(policy)
    for by in (0.01, -0.03):
        move(policy, by)
        frozen = states(policy)
        policy.freeze_reference()
        assert torch.equal(states(policy), frozen)
        move(policy)
        assert torch.equal(reference_states(policy), frozen)
        assert not torch.allclose(states(policy), frozen, atol=1e-3) and not torch.allclose(base, frozen, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_reference_does_not_affect_training(random_qwen2, kind):
    def gradients(policy: Policy) -> list[torch.Tensor]:
        with policy.training():
            policy.hidden(input_ids=IDS).square().mean().backward()
        return [parameter.grad for parameter in policy.trainable()]

    plain, policy = make(random_qwen2, **kind), make(random_qwen2, **kind)
    move(plain)
    trained = [id(parameter) for parameter in policy.trainable()]
    critic = Critic(policy, seed=0)
    move(policy)
    policy.freeze_reference()
    reference_states(policy)
    with critic.active():
        critic.values(IDS, POSITIONS)
    reference_states(policy)
    assert [id(parameter) for parameter in policy.trainable()] == trained
    with_reference = gradients(policy)
    assert all(map(torch.equal, gradients(plain), with_reference)) and with_reference[0].abs().max() > 0
    assert critic.parameters() and not {id(p) for p in critic.parameters()} & set(trained)
    assert all(parameter.grad is None for parameter in critic.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_reference_is_saved_and_comes_back(random_qwen2, tmp_path, kind):
    policy = make(random_qwen2, **kind)
    move(policy)
    policy.freeze_reference()
    move(policy)
    own, reference = states(policy), reference_states(policy)
    save_policy(policy, tmp_path)
    save_reference(policy, tmp_path)
    again = make(random_qwen2, **kind, weights=tmp_path)
    assert not again.has_own_reference
    load_reference(again, tmp_path)
    assert torch.equal(states(again), own) and torch.equal(reference_states(again), reference)
    assert [p.shape for p in again.trainable()] == [p.shape for p in policy.trainable()]
    move(again)
    assert torch.equal(reference_states(again), reference)


def test_rollouts_read_the_policy_and_not_its_reference(random_qwen2):
    policy = make(random_qwen2, lora_rank=4)
    move(policy)
    policy.freeze_reference()
    move(policy, -0.03)
    own, reference = states(policy), reference_states(policy)
    with policy.for_rollouts():
        torch.testing.assert_close(states(policy), own, atol=1e-4, rtol=1e-4)
    assert torch.equal(states(policy), own) and torch.equal(reference_states(policy), reference)
