"""Log-probs of chosen tokens without ever holding all logits: (B, T, 151,936) floats would dwarf all else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_BYTES = 2**26


def token_logprobs(
    hidden: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    targets: Tensor,
    loss_mask: Tensor,
    temperature: float,
    chunk_tokens: int | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes log pi(target) = logit_target - logsumexp(logits), with logits / temperature as in sampling.

    Only masked-in positions are computed, a chunk at a time, and a few copies of one chunk of logits are the most that
    is ever held. With a frozen head the gradient is computed together with the logits, see `FrozenHead`; where
    the head is trained too, or entropies carry a gradient, each chunk's logits are computed again in the backward pass.

    Args:
        hidden: (B, T, H) last hidden states.
        lm_head: (.., H) -> (.., V).
        targets: (B, T) long.
        loss_mask: (B, T) bool.
        temperature: the one that the rollout sampled with, > 0.
        chunk_tokens: positions a chunk; by default so many that its logits take `LOGITS_BYTES` at most.
        entropy_gradient: lets the gradient through the entropies too, for an entropy bonus.

    Returns:
        log-probs (B, T) float32 and entropies (B, T) float32 in nats; both 0 where masked out.
    """
    rows = loss_mask.flatten().nonzero()[:, 0]
    chosen, wanted = hidden.flatten(0, 1)[rows], targets.flatten()[rows]

    no_logits = lm_head(chosen[:0].detach())
    if chunk_tokens is None:
        chunk_tokens = max(1, min(1024, LOGITS_BYTES // (4 * no_logits.shape[-1])))

    def of_chunk(chunk: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = lm_head(chunk).float() / temperature
        normalizer = logits.logsumexp(-1)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy = normalizer - (torch.softmax(logits, -1) * logits).sum(-1)
        return logits.gather(-1, ids[:, None])[:, 0] - normalizer, entropy

    def differentiable(chunk: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        if no_logits.requires_grad or entropy_gradient:
            return checkpoint(of_chunk, chunk, ids, use_reentrant=False)
        return FrozenHead.apply(chunk, ids, of_chunk)

    function = differentiable if torch.is_grad_enabled() else of_chunk
    pieces = [
        function(chunk, ids) for chunk, ids in zip(chosen.split(chunk_tokens), wanted.split(chunk_tokens), strict=True)
    ]
    empty = torch.zeros(targets.numel(), device=hidden.device)
    logprobs, entropy = (
        empty.index_put((rows,), torch.cat(parts)).view_as(targets) for parts in zip(*pieces, strict=True)
    )
    return logprobs, entropy


class FrozenHead(torch.autograd.Function):
    """Log-probs of a chunk together with d log pi(y) / d h = (W_y - sum_v pi(v) W_v) / temperature.

    A token's log-prob depends on its own hidden state alone, so this (n, H) is known while the logits are there, and
    the loss only scales its rows: logits are neither kept nor computed twice.
    """

    @staticmethod
    def forward(ctx, chunk: Tensor, ids: Tensor, of_chunk: Callable) -> tuple[Tensor, Tensor]:
        """Computes log-probs and entropies (n,) of hidden states (n, H); entropies carry no gradient."""
        with torch.enable_grad():
            leaf = chunk.detach().requires_grad_()
            logprobs, entropy = of_chunk(leaf, ids)
            ctx.save_for_backward(*torch.autograd.grad(logprobs.sum(), leaf))
        ctx.mark_non_differentiable(entropy)
        return logprobs.detach(), entropy

    @staticmethod
    def backward(ctx, of_logprobs: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """Turns the loss's gradient by log-probs (n,) into that by hidden states (n, H)."""
        (gradient,) = ctx.saved_tensors
        return (of_logprobs[:, None] * gradient).to(gradient.dtype), None, None
