"""Share of padding in the tokens that a run trained on: `python benchmarks/padding.py RUN`.

Micro-batches are formed again as the run formed them, by the same functions, from the lengths in its rollouts. Without
RUN: ragged lengths as real models have them, 128 drawn a step from a lognormal of median 900 tokens between 200 and
4,000, in micro-batches of 8,192.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from searchr1_mini.algorithms import zero_variance
from searchr1_mini.batch import micro_batches, mini_batches
from searchr1_mini.config import TrainConfig
from searchr1_mini.plan import saved_config
from searchr1_mini.tracking import read_jsonl
from searchr1_mini.training import Rollouts, rows_to_train_on

BAR = 0.10


def main() -> None:
    """Prints one line a step, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run with its rollouts")
    parser.add_argument("--budget", type=int, help="tokens a micro-batch (default: the run's, else 8192)")
    args = parser.parse_args()
    steps = of_run(args.run, args.budget) if args.run else drawn(args.budget or 8192)
    print(f"{'step':>6}{'micro-batches':>15}{'tokens':>10}{'padding':>10}{'share':>9}")
    totals = np.zeros(3, dtype=int)
    for step, parts in steps:
        real = sum(map(sum, parts))
        counts = np.array([len(parts), real, sum(len(part) * max(part) for part in parts) - real])
        totals += counts
        tell(str(step), *counts)
    tell("all", *totals)
    print(f"bar: below {BAR:.0%}; {'met' if totals[2] < BAR * totals[1:].sum() else 'MISSED'}")


def tell(step: str, n_parts: int, real: int, padding: int) -> None:
    """A line of the table; the share is of all tokens that go through the model."""
    print(f"{step:>6}{n_parts:>15}{real:>10}{padding:>10}{padding / max(real + padding, 1):>9.1%}")


def of_run(run: Path, budget: int | None) -> Iterator[tuple[int, list[list[int]]]]:
    """For each step of a run the lengths of the rows in each micro-batch that was trained on."""
    saved = saved_config(run)
    config = TrainConfig(**{f.name: saved[f.name] for f in fields(TrainConfig) if f.name in saved})
    updates = 0
    for path in sorted((run / "rollouts").glob("step-*.jsonl")):
        rows = read_jsonl(path)
        group_ids = [index // config.group_size for index in range(len(rows))]
        rewards = [row["reward"] for row in rows]
        is_flat = zero_variance(torch.tensor(rewards), torch.tensor(group_ids))
        endings = [SimpleNamespace(finish_reason=row["finish_reason"]) for row in rows]
        kept = rows_to_train_on(config, Rollouts(endings, [], rewards, group_ids, None), is_flat)
        lengths = [sum(len(segment["token_ids"]) for segment in rows[index]["segments"]) for index in kept]
        groups = [group_ids[index] for index in kept]
        parts: list[list[int]] = []
        for _ in range(config.epochs if kept else 0):
            shuffle = torch.Generator().manual_seed(updates * 7919 + config.seed)  # as `update` seeds it
            for rows in filter(None, mini_batches(groups, config.mini_batches, shuffle)):
                parts += cut([lengths[row] for row in rows], budget or config.tokens_per_micro_batch)
                updates += 1
        yield int(path.stem.removeprefix("step-")), parts


def drawn(budget: int, n_steps: int = 20) -> Iterator[tuple[int, list[list[int]]]]:
    """Two mini-batches of 64 a step with lengths of a lognormal."""
    generator = np.random.default_rng(0)
    for step in range(1, n_steps + 1):
        lengths = np.clip(generator.lognormal(np.log(900), 0.7, (2, 64)), 200, 4000).astype(int)
        yield step, [part for rows in lengths.tolist() for part in cut(rows, budget)]


def cut(lengths: list[int], budget: int) -> list[list[int]]:
    """The lengths of an optimiser step, by micro-batches."""
    return [[lengths[row] for row in rows] for rows in micro_batches(lengths, budget)]


if __name__ == "__main__":
    main()
