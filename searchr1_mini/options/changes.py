"""What a run's settings change of the defaults, as the flags that somebody would have to give."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS
from searchr1_mini.options.needs import NEEDS, idle, spelled, without
from searchr1_mini.options.nested import default_value, flag_name, flat, get
from searchr1_mini.options.resolve import filled

UNTOLD = (  # what decides neither what is learned nor how it is measured
    "output_dir resume date check eval_every save_every keep_checkpoints tensorboard wandb memory_check memory_limit "
    "rollout_weights"
).split()


def changes(config: TrainConfig) -> list[str]:
    """Lists what is not at the model's default, nor follows from the rest: `["--lora-rank 8", "--no-normalize-std"]`.

    A preset stands for its options where that makes fewer words of it.

    Options that the run does not read are left out, and so are the folders of a path from the root.

    Args:
        config: every option filled in.
    """
    unread = {*UNTOLD, *idle(config, NEEDS)}
    values = {name: value for name, value in flat(config).items() if name not in unread}
    own = [name for name in values if not _follows(name, config)]
    told = [[_word(name, values[name]) for name in own]]
    for preset, given in PRESETS.items():
        rest = [name for name in values if (given[name] != values[name] if name in given else name in own)]
        told.append([f"--preset {preset}", *(_word(name, values[name]) for name in rest)])
    return min(told, key=len)


def public(value: Any) -> Any:
    """Returns the last part of a path from the root, which `resolve` makes of own parts too; other values as they are.

    A row of a table or a class's page is for others to read, and tells nobody where a home is.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        if isinstance(value, str) and kind(value).is_absolute():
            return kind(value).name
    return value


def _word(name: str, value: Any) -> str:
    return f"{flag_name(name)} None" if value is None else spelled(name, public(value))


def _follows(name: str, config: TrainConfig) -> bool:
    """Whether the other options alone give one its value."""
    value = get(config, name)
    return value == default_value(TrainConfig, name) or get(filled(without(config, [name])), name) == value
