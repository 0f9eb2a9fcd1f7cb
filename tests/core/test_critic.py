"""PPO's critic: one base, two adapters; what one is trained on never reaches the other."""

from __future__ import annotations

import pytest
import torch
from helpers.families import save_family
from helpers.models import CPU

from searchr1_mini.core.critic import Critic
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.saving import load_critic, save_critic, save_policy

IDS = torch.arange(1, 20)[None]
POSITIONS = torch.arange(19)[None]


def make(source, lora_rank: int = 4, load_in_4bit: bool = False, checkpointing: bool = False):
    policy = load_policy(
        str(source), lora_rank=lora_rank, lora_alpha=8, load_in_4bit=load_in_4bit, dtype=torch.float32, device=CPU,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    return policy, Critic(policy, seed=0)


def values(critic: Critic) -> torch.Tensor:
    with critic.active():
        return critic.values(IDS, POSITIONS)


def test_values_start_at_zero_and_the_policy_is_untouched(random_qwen2):
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )
    before = policy.hidden(input_ids=IDS)
    critic = Critic(policy, seed=0)
    assert values(critic).tolist() == [[0.0] * 18]
    torch.testing.assert_close(policy.hidden(input_ids=IDS), before)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_head_fits_states_of_another_width_than_the_layers(lora_rank, tmp_path, tokenizer):
    """As OPT-350m has them: 1,024 in the layers, 512 at its embeddings."""
    opt = save_family(tmp_path, "opt", tokenizer, word_embed_proj_dim=32)
    policy, critic = make(opt, lora_rank)
    assert policy.config.hidden_size == 64 and values(critic).shape == (1, 18)
    assert any(gradient is not None and gradient.any() for gradient in one_step(policy, critic)[1])


def test_two_adapters_share_one_base(random_qwen2):
    policy, critic = make(random_qwen2)
    n_base = sum(p.numel() for n, p in policy.model.named_parameters() if "lora_" not in n)
    n_policy = sum(p.numel() for p in policy.trainable())
    n_critic = sum(p.numel() for p in critic.parameters())
    assert n_critic == n_policy + policy.config.hidden_size + 1
    assert sum(p.numel() for p in policy.model.parameters()) == n_base + 2 * n_policy
    assert not {id(p) for p in policy.trainable()} & {id(p) for p in critic.parameters()}


def one_step(policy, critic: Critic) -> tuple[list, list]:
    """Forward and backward of both, as in an optimizer step: gradients of the policy, and of the critic."""
    with torch.no_grad():
        for parameter in critic.parameters():  # a head of 0 would pass no gradient on
            parameter.add_(0.01)
    with policy.training():
        policy.hidden(input_ids=IDS).square().mean().backward()
        with critic.active():
            (critic.values(IDS, POSITIONS) - 1).square().mean().backward()
    return [p.grad for p in policy.trainable()], [p.grad for p in critic.parameters()]


def test_gradients_with_checkpointing_are_those_without(random_qwen2):
    """peft's trap: recomputed in the backward pass, a forward runs under whatever adapter is active then."""
    plain, checkpointed = (one_step(*make(random_qwen2, checkpointing=c)) for c in (False, True))
    for one, two in zip([*plain[0], *plain[1]], [*checkpointed[0], *checkpointed[1]], strict=True):
        torch.testing.assert_close(one, two)
    assert sum(float(g.abs().sum()) for g in plain[1]) > 0


def test_policy_and_critic_give_each_other_no_gradient(random_qwen2):
    policy, critic = make(random_qwen2)
    policy.hidden(input_ids=IDS).square().mean().backward()
    assert all(p.grad is None for p in critic.parameters())
    policy.model.zero_grad()
    with critic.active():
        critic.values(IDS, POSITIONS).sum().backward()
    assert all(p.grad is None for p in policy.trainable())
    assert critic.head.weight.grad.abs().sum() > 0


def test_a_4_bit_base_trains_a_critic_after_a_rollout_too(random_qwen2):
    policy, critic = make(random_qwen2, load_in_4bit=True, checkpointing=True)
    with torch.no_grad():
        policy.hidden(input_ids=IDS)
        values(critic)
    _, gradients = one_step(policy, critic)
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_a_critic_survives_saving(random_qwen2, tmp_path):
    for lora_rank in (4, 0):
        policy, critic = make(random_qwen2, lora_rank)
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.add_(0.01)
        folder = tmp_path / str(lora_rank)
        save_critic(critic, folder)
        save_policy(policy, folder / "model")
        again, _ = make(random_qwen2, lora_rank)
        if lora_rank:
            again.model.delete_adapter("critic")
        load_critic(loaded := Critic(again, seed=1), folder)
        torch.testing.assert_close(values(loaded), values(critic))
        torch.testing.assert_close(again.hidden(input_ids=IDS), policy.hidden(input_ids=IDS))


def test_the_critics_copy_is_checkpointed_as_the_policy_is(random_qwen2):
    """Full fine-tuning: what autograd keeps of a forward of the copy is what it keeps of the policy's."""
    policy, critic = make(random_qwen2, lora_rank=0, checkpointing=True)

    def kept(forward) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            forward()
        return sum(sizes)

    with policy.training():
        of_policy = kept(lambda: policy.hidden(input_ids=IDS))
        of_critic = kept(lambda: values(critic))
    assert of_critic < 2 * of_policy < kept(lambda: policy.hidden(input_ids=IDS))
    assert not critic.copy.training


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_adapters_are_trained_in_float32_on_a_base_in_16_bits(random_qwen2, load_in_4bit):
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=load_in_4bit, dtype=torch.bfloat16, device=CPU
    )
    assert {p.dtype for p in [*policy.trainable(), *Critic(policy, seed=0).parameters()]} == {torch.float32}
