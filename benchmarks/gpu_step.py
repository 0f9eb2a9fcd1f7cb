"""What a card does with Qwen2.5-3B's exact shape, random weights: `python benchmarks/gpu_step.py`.

One table, in five parts, each in a process of its own; `--results FILE` keeps what is done, and what is there of this
card, with these flags, is not measured again.

- decode: bfloat16 with LoRA, 8, 32 and 64 rows at 1,000 tokens: tokens per second, ms per step beside the time it takes
  to read the memory that a step needs (all weights once, and the KV cache; the bandwidth is that of a copy, measured
  in the same run), and calls of ATen that the host makes, for the stacked forward and for transformers' own. Rows
  that do not fit are halved.
- generate: the same rows by transformers' `generate`, prompts and new tokens alike, sampled from all of the vocabulary.
- 12gb, 16gb, 24gb: NF4 and LoRA with that preset, the process held to so much memory: seconds and peak of each phase of
  a step of 4 questions x 8 whose contexts fill up, after a small one, and the peak that the preflight predicts.

A part that fails says why, and the others are measured all the same. Other flags are those of train.py, for the
presets:

    python benchmarks/gpu_step.py --part 12gb --shape Qwen2.5-1.5B
    python benchmarks/gpu_step.py --part 24gb --rollout-weights base
    python benchmarks/gpu_step.py --part 24gb --no-gradient-checkpointing --tokens-per-micro-batch 4096

On a CPU (`--shape small --device cpu`) it shows that it runs; memory is then that of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from launches import Calls
from ppo_memory import peak_gb, reset_peak, train_steps
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from searchr1_mini.core import training
from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.errors import UserError, is_out_of_memory
from searchr1_mini.core.methods import Finish, Generate, Method, Observe, Prompt, Search
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.core.rollout import rollout
from searchr1_mini.core.training import Rollouts
from searchr1_mini.models.loading import pick_device
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.preflight import predictor
from searchr1_mini.run.run import Run

SHAPES = {  # hidden size, layers, heads, KV heads, intermediate size, vocabulary, tied
    "Qwen2.5-0.5B": (896, 24, 14, 2, 4864, 151_936, True),
    "Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, 151_936, True),
    "Qwen2.5-3B": (2048, 36, 16, 2, 11_008, 151_936, True),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18_944, 152_064, False),
    "small": (256, 2, 4, 2, 512, 4096, True),
}


PARTS = ("decode", "generate", "12gb", "16gb", "24gb")
ROWS, LENGTH, STEPS = (8, 32, 64), 1000, 40


def main() -> None:
    """Measures each part that has no result yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="Qwen2.5-3B")
    parser.add_argument("--part", choices=PARTS, help="measure this one alone")
    parser.add_argument("--results", type=Path, default=Path("gpu_step.json"))
    parser.add_argument(
        "--model", type=Path, help="folder of the random model, made where it is missing [default: a temporary one]"
    )
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=150, help="tokens per turn")
    parser.add_argument("--observation", type=int, default=500, help="tokens per observation, at most the preset's")
    args, flags = parser.parse_known_args()
    results = kept(args.results)
    how = {"card": card_name(flags), "shape": args.shape, "flags": flags}
    how |= {name: getattr(args, name) for name in ("questions", "group", "new", "observation")}
    is_done = {part for part in PARTS if all(results.get(part, {}).get(name) == how[name] for name in how)}
    missing, failed = [args.part] if args.part else [part for part in PARTS if part not in is_done], []
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or Path(folder) / "model"
        if missing and not args.model.exists():
            save_random(args.model, *SHAPES[args.shape])
        if args.part:
            results[args.part] = how | {"rows": measure(args, flags)}
            args.results.write_text(json.dumps(results, indent=1))
            return print_table({args.part: results[args.part]})
        for part in missing:
            own = ["--part", part, "--model", str(args.model)]
            if subprocess.run([sys.executable, __file__, *sys.argv[1:], *own]).returncode:
                failed.append(part)
    print(f"all of {args.results}:")
    print_table(kept(args.results))
    if failed:
        raise UserError(f"not measured, for what is told above: {', '.join(failed)}; they may fit with another --shape")


def kept(path: Path) -> dict[str, Any]:
    """The results of every part that was measured before."""
    return json.loads(path.read_text()) if path.is_file() else {}


