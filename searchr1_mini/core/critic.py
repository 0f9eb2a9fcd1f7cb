"""The critic of PPO: V(s_t) from a second adapter and a value head on the base that the policy uses too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig
from torch import Tensor, nn

from searchr1_mini.core.names import ADAPTER, CRITIC
from searchr1_mini.core.policy import Policy


class Critic:
    """Values on the policy's base: one more adapter, not one more model; in full fine-tuning a copy of the model.

    The value head starts at 0, so that before the first update every value is 0.

    Args:
        policy: whose base is shared.
        seed: initializes the adapter.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        self.policy = policy
        self.head = nn.Linear(policy.causal_lm.get_output_embeddings().weight.shape[1], 1, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.copy = None if policy.has_adapter else copy.deepcopy(policy.model)
        if self.copy is None:
            lora: LoraConfig = policy.model.peft_config[ADAPTER]
            torch.manual_seed(seed)
            policy.model.add_adapter(
                CRITIC, LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, target_modules="all-linear")
            )
        policy.activate(ADAPTER)

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        if self.copy is not None:
            yield from self.copy.named_parameters()
        else:
            for name, parameter in self.policy.model.named_parameters():
                if f".{CRITIC}." in name:
                    yield name, parameter

    def parameters(self) -> list[nn.Parameter]:
        """Returns what the optimizer updates: the adapter (or the copy), and the head."""
        return [parameter for _, parameter in self._named_parameters()] + list(self.head.parameters())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes the base compute with the critic's adapter inside. Forward *and* backward belong inside.

        With gradient checkpointing the backward pass computes the forward again, with whatever adapter is active then.
        """
        if self.copy is not None:
            self.copy.train(self.policy.model.training)  # without which nothing is checkpointed
            try:
                with self.policy.standing_in(self.copy):
                    yield
            finally:
                self.copy.eval()
            return
        self.policy.activate(CRITIC)
        try:
            yield
        finally:
            self.policy.activate(ADAPTER)

    def values(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Computes V (B, T-1) float32, the value of the state before target t is written. Call it inside `active`."""
        hidden = self.policy.hidden(input_ids=input_ids, position_ids=position_ids)[:, :-1]
        return self.head(hidden.float())[..., 0]
