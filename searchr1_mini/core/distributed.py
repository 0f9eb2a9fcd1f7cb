"""Data parallel training: what several processes share; with one process every function does nothing.

Each process rolls out and rewards its share of a step's questions; then all of them hold all trajectories and rewards,
so that advantages and loss weights are those of one process with the whole batch. Each then computes its share of the
micro-batches, and the gradients are summed. The first process alone writes files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def n_processes() -> int:
    """Returns the number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Returns the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Tells whether this process writes the log, the checkpoints and the report."""
    return rank() == 0


def share(n: int) -> slice:
    """Tells which of `n` things in a row are this process's: as many as another's, or one more."""
    return slice(rank() * n // n_processes(), (rank() + 1) * n // n_processes())


def gather(values: Sequence[T]) -> list[T]:
    """Gathers the values of all processes, in their order."""
    if n_processes() == 1:
        return list(values)
    parts: list[Sequence[T]] = [()] * n_processes()
    dist.all_gather_object(parts, values)
    return list(chain.from_iterable(parts))


def any_process(flag: bool) -> bool:
    """Tells whether it holds in some process."""
    return any(gather([flag]))


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Adds the tensors of the other processes to this one, in place."""
    if n_processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds up the gradients of all processes; one that had nothing to do counts as 0."""
    if n_processes() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