def card_name(flags: list[str]) -> str:
    """What computes: `--device cpu` among the flags of train.py, or else a GPU where there is one."""
    device = parse(TrainConfig, "gpu_step.py", __doc__.splitlines()[0], flags).run.device
    return torch.cuda.get_device_name() if pick_device(device).type == "cuda" else "CPU"


def measure(args: argparse.Namespace, flags: list[str]) -> list[dict[str, Any]]:
    """The rows of one part's table."""
    if args.part.endswith("gb") and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, int(args.part.removesuffix("gb")) * 1e9 / total))
    flags = [*flags, "--questions-per-step", str(args.questions), "--group-size", str(args.group), *flags_of(args.part)]
    with tempfile.TemporaryDirectory() as folder:
        config = parse(TrainConfig, "gpu_step.py", __doc__.splitlines()[0], flags)
        run = open_run(resolve(with_options(config, model=str(args.model), output_dir=f"{folder}/run")))
        work = {"decode": measure_decode, "generate": measure_generate}.get(args.part, measure_preset)
        return work(run, args)


def flags_of(part: str) -> list[str]:
    """What train.py is told for a part. One that only decodes holds far less than the run that the check counts, and
    takes fewer rows where they do not fit."""
    flags = ["--no-tensorboard", "--dataset", "world", "--template", "short"]
    if part.endswith("gb"):
        return [*flags, "--preset", part, "--memory-limit", part.removesuffix("gb")]
    flags += ["--no-load-in-4bit", "--rollout-batch-size", str(max(ROWS)), "--max-total-tokens", str(LENGTH + STEPS)]
    return [*flags, "--no-memory-check"]


def save_random(folder: Path, hidden, layers, heads, kv_heads, intermediate, vocabulary, tied) -> None:
    """A random Qwen2 in bfloat16 with the tiny base's tokenizer; it never ends a turn by itself."""
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, dtype=torch.bfloat16,
        max_position_embeddings=32_768, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)  # in bfloat16 from the start
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # a process of its own measures
    AutoTokenizer.from_pretrained(resolve_model("tiny")).save_pretrained(folder)


