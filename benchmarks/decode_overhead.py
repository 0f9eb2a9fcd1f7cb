"""Milliseconds of a decode step of our loop against the bare forward at the same shape.

    python benchmarks/decode_overhead.py

The bare forward is transformers' own: one id a row, a cache of the same length, logits of every row, nothing sampled.
Ours is `Decoder.step`: it picks the rows, keeps a length for each, samples, and matches stop strings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rollout_speed import random_policy
from transformers import StaticCache

from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.policy import Policy


def main() -> None:
    """Prints one line a shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    policy = random_policy(args.hidden, args.layers)
    print(f"{'rows':>6}{'length':>8}{'ours ms':>10}{'bare ms':>10}{'ratio':>8}")
    with policy.for_rollouts(), torch.no_grad():
        for rows in args.rows:
            for length in args.lengths:
                ours = median_ms(our_step(policy, rows, length, args.steps), args.steps)
                bare = median_ms(bare_step(policy, rows, length, args.steps), args.steps)
                print(f"{rows:>6}{length:>8}{ours:>10.2f}{bare:>10.2f}{ours / bare:>8.2f}", flush=True)


def median_ms(step: Callable[[], object], n: int) -> float:
    """Median milliseconds of `n` steps, after two that are not counted."""
    times = []
    for _ in range(n + 2):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times[2:])[n // 2]


def our_step(policy: Policy, rows: int, length: int, steps: int) -> Callable[[], object]:
    """One token for every row through the decoder."""
    decoder = Decoder(policy, n_rows=rows, max_length=length + steps + 8, temperature=1.0, seed=0)
    for row in range(rows):
        decoder.start(row, [1 + row % 7] * length)
        decoder.generate(row, ("\x00never",), steps + 8)
    decoder.step()  # the prefill
    return decoder.step


def bare_step(policy: Policy, rows: int, length: int, steps: int) -> Callable[[], object]:
    """One forward of one id a row on a static cache of that length."""
    model = policy.causal_lm
    cache = StaticCache(config=model.config, max_cache_len=length + steps + 8)
    model(input_ids=torch.ones(rows, length, dtype=torch.long), past_key_values=cache, use_cache=True, logits_to_keep=1)
    ids = torch.ones(rows, 1, dtype=torch.long)
    return lambda: model(input_ids=ids, past_key_values=cache, use_cache=True)


if __name__ == "__main__":
    main()
