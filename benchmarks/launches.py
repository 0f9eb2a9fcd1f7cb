"""Calls of ATen in a decode step: `python benchmarks/launches.py`.

A random Qwen2 of 36 layers, as Qwen2.5-3B has, but narrow, in bfloat16 with LoRA on every linear layer; 8 rows. Each
call that is no view is a kernel on a GPU, and costs the host some 10 us. Counted on the CPU where they reach
the kernels, sampling included. `rms_norm`, one kernel on a GPU and composed of others on a CPU, is counted once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.policy import Policy
from searchr1_mini.models.loading import load_policy
from searchr1_mini.options.resolve import resolve_model

VIEWS = set(
    "view _unsafe_view reshape as_strided expand transpose t permute unsqueeze squeeze slice select split "
    "split_with_sizes unbind alias detach empty empty_strided empty_like lift_fresh".split()
)  # and what only sets memory aside
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
MOST_CALLS, MOST_RATIO = 1100, 1.1  # of 36 layers; of what adapters may make of them


def main() -> None:
    """Counts, for transformers' forward with peft's adapters, and for the stacked one with and without adapters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_narrow(Path(folder), args.layers)
        policy = load_policy(
            folder, lora_rank=8, lora_alpha=16, load_in_4bit=False, dtype=torch.bfloat16, device=torch.device("cpu")
        )
        print(f"{'forward':34}{'calls':>8}{'products':>10}{'per layer':>11}")
        calls: dict[str, int] = {}
        for name, stacks, has_adapter in (
            ("transformers and peft", False, True), ("transformers, no adapters", False, False),
            ("stacked", True, True), ("stacked, no adapters", True, False),
        ):  # fmt: skip
            policy.stacks = stacks
            counts = of_step(policy, args.rows, has_adapter)
            calls[name] = counts.total()
            products = sum(counts[product] for product in PRODUCTS)
            print(f"{name:34}{calls[name]:>8}{products:>10}{calls[name] / args.layers:>11.1f}")
    print("\n".join(verdicts(calls["stacked"], calls["stacked, no adapters"])))


def verdicts(calls: int, without_adapters: int) -> list[str]:
    """A line for each aim: of the calls, and of their ratio to those of the same forward without adapters."""
    figures = (
        ("calls, stacked", f"{calls:,}", calls, MOST_CALLS),
        ("to those without adapters", f"{calls / without_adapters:.2f}", calls / without_adapters, MOST_RATIO),
    )
    return [
        f"{name}: {shown}, aim at most {most:,}: {'met' if value <= most else 'MISSED'}"
        for name, shown, value, most in figures
    ]


def save_narrow(folder: Path, layers: int) -> None:
    """A random Qwen2 with the tiny base's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny"))
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def of_step(policy: Policy, n_rows: int, has_adapter: bool) -> Counter[str]:
    """Calls of one decode step of so many rows, sampling included, by name."""
    with policy.reference() if not has_adapter else torch.no_grad(), policy.for_rollouts():
        decoder = Decoder(policy, n_rows=n_rows, max_length=64, temperature=1.0, seed=0)
        for key in range(n_rows):
            decoder.start(key, [5 + key, 6, 7])
            decoder.generate(key, ("\0never",), 10)
        decoder.step()
        decoder.step()
        with Calls() as calls:
            decoder.step()
    return calls.work()


class Calls(TorchDispatchMode):
    """Counts calls by name, and `rms_norm` as one."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.rms_norm = Counter(), F.rms_norm

    def __enter__(self):
        F.rms_norm = self.norm
        return super().__enter__()

    def __exit__(self, *error) -> None:
        F.rms_norm = self.rms_norm
        super().__exit__(*error)

    def work(self) -> Counter[str]:
        """The counts of what computes."""
        return Counter({name: n for name, n in self.counts.items() if name not in VIEWS})

    def norm(self, *args):
        """One call, whatever it is made of."""
        self.counts["rms_norm"] += 1
        with _disable_current_modes():
            return self.rms_norm(*args)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


if __name__ == "__main__":
    main()
