"""What a checkpoint keeps by torch beside the weights: the state of optimizers, and of random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from searchr1_mini.core.errors import UserError
from searchr1_mini.storage.printable import first_line

OF_ANOTHER_VERSION = (
    "is of another form than this version writes; go on with the version that began the run (`versions` in its "
    "config.json), or start a new run: the weights are sound, and eval.py reads them"
)


def seed_rng(seed: int) -> None:
    """Sets every global random generator. Nothing of ours draws from one; a library may."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng() -> dict[str, Any]:
    """Captures the state of every random generator in use, as tensors and plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Sets what `capture_rng` saw."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads what a checkpoint keeps by torch: AdamW's moments, the loss scaler, random states.

    Raises:
        UserError: another version of this program, or of torch, wrote it in another form.
    """
    with own_format(path):
        return torch.load(path, weights_only=True, map_location="cpu")


@contextmanager
def own_format(path: Path) -> Iterator[None]:
    """Turns what fails inside into an error on a form that this version does not write.

    Raises:
        UserError: names `path`.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, UnpicklingError) as error:
        raise UserError(f"{path} {OF_ANOTHER_VERSION} ({first_line(error)})") from error
