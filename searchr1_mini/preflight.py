"""Predicts the memory of a run, and refuses one that does not fit.

python -m searchr1_mini.preflight --model Qwen2.5-3B --preset 12gb --memory-limit 12
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import math
from collections.abc import Sequence
from textwrap import fill

from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import resolve, resolve_model


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table of a run on a GPU (or `--device cpu`), and refuses it beyond `--memory-limit`."""
    about = "Predicts a run's memory: options of train.py."
    config = resolve(*parse_asked(TrainConfig, "python -m searchr1_mini.preflight", about, argv))
    source = resolve_model(config.run.model)

    import torch

    from searchr1_mini.models.loading import pick_dtype
    from searchr1_mini.run.memory import GB, predict
    from searchr1_mini.run.preflight import load_shape, refuse_beyond  # heavy: after the arguments are known to be good

    shape, device = load_shape(source), config.run.device.replace("auto", "cuda")
    # a GPU, which need not be here, computes in 16 bits unless it is told otherwise
    is_short = device == "cuda" and config.weights.dtype in ("auto", "fast")
    width = 2 if is_short else pick_dtype(config.weights.dtype, torch.device(device)).itemsize
    lines = predict(config, shape, width, device != "cpu").table().splitlines()
    print("\n".join(fill(line, 80, subsequent_indent=" " * line.index(":")) for line in lines), flush=True)
    refuse_beyond(
        (config.weights.memory_limit or math.inf) * GB,
        config,
        lambda tried: predict(tried, shape, width, device != "cpu"),
    )


if __name__ == "__main__":
    run_command(main)
