"""Does a run grow? Resident memory and seconds per token over many steps: `python benchmarks/growth.py --steps 500`.

A small run of GRPO on the tiny base through the training loop's own functions: steps, log, TensorBoard, evaluations and
checkpoints. Memory is read after each step; a line is fitted by least squares to the steps after the warm-up, in which
caches fill.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import psutil

from searchr1_mini.core.training import train_policy
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.training import configured_reward
from searchr1_mini.run.variant import configured_variant
from searchr1_mini.storage.files import read_metrics

BAR = 1.0  # MB per 100 steps


def main() -> None:
    """Trains, and prints memory and time along the way and their growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--warm-up", type=int, default=100, help="steps that are left out of the fit")
    parser.add_argument("--questions", type=int, default=2, help="a step")
    parser.add_argument("--group", type=int, default=4)
    args = parser.parse_args()
    if args.steps < args.warm_up + 50:
        parser.error("--steps must be at least 50 more than --warm-up")
    with tempfile.TemporaryDirectory() as folder:
        size = dict(steps=args.steps, questions_per_step=args.questions, group_size=args.group, max_turns=2)
        rhythm = dict(mini_batches=1, eval_questions=8, eval_every=100, save_every=50)
        sound = dict(learning_rate=3e-4, drop_zero_variance=False)  # so many steps at 3e-3 collapse, and lengths grow
        config = resolve(make(TrainConfig, output_dir=f"{folder}/run", **size, **rhythm, **sound))
        run = open_run(config)
        steps, found = run.steps, []
        run.steps = lambda: watched(steps(), found)
        with run.tracker, redirect_stdout(Path(os.devnull).open("w")):
            parts = run.policy, run.critic, run.environment, run.optimizer
            train_policy(*parts, config, run, configured_reward(config), configured_variant(config))
        rows = read_metrics(run.folder / "metrics.jsonl")
    memory, seconds = np.array(found), np.array([row["seconds"] for row in rows])
    tokens = seconds * np.array([row["tokens_per_second"] for row in rows])
    print(f"{'step':>6}{'memory, MB':>12}{'ms/token':>12}")
    for step in range(50, args.steps + 1, 50):
        part = slice(step - 50, step)
        print(f"{step:>6}{memory[step - 1]:>12.1f}{1000 * seconds[part].sum() / tokens[part].sum():>12.4f}")
    report(memory[args.warm_up :], seconds[args.warm_up :], tokens[args.warm_up :])


def watched(steps: Iterator[int], found: list[float]) -> Iterator[int]:
    """The steps of a run; adds the resident memory in MB after each, its evaluation and its checkpoint."""
    for step in steps:
        found += [resident_mb()] if step > 1 else []
        if step % 50 == 0:
            print(f"step {step}", file=sys.stderr, flush=True)
        yield step
    found.append(resident_mb())


def resident_mb() -> float:
    """This process's memory, in 10^6 bytes; glibc first gives back what is free, which would hide what is kept."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e6


def report(memory: np.ndarray, seconds: np.ndarray, tokens: np.ndarray) -> None:
    """Prints the slopes of the steps after the warm-up."""
    steps = np.arange(len(memory))
    slope, _ = np.polyfit(steps, memory, 1)
    verdict = "met" if slope * 100 < BAR else "MISSED"
    print(f"memory: {slope * 100:+.2f} MB per 100 steps, bar: below {BAR}, {verdict}")
    part = len(steps) // 4
    early, late = (1000 * seconds[p].sum() / tokens[p].sum() for p in (slice(part), slice(-part, None)))
    print(f"time: {early:.4f} ms a token in the first quarter, {late:.4f} in the last, ratio {late / early:.2f}")
    per_token, fixed = np.polyfit(tokens, seconds, 1)
    r = np.corrcoef(tokens, seconds)[0, 1]
    print(f"a step takes {1000 * fixed:.0f} ms and {1000 * per_token:.4f} ms per token (correlation {r:.3f})")


if __name__ == "__main__":
    main()
