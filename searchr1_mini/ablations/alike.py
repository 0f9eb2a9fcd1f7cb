"""Whether a run that is there is what a new one would be here: computed on the same, from the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.resolve import is_tiny, resolve_model
from searchr1_mini.storage import status
from searchr1_mini.storage.files import read_json


def is_alike(folder: Path, config: TrainConfig, threads: int) -> bool:
    """Tells whether a run was on this device, in these versions, with so many threads, and began from this base.

    Args:
        folder: of a finished run with the options of `config`.
    """
    saved = read_json(folder / "config.json")
    ours = computed_on(config) | {"threads": threads}
    return all(saved.get(name) == value for name, value in ours.items()) and is_of_base(folder, config)


def computed_on(config: TrainConfig) -> dict[str, Any]:
    """Returns what a run of this config would say that it computes on."""
    with status.phase("loading torch"):
        from searchr1_mini.models.loading import pick_device, pick_dtype
        from searchr1_mini.run.opening import computes_on
    device = pick_device(config.run.device)
    return computes_on(device, pick_dtype(config.weights.dtype, device))


def is_of_base(folder: Path, config: TrainConfig) -> bool:
    """Tells whether a run's weights are on the base that its model's name stands for now: a folder's may be others.

    The base that ships with the package is told by the commit.
    """
    if is_tiny(config):
        return True
    from searchr1_mini.models.bases import load_config, load_tokenizer  # heavy
    from searchr1_mini.models.identity import BASE_FILE, base_identity

    source = resolve_model(config.run.model)
    ours = base_identity(source, load_tokenizer(source, is_first_look=True), load_config(source))
    kept = sorted(folder.glob(f"checkpoints/*/model/{BASE_FILE}"))
    return bool(kept) and read_json(kept[-1]).items() >= ours.items()
