"""A prompt that rows share is computed once, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from helpers.models import CPU
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr1_mini.core import packing
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.experience import policy_logprobs
from searchr1_mini.core.packing import batch_hidden, is_shorter, rows_by_prompt
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.models.loading import load_policy


@pytest.fixture(scope="module")
def policy(random_qwen2):
    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.trainable():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return policy


def batch_of(groups: list[tuple[list[int], list[list[tuple[str, list[int]]]]]]):
    """Groups of rows: a prompt, and for each row its segments."""
    rows, numbers = [], []
    for number, (prompt, members) in enumerate(groups):
        for parts in members:
            segments = [Segment(kind, ids, [0.0] * len(ids) if kind == "policy" else []) for kind, ids in parts]
            rows.append(Trajectory("q", [Segment("prompt", prompt), *segments]))
            numbers.append(number)
    return build_batch(rows, [1.0] * len(rows), numbers, 0)


ids = st.integers(1, 900)
member = st.lists(
    st.tuples(st.sampled_from(["policy", "observation"]), st.lists(ids, min_size=1, max_size=6)), max_size=4
)
groups = st.lists(
    st.tuples(st.lists(ids, min_size=1, max_size=12), st.lists(member, min_size=1, max_size=4)), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(groups=groups, order=st.randoms(use_true_random=False))
def test_log_probs_and_gradients_are_those_of_rows_alone(policy, groups, order):
    """Whatever rows meet in a micro-batch, in whatever order; a row without a turn of the policy among them."""
    batch = batch_of(groups)
    rows = list(range(len(batch.lengths)))
    order.shuffle(rows)
    batch = batch.select(rows)
    if not batch.loss_mask.any():
        return
    results = []
    for packs in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "packs", packs)
            patch.setattr(packing, "is_shorter", lambda *_: True)
            logprobs, entropy = policy_logprobs(policy, batch, temperature=0.8)
            (logprobs * torch.arange(logprobs.numel()).view_as(logprobs)).mean().backward()
            gradient = torch.cat([p.grad.flatten() for p in policy.trainable()])
            policy.model.zero_grad()
        results.append((logprobs.detach(), entropy.detach(), gradient))
    scale = results[0][2].abs().max()
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[1][2] / scale, results[0][2] / scale, atol=1e-5, rtol=0)


def test_short_turns_after_a_long_prompt_alone_are_packed(policy, monkeypatch):
    prompt = list(range(1, 101))
    short = batch_of([(prompt, [[("policy", [5, 6, 7])]] * 8)])
    long = batch_of([(prompt[:20], [[("policy", [5] * 300)]] * 8)])
    assert is_shorter(rows_by_prompt(short), short, 64) and not is_shorter(rows_by_prompt(long), long, 64)
    fed, hidden = [], policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda **k: fed.append(k["input_ids"].numel()) or hidden(**k))
    with torch.no_grad():
        assert batch_hidden(policy, short).shape == (8, 103, 64)
        batch_hidden(policy, long)
    assert fed == [100 + 8 * 3, 8 * 320]
