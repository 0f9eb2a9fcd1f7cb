"""Share of padding in the tokens that a run trained on: `python benchmarks/padding.py RUN`.

Micro-batches are formed again as the run formed them, by the same functions, from the lengths in its rollouts; beside
them what comes of filling each with rows in order of length up to the budget. Without RUN: ragged lengths as real
models have them, 128 a step from a lognormal of median 900 tokens between 200 and 4,000, in micro-batches of 8,192.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from searchr1_mini.core.algorithms import zero_variance
from searchr1_mini.core.batch import micro_batches
from searchr1_mini.core.experience import update_rows
from searchr1_mini.core.training import Rollouts, rows_to_train_on
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, options_of
from searchr1_mini.options.resolve import saved_config
from searchr1_mini.storage.files import read_jsonl

BAR = 0.10


def main() -> None:
    """Prints one line per step, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run with its rollouts")
    parser.add_argument("--budget", type=int, help="tokens a micro-batch (default: the run's, else 8192)")
    args = parser.parse_args()
    steps = of_run(args.run, args.budget) if args.run else drawn(args.budget or 8192)
    print(f"{'':>6}{'':>10}{'as trained':>26}{'filled to the budget':>26}")
    print(f"{'step':>6}{'tokens':>10}" + f"{'micro-batches':>16}{'padding':>10}" * 2)
    totals = np.zeros(5, dtype=int)
    for step, budget_, updates in steps:
        counts = [sum(map(sum, updates))]
        for cut in (micro_batches, filled):
            parts = [[lengths[row] for row in rows] for lengths in updates for rows in cut(lengths, budget_)]
            counts += [len(parts), sum(len(part) * max(part) for part in parts)]
        totals += counts
        tell(str(step), *counts)
    tell("all", *totals)
    print(f"bar: below {BAR:.0%}, {'met' if 1 - totals[0] / totals[2] < BAR else 'MISSED'}")


def tell(step: str, real: int, n_cut: int, cut: int, n_filled: int, filled: int) -> None:
    """A line of the table; shares are of all tokens that go through the model."""
    shares = [f"{n:>16}{1 - real / max(computed, 1):>10.1%}" for n, computed in ((n_cut, cut), (n_filled, filled))]
    print(f"{step:>6}{real:>10}" + "".join(shares))


def filled(lengths: list[int], budget: int) -> list[list[int]]:
    """The obvious way: rows in order of length, as many as the budget takes."""
    bins: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if not bins or (len(bins[-1]) + 1) * lengths[row] > budget:
            bins.append([])
        bins[-1].append(row)
    return bins


def of_run(run: Path, budget: int | None) -> Iterator[tuple[int, int, list[list[int]]]]:
    """For each step of a run its number, the budget, and the lengths of the rows of each optimizer step."""
    saved = saved_config(run)
    config = make(TrainConfig, **{name: saved[name] for name in options_of(TrainConfig) if name in saved})
    n_updates = 0
    for path in sorted((run / "rollouts").glob("step-*.jsonl")):
        rows = read_jsonl(path)
        group_ids = [index // config.optimization.group_size for index in range(len(rows))]
        rewards = [row["reward"] for row in rows]
        is_flat = zero_variance(torch.tensor(rewards), torch.tensor(group_ids))
        endings = [SimpleNamespace(finish_reason=row["finish_reason"]) for row in rows]
        rollouts = Rollouts(endings, rewards=rewards, group_ids=group_ids, is_flat=is_flat)
        kept = rows_to_train_on(rollouts, config)
        lengths = [sum(len(segment["token_ids"]) for segment in rows[index]["segments"]) for index in kept]
        updates: list[list[int]] = []
        if kept:
            passes = update_rows([group_ids[index] for index in kept], config.optimization, n_updates)
            updates = [[lengths[row] for row in mini] for minis in passes for mini in minis]
            n_updates += len(updates)
        yield int(path.stem.removeprefix("step-")), budget or config.optimization.tokens_per_micro_batch, updates


def drawn(budget: int, n_steps: int = 20) -> Iterator[tuple[int, int, list[list[int]]]]:
    """The same with lengths of a lognormal, two mini-batches of 64 a step."""
    generator = np.random.default_rng(0)
    for step in range(1, n_steps + 1):
        lengths = np.clip(generator.lognormal(np.log(900), 0.7, (2, 64)), 200, 4000).astype(int)
        yield step, budget, lengths.tolist()


if __name__ == "__main__":
    main()
