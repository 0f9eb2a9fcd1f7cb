"""Random ragged batches with masks, token by token, for equations that are compared with loops over Python numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st

NAMES = ("new", "old", "ref", "value", "old_value", "advantage", "importance", "entropy")


@dataclass
class Rows:
    """Ragged trajectories: `tokens[i]` is one dict of numbers for each policy token, `mask` says where they stand."""

    tokens: list[list[dict[str, float]]]
    rewards: list[float]
    mask: torch.Tensor
    tensors: dict[str, torch.Tensor]


def lay_out(tokens: list[list[dict[str, float]]], gaps: list[list[int]], rewards: list[float]) -> Rows:
    """Puts `gaps[i][j]` observation tokens, full of rubbish, before policy token j of row i; pads with rubbish too."""
    width = max(len(row) + sum(gap) for row, gap in zip(tokens, gaps, strict=True)) + 1
    mask = torch.zeros(len(tokens), width, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    shape = mask.shape
    tensors = {name: 1e3 * torch.randn(shape, generator=generator, dtype=torch.float64) for name in NAMES}
    for i, row in enumerate(tokens):
        at = 0
        for token, gap in zip(row, gaps[i], strict=True):
            at += gap
            mask[i, at] = True
            for name in NAMES:
                tensors[name][i, at] = token[name]
            at += 1
    return Rows(tokens, rewards, mask, tensors)


logprob = st.floats(-3, -0.01)
number = st.floats(-2, 2)
token = st.fixed_dictionaries(
    {"new": logprob, "old": logprob, "ref": logprob, "value": number, "old_value": number, "advantage": number,
     "importance": st.floats(0.1, 2), "entropy": st.floats(0, 3)}
)  # fmt: skip


@st.composite
def ragged(draw) -> Rows:
    tokens = draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=4))
    gaps = [[draw(st.integers(0, 3)) for _ in row] for row in tokens]
    rewards = [draw(st.sampled_from([0.0, 1.0, 0.2])) for _ in tokens]
    return lay_out(tokens, gaps, rewards)


def seeded_rows() -> Rows:
    generator = torch.Generator().manual_seed(3)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    def one() -> dict[str, float]:
        names = {name: draw(-2, 2) for name in ("value", "old_value", "advantage")}
        return names | {name: draw(-2, -0.1) for name in ("new", "old", "ref")} | {
            "importance": draw(0.5, 2), "entropy": draw(0, 3)
        }  # fmt: skip

    return lay_out([[one() for _ in range(n)] for n in (3, 5, 1)], [[0, 2, 1], [1, 0, 0, 3, 0], [4]], [1.0, 0.0, 1.0])


def compare_with_differences(rows: Rows, x: torch.Tensor, loss, eps: float = 1e-6) -> None:
    for i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        if not rows.mask[i, j]:
            assert x.grad[i, j].item() == 0
            continue
        up, down = x.detach().clone(), x.detach().clone()
        up[i, j] += eps
        down[i, j] -= eps
        difference = (loss(up) - loss(down)).item() / (2 * eps)
        assert x.grad[i, j].item() == pytest.approx(difference, rel=1e-4, abs=1e-7)
