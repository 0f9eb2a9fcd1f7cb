"""Seconds per step against TRL's GRPOTrainer on the tiny base: `python benchmarks/trl_peer.py`.

Two cases: one turn, and turns with a BM25 search between them, which TRL makes in its own tool loop (transformers'
`generate`, no vLLM). Both train the same LoRA on the same questions with groups of the same size, in float32, one
update per step, without a KL. Every turn has the same length, since nothing ends it early, and each but the last is
taken for a search, so that both sample as many tokens. A step is everything from the questions to the new weights.
It needs `pip install -e ".[peers]" -c constraints.txt`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from ppo_memory import train_steps
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback

from searchr1_mini.core.methods import Finish, Generate, Method, Observe, Prompt, Search
from searchr1_mini.core.prompts import normalize_question, render_observation
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Retriever
from searchr1_mini.core.scores import f1_score
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.task import load_task
from searchr1_mini.run.templates import template_of
from searchr1_mini.storage.files import read_metrics

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError:
    sys.exit('this benchmark needs TRL; run `pip install -e ".[peers]" -c constraints.txt`')

AIMS = {"one turn": 0.6, "with search": 0.3}  # most seconds, in those of TRL
CONTEXT = 1024  # tokens a trajectory may have; no trajectory gets there
# messages as they stand; TRL wants tool calls rendered, and finds a tool's answer behind the last EOS
CHAT = (
    "{%- for message in messages -%}{{ message.content }}{%- for call in message.tool_calls or [] -%}"
    "{{ call.function.name }}{{ call.function.arguments | tojson }}{%- endfor -%}"
    "{%- if message.role == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"
)


def main() -> None:
    """Prints a line a case, with the ratio and whether it meets its aim."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=32, help="a step")
    parser.add_argument("--group", type=int, default=8, help="rollouts per question")
    parser.add_argument("--new", type=int, default=14, help="tokens per turn")
    parser.add_argument("--turns", type=int, default=3, help="of the case with search, which searches once less")
    parser.add_argument("--steps", type=int, default=5, help="steps that count, after a first that does not")
    parser.add_argument("--trl-batch", type=int, default=64, help="samples a forward and backward of TRL")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{'':12}{'ours, s':>9}{'TRL, s':>9}{'ratio':>7}  {'aim':11}{'tokens/sample, ours':>21}{'TRL':>7}")
    for case, turns in (("one turn", 1), ("with search", args.turns)):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(Path(os.devnull).open("w")):
            config = settings(args, turns, folder)
            ours, our_tokens = time_ours(config, turns)
            theirs, their_tokens = time_trl(config, turns, args.trl_batch)
        row = f"{case:12}{ours:>9.2f}{theirs:>9.2f}{ours / theirs:>7.2f}  {verdict(case, ours / theirs):11}"
        print(f"{row}{our_tokens:>21.1f}{their_tokens:>7.1f}", flush=True)


def verdict(case: str, ratio: float) -> str:
    """The aim of a case, and whether a ratio meets it."""
    return f"{AIMS[case]} {'met' if ratio <= AIMS[case] else 'MISSED'}"


def settings(args: argparse.Namespace, turns: int, folder: str) -> TrainConfig:
    """What both train with."""
    size = dict(steps=args.steps + 1, questions_per_step=args.questions, group_size=args.group, mini_batches=1)
    lengths = dict(max_new_tokens=args.new, max_total_tokens=CONTEXT, max_turns=turns)
    loss = dict(kl_coef=0.0, drop_zero_variance=False, reward="f1", warmup_steps=0, decay_steps=0)
    return resolve(
        make(TrainConfig, output_dir=f"{folder}/ours", eval_questions=2, tensorboard=False, **size, **lengths, **loss)
    )


