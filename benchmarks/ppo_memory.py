"""Peak memory of a training step, PPO against GRPO, on one 4-bit base: `python benchmarks/ppo_memory.py`.

PPO adds a second adapter, a value head and their optimizer state, not a second model. Each algorithm runs in a process
of its own on the same random Qwen2; the peak is that of a step alone, loading left out. On a GPU it is what torch
allocated, on a CPU the process's resident memory (Linux; glibc is told to give freed memory back at once). A local
model can be named instead of the random one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from searchr1_mini.run.run import Run

SETTINGS = {
    "grpo": {"questions_per_step": 2, "group_size": 4, "drop_zero_variance": False},
    "ppo": {"questions_per_step": 8, "group_size": 1, "drop_zero_variance": None},
}
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Runs both algorithms and prints their peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a local model instead of a random one")
    parser.add_argument("--hidden", type=int, default=1024, help="of the random model")
    parser.add_argument("--layers", type=int, default=8, help="of the random model")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(f"peak {measure(args.measure, args.model):.3f}")
        return
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or save_random_model(Path(folder), args.hidden, args.layers)
        peaks = {}
        for algorithm in SETTINGS:
            command = [sys.executable, __file__, "--measure", algorithm, "--model", model]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC)
            peaks[algorithm] = float(child.stdout.split("peak ")[-1])
    print(f"{'algorithm':10} {'peak, GB':>9} {'against GRPO':>13}")
    for algorithm, peak in peaks.items():
        print(f"{algorithm:10} {peak:9.3f} {peak / peaks['grpo']:13.3f}")


def save_random_model(folder: Path, hidden: int, layers: int) -> str:
    """A random Qwen2 with the tiny base's tokenizer."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from searchr1_mini.options.resolve import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny"))
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(algorithm: str, model: str) -> float:
    """Peak memory, in 10^9 bytes, of a training step after everything is loaded."""
    from searchr1_mini.options.config import TrainConfig
    from searchr1_mini.options.defaults import TINY
    from searchr1_mini.options.nested import make
    from searchr1_mini.options.resolve import resolve
    from searchr1_mini.run.opening import open_run

    with tempfile.TemporaryDirectory() as folder:
        values = TINY | {"model": model, "load_in_4bit": True, "gradient_checkpointing": True, "lora_rank": 32}
        values |= {"max_new_tokens": 16, "max_turns": 1, "eval_questions": 2, "tokens_per_micro_batch": 1024}
        values |= {"weight_decay": 1e-4}  # so that a step without a reward makes an update too
        values |= {"algorithm": algorithm, "output_dir": f"{folder}/run", "tensorboard": False}
        run = open_run(resolve(make(TrainConfig, **values | SETTINGS[algorithm])))
        reset_peak()
        train_steps(run, 1)
        return peak_gb()


def train_steps(run: Run, n: int) -> None:
    """The first steps of a run, without the evaluations and checkpoints between them."""
    from searchr1_mini.core.training import train_policy
    from searchr1_mini.run.training import configured_reward

    def steps() -> Iterator[int]:
        for step in range(1, n + 1):
            run.step, run.step_began = step, time.perf_counter()
            yield step

    run.steps = steps
    train_policy(run.policy, run.critic, run.environment, run.optimizer, run.config, run, configured_reward(run.config))


def reset_peak() -> None:
    """Forgets what loading took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb() -> float:
    """The peak since `reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
