"""A training step on a real model's exact shape with random weights: `python benchmarks/gpu_step.py --preset 24gb`.

NF4 and LoRA as in train.py, groups of 8, turns and observations of fixed lengths. Prints seconds and peak memory of
each phase, and a decode step against the time in which the memory could be read that it needs: all weights once, and
the KV cache. The bandwidth is that of a copy, measured in the same run. Other flags are those of train.py:

    python benchmarks/gpu_step.py --preset 12gb --shape Qwen2.5-1.5B
    python benchmarks/gpu_step.py --rollout-weights base
    python benchmarks/gpu_step.py --rollout-weights dequantised --compile-decode
    python benchmarks/gpu_step.py --no-gradient-checkpointing --tokens-per-micro-batch 4096
    python benchmarks/gpu_step.py --fused-kernels

On a CPU (`--shape small --device cpu`) it shows that it runs; memory is then that of the process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from ppo_memory import peak_gb, reset_peak, train_steps
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from searchr1_mini.core import training
from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.methods import Finish, Generate, Method, Observe, Prompt, Search
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.core.rollout import rollout
from searchr1_mini.core.training import Rollouts
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.run import Run

SHAPES = {  # hidden size, layers, heads, KV heads, intermediate size, vocabulary, tied
    "Qwen2.5-0.5B": (896, 24, 14, 2, 4864, 151_936, True),
    "Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, 151_936, True),
    "Qwen2.5-3B": (2048, 36, 16, 2, 11_008, 151_936, True),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18_944, 152_064, False),
    "small": (256, 2, 4, 2, 512, 4096, True),
}


def main() -> None:
    """Loads, times each phase, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="Qwen2.5-3B")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--new", type=int, default=150, help="tokens a turn")
    parser.add_argument("--observation", type=int, default=400, help="tokens an observation")
    args, flags = parser.parse_known_args()
    flags += ["--questions-per-step", str(args.questions), "--group-size", str(args.group), "--no-tensorboard"]
    flags += ["--dataset", "world", "--template", "short"]
    with tempfile.TemporaryDirectory() as folder:
        save_random(Path(folder) / "model", *SHAPES[args.shape])
        config = parse(TrainConfig, "gpu_step.py", __doc__.splitlines()[0], flags)
        config = resolve(with_options(config, model=f"{folder}/model", output_dir=f"{folder}/run"))
        run = open_run(config)
        print(f"{args.shape}, {torch.cuda.get_device_name() if run.policy.device.type == 'cuda' else 'CPU'}, {flags}")
        print_decode(run, args)
        print_phases(run, args)


def save_random(folder: Path, hidden, layers, heads, kv_heads, intermediate, vocabulary, tied) -> None:
    """A random Qwen2 in bfloat16 with the tiny base's tokenizer; it never ends a turn by itself."""
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, dtype=torch.bfloat16,
        max_position_embeddings=32_768, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("tiny")).save_pretrained(folder)


