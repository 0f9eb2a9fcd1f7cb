"""Chunked log-probs against a full softmax, forward and backward, and their memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from searchr1_mini.core.logprobs import token_logprobs

VOCABULARY, HIDDEN = 500, 8


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY)
    hidden = torch.randn(3, 11, HIDDEN, requires_grad=True)
    return head, hidden, torch.randint(0, VOCABULARY, (3, 11)), torch.rand(3, 11) > 0.4


@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_equals_the_full_softmax_forward_and_backward(inputs, chunk_tokens, is_frozen):
    head, hidden, targets, mask = inputs
    head.requires_grad_(not is_frozen)
    logprobs, entropy = token_logprobs(hidden, head, targets, mask, 0.7, chunk_tokens)
    full = (head(hidden) / 0.7).log_softmax(-1)
    expected = torch.where(mask, full.gather(-1, targets[..., None])[..., 0], 0.0)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, torch.where(mask, -(full.exp() * full).sum(-1), 0.0))
    weights = torch.randn(3, 11)
    for wanted in (hidden,) if is_frozen else (hidden, head.weight, head.bias):
        ours, theirs = (
            torch.autograd.grad((x * weights).sum(), wanted, retain_graph=True)[0] for x in (logprobs, expected)
        )
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_head_multiplies_twice_and_no_more(inputs):
    """Forward and gradient: the full softmax does no less, and recomputing would do more."""
    linear, hidden, targets, mask = inputs
    head = partial(torch.nn.functional.linear, weight=linear.weight.detach())
    with FlopCounterMode(display=False) as ours:
        token_logprobs(hidden, head, targets, torch.ones_like(mask), 0.7, 4)[0].sum().backward()
    with FlopCounterMode(display=False) as full:
        head(hidden).log_softmax(-1).gather(-1, targets[..., None]).sum().backward()
    assert ours.get_total_flops() == full.get_total_flops() > 0


def test_an_entropy_bonus_has_its_gradient_with_a_frozen_head(inputs):
    head, hidden, targets, mask = inputs
    head.requires_grad_(False)
    _, entropy = token_logprobs(hidden, head, targets, mask, 0.7, 4, entropy_gradient=True)
    full = (head(hidden) / 0.7).log_softmax(-1)
    expected = torch.where(mask, -(full.exp() * full).sum(-1), 0.0)
    ours, theirs = (torch.autograd.grad(x.sum(), hidden, retain_graph=True)[0] for x in (entropy, expected))
    torch.testing.assert_close(ours, theirs)


def test_never_holds_more_logits_than_a_chunk(inputs):
    head, hidden, targets, _ = inputs
    head.weight.requires_grad_(False)
    with LargestTensor() as seen:
        logprobs, _ = token_logprobs(hidden, head, targets, torch.ones(3, 11, dtype=torch.bool), 1.0, chunk_tokens=4)
        logprobs.sum().backward()
    assert seen.largest == 4 * VOCABULARY or seen.largest == head.weight.numel()
    assert seen.largest < 5 * VOCABULARY or seen.largest == HIDDEN * VOCABULARY


def test_nothing_to_compute_gives_zeros(inputs):
    head, hidden, targets, _ = inputs
    logprobs, entropy = token_logprobs(hidden, head, targets, torch.zeros(3, 11, dtype=torch.bool), 1.0)
    assert not logprobs.any() and not entropy.any()
