"""Memory and time of log-probs at Qwen2.5's vocabulary, ours against a full softmax.

    python benchmarks/logprob_memory.py

Forward and backward to the hidden states, each in a process of its own; memory is the peak above what is there before
(Linux). The values and gradients of both are compared on as many tokens as `--check` says.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch

from searchr1_mini.core.logprobs import token_logprobs

MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory is given back at once


def main() -> None:
    """Prints both, their ratio, and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896, help="that of Qwen2.5-0.5B")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--check", type=int, default=256)
    parser.add_argument("--measure", choices=("ours", "full"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    found = {}
    for name in ("ours", "full"):
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC)
        if done.returncode:
            print(f"{name:>5}: does not fit into this machine")
            continue
        seconds, gigabytes = found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:>5}: {seconds:.1f} s, {gigabytes:.2f} GB more than before", flush=True)
    if len(found) == 2:
        print(f"time {found['ours'][0] / found['full'][0]:.2f} x, memory {found['ours'][1] / found['full'][1]:.3f} x")
    args.rows, args.tokens = 1, args.check
    (ours, our_gradient), (full, full_gradient) = (run(args, name) for name in ("ours", "full"))
    values, gradients = (ours - full).abs().max().item(), (our_gradient - full_gradient).abs().max().item()
    print(f"largest difference: log-probs {values:.1e}, gradients {gradients:.1e}")


def measure(args: argparse.Namespace) -> tuple[float, float]:
    """Seconds, and GB of peak memory above the start."""
    hidden, head, targets = inputs(args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    logprobs_of(args.measure, hidden, head, targets).sum().backward()
    seconds = time.perf_counter() - began
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9


def run(args: argparse.Namespace, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and their gradient with respect to the hidden states."""
    hidden, head, targets = inputs(args)
    logprobs = logprobs_of(name, hidden, head, targets)
    logprobs.sum().backward()
    return logprobs.detach(), hidden.grad


def inputs(args: argparse.Namespace) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    """Hidden states, a frozen head and targets, from a fixed seed."""
    torch.manual_seed(0)
    head = torch.nn.Linear(args.hidden, args.vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(args.rows, args.tokens, args.hidden, requires_grad=True)
    return hidden, head, torch.randint(args.vocabulary, (args.rows, args.tokens))


def logprobs_of(name: str, hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Ours, or the log-softmax of all logits at once."""
    if name == "ours":
        return token_logprobs(hidden, head, targets, torch.ones_like(targets, dtype=torch.bool), 1.0)[0]
    return head(hidden).log_softmax(-1).gather(-1, targets[..., None])[..., 0]


if __name__ == "__main__":
    main()
