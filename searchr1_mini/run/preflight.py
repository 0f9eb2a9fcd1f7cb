"""Memory preflight: does a run fit the device, and if not, which flags do? Asked before any weight is loaded.

    python -m searchr1_mini.preflight --model Qwen2.5-3B --preset 12gb --memory-limit 12

`memory.py` has the formulas; `docs/memory.md` how near they come.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from searchr1_mini.core.distributed import n_processes
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import flag_name, get, with_options
from searchr1_mini.run.memory import GB, TEMPLATE_TOKENS, Preflight, predict
from searchr1_mini.run.shape import Shape, model_shape

MALLOC_BLOCK = 2**20  # bytes from which malloc gives a freed block back
WORTH_IT = 2 * GB  # of tensors; below it the page faults cost more than the memory is worth, unless that is scarce
COPY_ROOM = 0.85  # share of the memory up to which --rollout-weights auto fills it; predictions are off by up to 12 %


def predictor(source: str, device: Any, dtype: Any, questions: Sequence[str]) -> Callable[[TrainConfig], Preflight]:
    """Returns what predicts any config's peak on a device, for this model and these questions.

    Raises:
        UserError: there is no such model.
    """
    shape, longest = load_shape(source), max((len(question.encode()) for question in questions), default=0)
    on_gpu = device.type != "cpu"
    held = 0.0 if on_gpu else resident_bytes()
    return lambda config: predict(config, shape, dtype.itemsize, on_gpu, longest, held)


def check(config: TrainConfig, source: str, device: Any, dtype: Any, questions: Sequence[str]) -> TrainConfig:
    """Prints the prediction for a run that is about to load its model, and refuses one that does not fit.

    Returns:
        The config, with `--rollout-weights` settled by what fits.

    Raises:
        UserError: the peak is above `--memory-limit` or what is free; names the flags that fit.
    """
    if not config.weights.memory_check:
        return config
    predicted = predictor(source, device, dtype, questions)
    room = room_for(config, device)
    unpacked = with_options(config, rollout_weights="dequantized")
    if (
        config.weights.load_in_4bit
        and config.weights.rollout_weights == "auto"
        and predicted(unpacked).peak <= COPY_ROOM * room
    ):
        config = unpacked
    expected = predicted(config)
    print(f"memory: {expected.line()} of {room / GB:.1f} GB", flush=True)
    refuse_beyond(room, config, predicted)
    if device.type == "cpu" and (expected.peak - expected.held > WORTH_IT or 2 * expected.peak > room):
        give_back_large_blocks()
    return config


def unpacks(config: TrainConfig, source: str, device: Any, dtype: Any) -> bool:
    """Tells whether rollouts alone, as in an evaluation or a chat, read a 4-bit base unpacked to `dtype`.

    That is `--rollout-weights`; auto is what there is room for.

    Raises:
        UserError: there is no such model.
    """
    if not config.weights.load_in_4bit or config.weights.rollout_weights == "base":
        return False
    unpacked = with_options(config, rollout_weights="dequantized")
    if config == unpacked:
        return True
    return predictor(source, device, dtype, ())(unpacked).total("rollout") <= COPY_ROOM * room_for(config, device)


def room_for(config: TrainConfig, device: Any) -> float:
    """Returns the bytes that a run may hold on a device: what is there, up to `--memory-limit`."""
    return min(available_bytes(device), (config.weights.memory_limit or math.inf) * GB)


def refuse_beyond(room: float, config: TrainConfig, predicted: Callable[[TrainConfig], Preflight]) -> None:
    """Refuses a config whose predicted peak is above `room` bytes.

    Raises:
        UserError: names the phase, and the flags that fit.
    """
    expected = predicted(config)
    if expected.peak <= room:
        return
    phase = max(expected.phases, key=expected.total)
    changes = flags_that_fit(config, predicted, room)
    if changes is None:
        remedy = "no flags for its batch sizes and lengths fit; take a smaller --model"
    else:
        needed = predicted(with_options(config, **changes)).peak / GB
        remedy = f"this fits, with {needed:.1f} GB: {' '.join(map(as_flag, changes, changes.values()))}"
    raise UserError(
        f"the run would take {expected.peak / GB:.1f} GB (in its {phase} phase) of {room / GB:.1f} GB; {remedy} "
        "(--no-memory-check goes on anyway)"
    )


def as_flag(name: str, value: Any) -> str:
    """Spells a change as a flag: `--gradient-checkpointing`, `--max-total-tokens 1024`."""
    return flag_name(name) if value is True else f"{flag_name(name)} {value}"


def ways_to_save(config: TrainConfig) -> Iterator[tuple[str, list]]:
    """Yields options with the values to try, mildest first; in the order of what they cost.

    The first three cost speed at most, checkpointing a second forward, NF4 precision, a shorter context reward.
    """
    smallest = (
        TEMPLATE_TOKENS[config.data.template]
        + 64
        + max(config.rollout.max_new_tokens, config.rollout.max_observation_tokens, 15)
    )
    yield "tokens_per_micro_batch", halvings(config.optimization.tokens_per_micro_batch, 1)
    yield "rollout_batch_size", halvings(config.rollout.rollout_batch_size, 1)
    yield "rollout_weights", ["base"] if config.weights.rollout_weights == "dequantized" else []
    yield "gradient_checkpointing", [] if config.weights.gradient_checkpointing else [True]
    can_pack = config.weights.lora_rank > 0 and not config.weights.load_in_4bit and find_spec("bitsandbytes")
    yield "load_in_4bit", [True] if can_pack else []
    yield "max_total_tokens", halvings(config.rollout.max_total_tokens, smallest)
    yield "tokens_per_micro_batch", halvings(config.optimization.tokens_per_micro_batch, 1)


def halvings(value: int, least: int) -> list[int]:
    """Halves a number down to `least`: 12 -> [6, 3, 1]."""
    values = []
    while (value := value // 2) >= least:
        values.append(value)
    return values


def flags_that_fit(
    config: TrainConfig, predicted: Callable[[TrainConfig], Preflight], room: float
) -> dict[str, Any] | None:
    """Finds the changes that bring every phase within `room`, none larger than needed; None where nothing does.

    Each option is lowered as long as that helps, until all fits; then each, dearest first, is given back what it can.
    """

    def excess(changes: dict[str, Any]) -> float:
        tried = predicted(with_options(config, **changes))
        return sum(max(tried.total(phase) - room, 0) for phase in tried.phases)

    changes: dict[str, Any] = {}
    for name, values in ways_to_save(config):
        for value in values:
            if excess(changes | {name: value}) < excess(changes):
                changes[name] = value
    if excess(changes) > 0:
        return None
    for name, values in reversed(list(ways_to_save(config))):
        for value in [get(config, name), *values]:
            if name in changes and excess(changes | {name: value}) == 0:
                changes[name] = value
                break
    return {name: value for name, value in changes.items() if value != get(config, name)}


def load_shape(source: str) -> Shape:
    """Returns the shape of a folder's or hub id's model, from its config.json alone.

    Raises:
        UserError: there is no such model.
    """
    from searchr1_mini.models.bases import load_config

    return model_shape(load_config(source))


def resident_bytes() -> float:
    """Returns the memory that this process holds."""
    import psutil

    return psutil.Process().memory_info().rss


def give_back_large_blocks() -> None:
    """Has glibc's malloc give blocks of `MALLOC_BLOCK` back as soon as they are free.

    By default it keeps freed blocks up to 32 MiB and cuts them up, and a run holds up to twice what its tensors take.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(ctypes.c_int(-3), ctypes.c_int(MALLOC_BLOCK))  # M_MMAP_THRESHOLD
            libc.mallopt(ctypes.c_int(-1), ctypes.c_int(8 * MALLOC_BLOCK))  # M_TRIM_THRESHOLD


def give_back_free_memory() -> None:
    """Has glibc's malloc give back what is free, after loading and between two phases of a step: their blocks are of
    other sizes."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def available_bytes(device: Any) -> float:
    """Returns the bytes that this process may hold on a device, those that it has already included."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    free = min(psutil.virtual_memory().available, cgroup_room(Path("/sys/fs/cgroup")))
    return resident_bytes() + free / n_processes()


def cgroup_room(folder: Path) -> float:
    """Returns the bytes that a container may still take: its limit less what cannot be dropped; inf without a limit."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        base = folder if limit == "memory.max" else folder / "memory"
        try:
            statistics = dict(line.split() for line in (base / "memory.stat").read_text().splitlines())
            cached = sum(int(statistics.get(name, 0)) for name in ("inactive_file", "active_file"))
            in_use = int((base / used).read_text()) - cached
            return int((base / limit).read_text()) - in_use
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return math.inf
