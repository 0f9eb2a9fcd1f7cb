"""A batch in micro-batches, and in smaller ones where memory runs out; each process takes its share of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from searchr1_mini.core import interrupt, progress
from searchr1_mini.core.batch import Batch, micro_batches
from searchr1_mini.core.distributed import any_process, n_processes, rank, sum_over_processes
from searchr1_mini.core.errors import UserError, is_out_of_memory

T = TypeVar("T")


class MicroBatches:
    """Does work on a batch, some rows at a time.

    Attributes:
        tokens: most tokens of a micro-batch, padding included; halved once memory ran out.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def over(self, batch: Batch, work: Callable[[list[int]], T], undo: Callable[[], None] = lambda: None) -> list[T]:
        """Returns what `work(rows)` returns for each micro-batch of this process.

        The loss of a micro-batch is a weighted sum with weights of the whole batch, so that accumulated gradients do
        not depend on how it is split. Where memory runs out, what was accumulated is therefore undone, and all of it
        done again with half as many tokens in a micro-batch; the run keeps to that.

        Raises:
            Stopped: the user asked to stop.
            UserError: memory does not suffice for one trajectory, and no weight of the step has moved.
            RuntimeError: the same, but weights have moved already, so that the step cannot be left.
        """
        lengths = batch.lengths.tolist()
        while True:
            results, failure = [], None
            try:
                parts = micro_batches(lengths, self.local_tokens(lengths))[rank() :: n_processes()]
                for rows in parts:
                    interrupt.check()
                    progress.tell("micro-batches", len(results), len(parts))
                    results.append(work(rows))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # which holds what the forward had saved
            if not any_process(failure is not None):
                return results
            undo()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halve(lengths, failure)

    @torch.no_grad()
    def whole(self, batch: Batch, of: Callable[[Batch], Tensor]) -> Tensor:
        """Puts together (N, T-1) what `of` gives (n, t-1) for each micro-batch, those of other processes included."""
        out = torch.zeros_like(batch.old_logprobs)

        def of_rows(rows: list[int]) -> tuple[list[int], Tensor]:
            return rows, of(batch.select(rows))

        for rows, values in self.over(batch, of_rows):  # only now: rows may change their process
            out[rows, : values.shape[1]] = values
        return sum_over_processes(out)

    def local_tokens(self, lengths: Sequence[int]) -> int:
        """Returns the tokens of a micro-batch, of which each of several processes shall have one."""
        return self.tokens if n_processes() == 1 else min(self.tokens, sum(lengths) // n_processes())

    def halve(self, lengths: Sequence[int], failure: RuntimeError | None) -> None:
        """Halves the tokens from here on; raises where each trajectory stands alone already, see `over`."""
        tokens = min(self.local_tokens(lengths), max(lengths) * len(lengths))
        if all(len(rows) == 1 for rows in micro_batches(lengths, tokens)):
            if interrupt.is_held():
                raise failure or RuntimeError("another process is out of memory")
            raise UserError(
                f"out of memory on a single trajectory of {max(lengths)} tokens; lower --max-total-tokens or "
                "--lora-rank, add --gradient-checkpointing, or try --preset 12gb"
            )
        self.tokens = tokens // 2
        print(f"out of memory: from here on micro-batches of {self.tokens} tokens", file=sys.stderr)
