"""Gradient accumulation: a batch in micro-batches, and in smaller ones where memory runs out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from searchr1_mini.core import interrupt
from searchr1_mini.core.batch import Batch, micro_batches
from searchr1_mini.core.distributed import any_of, n_processes, rank
from searchr1_mini.core.errors import UserError, is_out_of_memory
from searchr1_mini.run.session import Session

T = TypeVar("T")


def own_micro_batches(batch: Batch, tokens: int) -> list[list[int]]:
    """The micro-batches of at most `tokens` that are this process's; with several processes each has some."""
    lengths = batch.lengths.tolist()
    return micro_batches(lengths, at_most_a_share(lengths, tokens))[rank() :: n_processes()]


def at_most_a_share(lengths: Sequence[int], tokens: int) -> int:
    """The tokens of a micro-batch, of which with several processes each shall have one."""
    return tokens if n_processes() == 1 else min(tokens, sum(lengths) // n_processes())


def over_micro_batches(run: Session, batch: Batch, work: Callable[[list[int]], T], may_stop: bool = True) -> list[T]:
    """What `work(rows)` returns for each micro-batch of this process.

    The loss of a micro-batch is a weighted sum with weights of the whole batch, so that accumulated gradients do not
    depend on how it is split. Where memory runs out, what was accumulated is therefore thrown away, and all of it done
    again with half as many tokens in a micro-batch; the run keeps to that.

    Args:
        may_stop: whether the step may be left between two micro-batches: as long as it has moved no weight.

    Raises:
        Stopped: the user asked to stop.
        UserError: memory does not suffice for one trajectory, and no weight has moved.
        RuntimeError: memory does not suffice, but weights have moved already, so that the step cannot be undone.
    """
    while True:
        results, failure = [], None
        try:
            for rows in own_micro_batches(batch, run.micro_batch_tokens):
                if may_stop:
                    interrupt.check()
                results.append(work(rows))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # which holds what the forward had saved
        if not any_of(failure is not None):
            return results
        run.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tokens = half_as_many(batch.lengths.tolist(), run.micro_batch_tokens)
        if tokens is None and may_stop:
            raise UserError(
                f"out of memory on a single trajectory of {int(batch.lengths.max())} tokens; lower --max-total-tokens "
                "or --lora-rank, add --gradient-checkpointing, or try --preset 12gb"
            )
        if tokens is None:
            raise failure or RuntimeError("another process is out of memory")
        run.micro_batch_tokens = tokens
        print(f"out of memory: from here on micro-batches of {run.micro_batch_tokens} tokens", file=sys.stderr)


def half_as_many(lengths: Sequence[int], tokens: int) -> int | None:
    """Half of the tokens that a micro-batch of these trajectories may hold; None if each stands alone already."""
    tokens = min(at_most_a_share(lengths, tokens), max(lengths) * len(lengths))
    is_single = all(len(rows) == 1 for rows in micro_batches(lengths, tokens))
    return None if is_single else tokens // 2