def time_ours(config: TrainConfig, turns: int) -> tuple[float, float]:
    """Median seconds of our steps that moved the weights, and the mean tokens of a sample after its prompt."""

    def method(question: str) -> Method:
        yield Prompt(prompt_of(question))
        for turn in range(turns):
            text = yield Generate(("\x00never",), config.rollout.max_new_tokens)
            if turn < turns - 1:
                yield Observe(passages=(yield Search(text, config.retrieval.topk)))
        yield Finish(text, "answer")

    run = open_run(config)
    run.make_method = method
    run.policy.eos_ids = ()  # nothing ends a turn early
    with run.tracker:
        train_steps(run, config.optimization.steps)
    rows = read_metrics(run.folder / "metrics.jsonl")[1:]
    tokens = statistics.fmean(row["response_tokens"] + row["observation_tokens"] for row in rows)
    seconds = [row["seconds"] for row in rows if row["updates"]]  # without a reward there is nothing to update
    return statistics.median(seconds or [float("nan")]), tokens


def time_trl(config: TrainConfig, turns: int, batch: int) -> tuple[float, float]:
    """The same of TRL's steps."""
    task = load_task(config, "train")
    clock, lengths = Clock(), []

    def f1(completions: list, completion_ids: list, golden_answers: list, **_: object) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [f1_score(c[-1]["content"], gold) for c, gold in zip(completions, golden_answers, strict=True)]

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(resolve_model(config.run.model), dtype=torch.float32),
        reward_funcs=f1,
        args=trl_config(config, turns, batch),
        train_dataset=Dataset.from_list([trl_row(example) for example in task.examples]),
        processing_class=trl_tokenizer(config, turns),
        callbacks=[clock],
        peft_config=LoraConfig(
            r=config.weights.lora_rank,
            lora_alpha=config.weights.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        tools=[search_tool(task.retriever, config.retrieval.topk)] if turns > 1 else None,
    )
    trainer.train()
    n_samples = config.optimization.questions_per_step * config.optimization.group_size
    return statistics.median(clock.seconds[1:]), statistics.fmean(lengths[n_samples:])


class Clock(TrainerCallback):
    """Seconds of each step of a transformers Trainer, its rollouts included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__) -> None:
        """Before the step's samples are drawn."""
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__) -> None:
        """After the optimizer."""
        self.seconds.append(time.perf_counter() - self.began)


def trl_config(config: TrainConfig, turns: int, batch: int) -> GRPOConfig:
    """TRL's names for our settings; what would slow it down on a CPU is off."""
    step = config.optimization
    turn = {"max_new_tokens": config.rollout.max_new_tokens, "min_new_tokens": config.rollout.max_new_tokens}
    return GRPOConfig(
        output_dir=f"{config.run.output_dir}-trl", max_steps=step.steps, num_generations=step.group_size, beta=0.0,
        per_device_train_batch_size=batch, max_completion_length=CONTEXT, generation_kwargs=turn,
        gradient_accumulation_steps=step.questions_per_step * step.group_size // batch,
        max_tool_calling_iterations=turns - 1, learning_rate=step.learning_rate, lr_scheduler_type="constant",
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip


def trl_tokenizer(config: TrainConfig, turns: int) -> PreTrainedTokenizerBase:
    """The tiny base's tokenizer with a chat template; with tools, every turn is read as a search for its own text."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.run.model), chat_template=CHAT)

    def parse_response(ids: list[int], **_: object) -> dict:
        text = tokenizer.decode(ids)
        call = {"type": "function", "function": {"name": "search", "arguments": {"query": text}}}
        return {"role": "assistant", "content": text, "tool_calls": [call]}

    if turns > 1:
        tokenizer.parse_response, tokenizer.response_template = parse_response, {}
    return tokenizer


def search_tool(retriever: Retriever, topk: int) -> Callable[[str], str]:
    """The engine as a function; TRL makes the tool's description from its docstring."""

    def search(query: str) -> str:
        """
        Asks the search engine.

        Args:
            query: What to look for.
        """
        return render_observation([hit.passage for hit in retriever.search([query], topk)[0]])

    return search


def trl_row(example: Example) -> dict:
    """A question as TRL wants it."""
    prompt = [{"role": "user", "content": prompt_of(example.question)}]
    return {"prompt": prompt, "golden_answers": list(example.golden_answers)}


def prompt_of(question: str) -> str:
    """The tiny base's prompt."""
    return template_of("search-r1", "short").format(question=normalize_question(question))


if __name__ == "__main__":
    main()
