"""Predicted against measured peak memory of each phase of a training step: `python benchmarks/memory_preflight.py`.

Each setting runs in a process of its own on a random Qwen2: the real functions of a run, an evaluation and two steps,
with conversations that fill the context. On a GPU the peak is what torch allocated, on a CPU the process's resident
memory (Linux; malloc as a run of more than 2 GB sets it). Exits with 1 if a prediction is off by more than
`--tolerance`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppo_memory import peak_gb, reset_peak, train_steps

PHASES = {"collect": "rollout", "prepare_grpo": "log-probs", "prepare_ppo": "log-probs"}  # functions of the loop
WORDS = "the city mayor of was born in".split()  # a token each


@dataclass(frozen=True)
class Setting:
    """A random Qwen2 and what its run changes from the tiny base's defaults; questions have `question_tokens`."""

    hidden: int = 512
    intermediate: int = 2048
    layers: int = 3
    vocabulary: int = 1664
    question_tokens: int = 400
    options: dict[str, Any] = field(default_factory=dict)


CHECKPOINTED = {"gradient_checkpointing": True, "tokens_per_micro_batch": 8192, "group_size": 8}
LONG = {"max_total_tokens": 2048}
SETTINGS = {
    "float32 LoRA": Setting(),
    "float32 LoRA, checkpointing": Setting(layers=4, options=CHECKPOINTED),
    "NF4 LoRA": Setting(options={"load_in_4bit": True}),
    "NF4 LoRA, checkpointing": Setting(layers=4, options={"load_in_4bit": True, **CHECKPOINTED}),
    "PPO": Setting(options={"algorithm": "ppo", "questions_per_step": 8, "group_size": 1, "drop_zero_variance": None}),
    "full fine-tuning": Setting(options={"lora_rank": 0}),
    "long context": Setting(question_tokens=1900, options=LONG),
    "short context": Setting(question_tokens=100, options={"max_total_tokens": 128, "group_size": 16}),
    "vocabulary 151,936": Setting(vocabulary=151_936),
}
OPTIONS = {
    "questions_per_step": 2, "group_size": 4, "mini_batches": 1, "max_turns": 100, "max_new_tokens": 16,
    "max_observation_tokens": 32, "max_total_tokens": 512, "tokens_per_micro_batch": 4096, "eval_questions": 8,
    "drop_zero_variance": False, "tensorboard": False, "dataset": "jsonl", "template": "short", "lora_rank": 32,
    "weight_decay": 1e-4,  # without which a step whose rewards are all equal would make no update
}  # fmt: skip


def main() -> None:
    """Measures every setting and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="SETTING")
    parser.add_argument("--tolerance", type=float, default=0.15, help="largest relative error")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print("phases " + json.dumps(measure(SETTINGS[args.measure])))
        return
    worst = 0.0
    print(f"| {'setting':27} | phase     | predicted, GB | measured, GB | error |\n|---|---|---:|---:|---:|")
    for name in args.only:
        command = [sys.executable, __file__, "--measure", name]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for phase, (predicted, measured) in json.loads(child.stdout.split("phases ")[-1]).items():
            error = predicted / measured - 1
            worst = max(worst, abs(error))
            print(f"| {name:27} | {phase:9} | {predicted:13.2f} | {measured:12.2f} | {error:+5.0%} |", flush=True)
    print(f"largest error {worst:.0%}")
    sys.exit(worst > args.tolerance)


def measure(setting: Setting) -> dict[str, tuple[float, float]]:
    """Predicted and measured peak of each phase, in 10^9 bytes."""
    from searchr1_mini.core import training
    from searchr1_mini.models.loading import pick_device, pick_dtype
    from searchr1_mini.options.config import TrainConfig
    from searchr1_mini.options.defaults import TINY
    from searchr1_mini.options.nested import make
    from searchr1_mini.options.resolve import resolve
    from searchr1_mini.run.opening import open_run
    from searchr1_mini.run.preflight import give_back_large_blocks, predictor

    measured: dict[str, float] = {}

    def watched(function, phase: str):
        def run_and_read(*args):
            reset_peak()
            result = function(*args)
            measured[phase] = max(measured.get(phase, 0.0), peak_gb())
            return result

        return run_and_read

    with tempfile.TemporaryDirectory() as folder:
        save_model(setting, Path(folder) / "model")
        values = {"model": f"{folder}/model", "output_dir": f"{folder}/run", **save_questions(setting, Path(folder))}
        config = resolve(make(TrainConfig, **TINY | OPTIONS | setting.options | values))
        for name, phase in PHASES.items():
            setattr(training, name, watched(getattr(training, name), phase))
        device = pick_device("auto")
        questions = [" ".join(WORDS[:1] * setting.question_tokens)]
        expected = predictor(config.run.model, device, pick_dtype("auto", device), questions)(config)
        print(expected.table(), file=sys.stderr)
        run = open_run(config)
        give_back_large_blocks()
        run.optimizer.step = watched(run.optimizer.step, "update")
        watched(run.evaluations.measure, "rollout")(run)
        train_steps(run, 2)
    return {phase: (expected.total(phase) / 1e9, peak) for phase, peak in measured.items()}


def save_model(setting: Setting, folder: Path) -> None:
    """A random Qwen2 in bfloat16 with the tiny base's tokenizer; ids beyond its vocabulary are no text."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from searchr1_mini.models.bases import load_tokenizer
    from searchr1_mini.options.resolve import resolve_model

    tokenizer = load_tokenizer(resolve_model("tiny"))
    config = Qwen2Config(
        vocab_size=setting.vocabulary, hidden_size=setting.hidden, intermediate_size=setting.intermediate,
        num_hidden_layers=setting.layers, num_attention_heads=setting.hidden // 64, num_key_value_heads=2,
        tie_word_embeddings=True, dtype=torch.bfloat16, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_questions(setting: Setting, folder: Path) -> dict[str, str]:
    """64 questions of `question_tokens` and a passage; returns the options that name them."""
    rng = random.Random(0)
    questions = [" ".join(rng.choices(WORDS, k=setting.question_tokens)) for _ in range(64)]
    rows = [{"question": question, "golden_answers": ["nobody"]} for question in questions]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "corpus.jsonl").write_text(json.dumps({"id": "0", "contents": "Title\nA passage."}) + "\n")
    return {"data_path": f"{folder}/questions.jsonl", "corpus": f"{folder}/corpus.jsonl"}


if __name__ == "__main__":
    main()
