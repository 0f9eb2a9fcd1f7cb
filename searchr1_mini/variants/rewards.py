"""What later papers add to the reward."""

from __future__ import annotations

from torch import Tensor


def soft_overlong(n_tokens: Tensor, limit: int, buffer: int) -> Tensor:
    """Computes DAPO's penalty (arXiv 2503.14476, equation 13), (N,): 0 up to limit - buffer, then falling to -1."""
    return ((limit - buffer - n_tokens) / buffer).clamp(-1.0, 0.0)
