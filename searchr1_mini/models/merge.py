"""Base and update added up into one model, and how far that is from what was trained.

A small update is less than half a step of bfloat16's grid for most weights: rounded, they are those of the base again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.names import ADAPTER
from searchr1_mini.core.policy import Policy

WIDTHS = ("bfloat16", "float16", "float32")
NOTABLE = 0.01  # share of the update whose loss is warned of


@dataclass(frozen=True)
class Merge:
    """What became of the update.

    Attributes:
        dtype: of the merged weights.
        survives: dtype -> the share of the update that it keeps, see `Kept`; without the base nothing is known.
        n_tokens: of the probe.
        mean, largest: |log pi of the merged model - log pi of what was trained|, nats per token.
        moved: |log pi of what was trained - log pi of the base|, in the mean; nan without the base.
    """

    dtype: str
    survives: dict[str, float]
    n_tokens: int
    mean: float
    largest: float
    moved: float

    def told(self) -> str:
        """Says it in one sentence for the terminal and the card."""
        change = (
            f"on {self.n_tokens} tokens log-probs differ from what was trained by {self.mean:.2g} nats in the mean and "
            f"{self.largest:.2g} at most"
        )
        if not self.survives:
            return f"{self.dtype}; {change}"
        others = ", ".join(f"{name} {share:.1%}" for name, share in self.survives.items() if name != self.dtype)
        return (
            f"{self.dtype} keeps {self.survives[self.dtype]:.1%} of the update ({others}); {change}, where training "
            f"had moved them by {self.moved:.2g}"
        )


def merge(policy: Policy, dtype: str, probe: Sequence[Sequence[int]]) -> tuple[nn.Module, Merge]:
    """Merges the policy into one model without an adapter, and measures the cost. The policy is used up.

    Args:
        policy: in float32; in full fine-tuning it may lack its reference.
        dtype: of the weights, one of `WIDTHS`.
        probe: ids of some texts.

    Raises:
        UserError: the dtype that was asked for cannot hold the weights.
    """
    trained, moved = log_probs(policy.model, probe), torch.nan
    if policy.has_adapter or policy.frozen is not None:
        with policy.reference():
            moved = (trained - log_probs(policy.model, probe)).abs().mean().item()
    model, survives = add_up(policy)
    largest = max(parameter.abs().max().item() for parameter in model.parameters())
    if not largest <= torch.finfo(getattr(torch, dtype)).max:
        raise UserError(f"--dtype {dtype} cannot hold the largest weight of this model, {largest:.3g}; leave it out")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    change = (log_probs(model, probe) - trained).abs()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model, Merge(dtype, survives, len(change), change.mean().item(), change.max().item(), moved)


def add_up(policy: Policy) -> tuple[nn.Module, dict[str, float]]:
    """Adds the update up in float32; returns the model, and for each dtype the share of the update that it keeps."""
    kept = {name: Kept(getattr(torch, name)) for name in WIDTHS}
    if policy.has_adapter:
        for layer in [module for module in policy.model.modules() if isinstance(module, LoraLayer)]:
            old = layer.get_base_layer().weight.data.clone()
            layer.merge(adapter_names=[ADAPTER])
            for each in kept.values():
                each.add(old, layer.get_base_layer().weight.data)
        return policy.model.merge_and_unload(), {name: each.share for name, each in kept.items()}
    if policy.frozen is None:
        return policy.model, {}
    for old, new in zip(policy.frozen.parameters(), policy.model.parameters(), strict=True):
        for each in kept.values():
            each.add(old.data, new.data)
    return policy.model, {name: each.share for name, each in kept.items()}


class Kept:
    """The share of an update that a dtype keeps, added up over the weights of a model.

    1 - |rounded update - update|^2 / |update|^2, where the rounded update is that between base and sum, both rounded:
    1 if nothing is lost, 0 if the sum is rounded to the base again, or if rounding is larger than the update.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.update = self.lost = 0.0

    def add(self, base: Tensor, merged: Tensor) -> None:
        """Adds up one matrix, in float32; returns it before and after."""
        update = merged - base
        rounded = merged.to(self.dtype).float() - base.to(self.dtype).float()
        self.update += update.double().square().sum().item()
        self.lost += (rounded - update).double().square().sum().item()

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return max(1 - self.lost / self.update, 0.0) if self.update else 1.0


@torch.no_grad()
def log_probs(model: nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
    """Computes log pi of every token but the first of each text, one after the other (n,), float32."""
    found = []
    for ids in texts:
        row = torch.tensor([ids])
        logits = model(input_ids=row).logits[0, :-1].float()
        found.append(logits.log_softmax(-1).gather(-1, row[0, 1:, None])[:, 0])
    return torch.cat(found)


def warn_of_loss(found: Merge) -> None:
    """Says on stderr that a dtype that was asked for loses some of the update, and what keeps it."""
    lost = 1 - found.survives.get(found.dtype, 1.0)
    if lost > NOTABLE:
        print(f"warning: {found.dtype} loses {lost:.1%} of the update; leave out --dtype to keep it", file=sys.stderr)