def print_decode(run: Run, args: argparse.Namespace) -> None:
    """A decode step of as many rows as fit at once, 1,000 tokens into their contexts, against the memory's limit."""
    policy, limits = run.policy, run.limits
    n_rows = min(limits.n_rows, args.questions * args.group)
    length = min(1000, limits.max_total_tokens // 2)
    steps = 40
    with policy.for_rollouts():
        decoder = Decoder(policy, n_rows=n_rows, max_length=length + steps, temperature=1.0, seed=0)
        for key in range(n_rows):
            decoder.start(key, [5 + key % 100] + [7] * (length - steps))
            decoder.generate(key, ("\0never",), steps + 1)
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            decoder.step()
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times[steps // 2 :])
        tensors = {t.data_ptr(): t for t in [*policy.model.parameters(), *policy.model.buffers()]}
        weights = sum(t.numel() * t.element_size() for t in tensors.values())
    per_token = sum(t.shape[1] * t.shape[3] * t.element_size() for t in [*decoder.cache.keys, *decoder.cache.values])
    cache = n_rows * length * per_token
    bandwidth = copy_bandwidth(policy.device)
    print(
        f"decode: {n_rows} rows at {length} tokens, {n_rows / seconds:.0f} tokens/s, {1e3 * seconds:.1f} ms a step; "
        f"reading {weights / 1e9:.2f} GB of weights and {cache / 1e9:.2f} GB of cache at {bandwidth / 1e9:.0f} GB/s "
        f"takes {1e3 * (weights + cache) / bandwidth:.1f} ms"
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy moves, read and written."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * source.numel() * 4 / min(times)


def print_phases(run: Run, args: argparse.Namespace) -> None:
    """Rollout, log-probs and update of one step, after one to warm up."""
    steps: list[tuple[Rollouts, dict[str, tuple[float, float]]]] = []

    def timed(name: str, function: Callable) -> Callable:
        return lambda *arguments: phase(steps[-1][1], name, lambda: function(*arguments))

    def collect(*_) -> Rollouts:
        phases: dict[str, tuple[float, float]] = {}
        rollouts = phase(phases, "rollout", lambda: roll(run, args))
        steps.append((rollouts, phases))
        return rollouts

    training.collect, training.prepare_grpo = collect, timed("log-probs", training.prepare_grpo)
    run.optimizer.step = timed("update", run.optimizer.step)
    train_steps(run, 2)
    rollouts, phases = steps[-1]
    total = sum(seconds for seconds, _ in phases.values())
    lengths = torch.tensor([float(len(trajectory.token_ids)) for trajectory in rollouts.trajectories])
    n_sampled = sum(stats.tokens_sampled for stats in rollouts.stats)
    print(f"{len(lengths)} trajectories of {lengths.mean():.0f} tokens, {n_sampled} of them sampled")
    print(f"{'phase':10}{'seconds':>9}{'share':>8}{'tokens/s':>10}{'peak, GB':>10}")
    for name, (seconds, peak) in phases.items():
        print(f"{name:10}{seconds:>9.2f}{seconds / total:>8.0%}{lengths.sum() / seconds:>10.0f}{peak:>10.2f}")
    print(f"{'step':10}{total:>9.2f}{1:>8.0%}{lengths.sum() / total:>10.0f}{max(p for _, p in phases.values()):>10.2f}")
    checkpointing, budget = run.policy.gradient_checkpointing, run.config.optimization.tokens_per_micro_batch
    print(f"gradient checkpointing {checkpointing}, micro-batches of {budget}")


def phase(phases: dict[str, tuple[float, float]], name: str, work):
    """Runs it; adds its seconds to those of the phase, and notes the highest peak."""
    reset_peak()
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds, peak = phases.get(name, (0.0, 0.0))
    phases[name] = seconds + time.perf_counter() - began, max(peak, peak_gb())
    return result


def roll(run: Run, args: argparse.Namespace) -> Rollouts:
    """Rollouts of fixed lengths, every other one paid: so many turns, an observation after each but the last."""
    words = "the city of Oslo has a mayor named Ada Brook who works for Amber Works " * 60

    class Same:
        def search(self, queries, topk):
            return [[Hit(Passage("", "t", words), 1.0)] for _ in queries]

    def method(question: str) -> Method:
        yield Prompt(question)
        for turn in range(1, args.turns + 1):
            yield Generate(("\0never",), args.new)
            if turn < args.turns:
                yield Observe(passages=(yield Search("q", 1)))
        yield Finish(None, "turns")

    examples = [
        Example(str(n), f"{n} {words[:400]}", ("x",), "s") for n in range(args.questions) for _ in range(args.group)
    ]
    limits = replace(run.limits, max_observation_tokens=args.observation)
    trajectories, stats = rollout(examples, method, run.policy, Same(), limits, temperature=1.0, seed=0)
    rewards = [float(index % 2) for index in range(len(examples))]
    groups = [index // args.group for index in range(len(examples))]
    return Rollouts(trajectories, examples, rewards, groups, [stats])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run_command(main)