def measure_decode(run: Run, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Decode steps against the memory's limit, by rows and forward."""
    bandwidth = copy_bandwidth(run.policy.device)
    return with_rows_that_fit(lambda n_rows: decode_rows(run.policy, bandwidth, n_rows))


def with_rows_that_fit(work: Callable[[int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a table that `work` measures for each of `ROWS`; for half of them, and half again, if memory runs
    out."""
    table, most = [], 0
    for wanted in ROWS:
        n_rows = wanted
        while n_rows > most:
            try:
                table += work(n_rows)
                most = n_rows
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                print(f"{n_rows} rows do not fit into memory", file=sys.stderr)
                n_rows //= 2
            torch.cuda.empty_cache()
    if not table:
        raise UserError("not even one row fits into memory; take a smaller --shape")
    return table


def decode_rows(policy: Policy, bandwidth: float, n_rows: int) -> list[dict[str, Any]]:
    """So many rows by either forward, against the time that reading the memory of a step takes."""
    rows = []
    for policy.stacks in (True, False):
        with policy.for_rollouts():
            seconds, calls, decoder = decode_seconds(policy, n_rows)
            tensors = {t.data_ptr(): t for t in [*policy.model.parameters(), *policy.model.buffers()]}
            weights = sum(t.numel() * t.element_size() for t in tensors.values())
        stores = [*decoder.cache.keys, *decoder.cache.values]
        cache = n_rows * LENGTH * sum(t.shape[1] * t.shape[3] * t.element_size() for t in stores)
        floor = (weights + cache) / bandwidth
        rows.append({"rows": n_rows, "forward": "stacked" if policy.stacks else "transformers",
                     "tokens/s": n_rows / seconds, "ms": 1e3 * seconds, "floor, ms": 1e3 * floor,
                     "ratio": seconds / floor, "host calls": calls})  # fmt: skip
    return rows


def decode_seconds(policy: Policy, n_rows: int) -> tuple[float, int, Decoder]:
    """Median seconds of a decode step of so many rows, the host's calls in one, and the decoder."""
    decoder = Decoder(policy, n_rows=n_rows, max_length=LENGTH + STEPS, temperature=1.0, seed=0)
    for key in range(n_rows):
        decoder.start(key, prompt_of(key))
        decoder.generate(key, ("\0never",), STEPS + 1)
    times = []
    for _ in range(STEPS - 1):
        began = time.perf_counter()
        decoder.step()
        times.append(time.perf_counter() - began)
    with Calls() as calls:
        decoder.step()
    return statistics.median(times[STEPS // 2 :]), calls.work().total(), decoder


def prompt_of(key: int) -> list[int]:
    """Ids of a prompt of its own for each row, such that decoding ends at `LENGTH`."""
    return [5 + key % 100] + [7] * (LENGTH - STEPS)


def measure_generate(run: Run, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Prompts and so many new tokens, prefill included, by transformers' `generate` and by ours."""
    return with_rows_that_fit(lambda n_rows: generate_rows(run.policy, n_rows))


def generate_rows(policy: Policy, n_rows: int) -> list[dict[str, Any]]:
    """So many rows either way; both sample from all of the vocabulary."""
    rows, prompts = [], torch.tensor([prompt_of(key) for key in range(n_rows)], device=policy.device)

    def usual() -> None:
        policy.model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=STEPS, do_sample=True, top_k=0,
            pad_token_id=0,
        )  # fmt: skip

    with torch.no_grad(), policy.for_rollouts():
        for name, work in (("generate", usual), ("ours", lambda: decode_seconds(policy, n_rows))):
            work()
            seconds = phase({}, name, work)[1]
            rows.append({"rows": n_rows, "way": name, "tokens/s": n_rows * STEPS / seconds, "seconds": seconds})
    return rows


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy moves, read and written."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * source.numel() * 4 / min(times)


def measure_preset(run: Run, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rollout, log-probs and update of one step, after a small one that warms up and gives AdamW its moments."""
    steps: list[dict[str, tuple[float, float]]] = []

    def timed(name: str, function: Callable) -> Callable:
        return lambda *args, **kwargs: phase(steps[-1], name, lambda: function(*args, **kwargs))[0]

    def collect(*_) -> Rollouts:
        steps.append({})
        return timed("rollout", roll)(run, args, is_small=len(steps) == 1)

    training.collect, training.prepare_grpo = collect, timed("log-probs", training.prepare_grpo)
    run.optimizer.step = timed("update", run.optimizer.step)
    train_steps(run, 2)
    predicted = predictor(run.config.run.model, run.policy.device, run.policy.dtype, ())(run.config)
    rows = [{"phase": name, "seconds": s, "peak, GB": peak} for name, (s, peak) in steps[-1].items()]
    for row in rows:
        row["predicted, GB"] = predicted.total(row["phase"]) / 1e9 if row["phase"] in predicted.phases else math.nan
    print(predicted.table(), file=sys.stderr)
    return rows


def phase(phases: dict[str, tuple[float, float]], name: str, work: Callable) -> tuple[Any, float]:
    """What the work returns, and its seconds, added to those of the phase, whose highest peak is kept."""
    reset_peak()
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    seconds, peak = phases.get(name, (0.0, 0.0))
    phases[name] = seconds + took, max(peak, peak_gb())
    return result, took


def roll(run: Run, args: argparse.Namespace, is_small: bool = False) -> Rollouts:
    """Rolls out conversations that fill their contexts, every other one paid; or, as a small one, 2 rows of 2 turns."""
    words = "the city of Oslo has a mayor named Ada Brook who works for Amber Works " * 60

    class Same:
        def search(self, queries, topk):
            return [[Hit(Passage("", "t", words), 1.0)] for _ in queries]

    def method(question: str) -> Method:
        yield Prompt(question)
        for _ in range(2 if is_small else sys.maxsize):  # ends where no observation fits any more
            yield Generate(("\0never",), args.new)
            yield Observe(passages=(yield Search("q", 1)))
        yield Finish(None, "turns")

    questions, group = (1, 2) if is_small else (args.questions, args.group)
    examples = [Example(str(n), f"{n} {words[:200]}", ("x",), "s") for n in range(questions) for _ in range(group)]
    limits = replace(run.limits, max_observation_tokens=min(args.observation, run.limits.max_observation_tokens))
    trajectories, stats = rollout(examples, method, run.policy, Same(), limits, temperature=1.0, seed=0)
    rewards = [float(index % 2) for index in range(len(examples))]
    groups = [index // group for index in range(len(examples))]
    return Rollouts(trajectories, examples, rewards, groups, [stats])


def print_table(results: dict[str, Any]) -> None:
    """Each part under its name, as a Markdown table."""
    for part, result in results.items():
        print(f"\n{part}: {result['shape']} on {result['card']}\n")
        names = list(result["rows"][0])
        print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
        for row in result["rows"]:
            cells = [f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run_command(main)
