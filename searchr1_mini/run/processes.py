"""The processes that torchrun started (`torchrun --nproc-per-node N train.py`); with one, all of this does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
import torch.distributed as dist

from searchr1_mini.core.distributed import is_main, local_rank, n_processes
from searchr1_mini.core.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # one process may index a corpus while the others wait


@contextmanager
def processes(device: str) -> Iterator[Path | None]:
    """Joins the processes that torchrun started, if it did.

    Those that are not the first print nothing but their errors, and get a folder, thrown away in the end, for what they
    would write to the run's.

    Args:
        device: as `--device` names it.

    Raises:
        UserError: more processes than GPUs.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield None
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started more processes than this machine has GPUs ({torch.cuda.device_count()}); give "
                f"--nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        if is_main():
            yield None
            return
        with (
            TemporaryDirectory() as scratch,
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            yield Path(scratch)
    finally:
        dist.destroy_process_group()


def refuse_several(command: str) -> None:
    """Refuses a command that is not made for torchrun: each process would do all of it, and write the same files.

    Raises:
        UserError: torchrun started more than one process.
    """
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"{command} runs in one process, and {os.environ['WORLD_SIZE']} were started; start it with python"
        )


def on_main(function: Callable[[], T]) -> T:
    """Calls it in the first process alone; all get what it returned, or its UserError.

    Raises:
        UserError: as `function`.
    """
    if n_processes() == 1:
        return function()
    outcome = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


@contextmanager
def main_first() -> Iterator[None]:
    """Lets the first process through before the others, which then find what it downloaded or built.

    Raises:
        UserError: in all processes, if what the first did raised it.
    """
    if not is_main():
        on_main(lambda: None)
    try:
        yield
    except UserError as error:
        if is_main():
            on_main(partial(_raise, error))
        raise
    if is_main():
        on_main(lambda: None)


def _raise(error: UserError) -> None:
    raise error
