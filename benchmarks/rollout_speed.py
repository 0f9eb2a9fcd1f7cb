"""Sampled tokens per second of our rollouts against the usual loop, by turns: `python benchmarks/rollout_speed.py`.

The usual loop calls transformers' `generate` with stop strings for each turn on the whole context so far, left-padded.
Ours keeps the KV cache over turns and prefills a group's prompt once. Both sample the same number of tokens in
each turn of each row, with the same random Qwen2 (its adapter merged), prompts and observations; the time is that of
everything between question and last token, the median of three runs. Turns are of a quarter to seven quarters of
`--new` tokens, drawn once, as stop strings leave them; with `--even` all are of that length.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from datetime import date

import torch
from transformers import (
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from searchr1_mini.core.encoding import foreign_ids, observation_ids
from searchr1_mini.core.methods import Finish, Generate, Method, Observe, Prompt, Search
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.prompting import prompt_ids
from searchr1_mini.options.resolve import resolve_model


def main() -> None:
    """Prints one line per number of turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--observation", type=int, default=200, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens sampled a turn, on average")
    parser.add_argument("--even", action="store_true", help="all turns equally long")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    policy = random_policy(args.hidden, args.layers)
    seen = text_of(policy, args.observation - len(observation_ids([Passage("", "t", "")], policy.tokenizer, 999)[0]))
    questions = [text_of(policy, args.prompt, seed) for seed in range(args.questions)]
    print(f"{'turns':>6}{'ours tok/s':>12}{'usual tok/s':>12}{'ratio':>8}{'fed/total':>11}")
    for turns in args.turns:
        lengths = turn_lengths(turns, args)
        sampled = sum(map(sum, lengths))
        ours, ratio = clocked(lambda lengths=lengths: roll(policy, questions, seen, lengths, args))
        with policy.for_rollouts():
            usual, _ = clocked(lambda lengths=lengths: usual_loop(policy, questions, seen, lengths, args))
        print(
            f"{turns:>6}{sampled / ours:>12.0f}{sampled / usual:>12.0f}{usual / ours:>8.2f}{ratio:>11.3f}", flush=True
        )


def random_policy(hidden: int, layers: int) -> Policy:
    """A random Qwen2 with the tiny base's tokenizer, through the real loading code; it never ends a turn by itself."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny"))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, max_position_embeddings=8192,
        tie_word_embeddings=True, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Qwen2ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_policy(
            folder, lora_rank=8, lora_alpha=16, load_in_4bit=False, dtype=torch.float32, device=torch.device("cpu")
        )


def text_of(policy: Policy, n_tokens: int, seed: int = 99) -> str:
    """A text that is about `n_tokens` long."""
    words = "the city of Oslo has a mayor named Ada Brook who works for Amber Works".split()
    picks = torch.randint(len(words), (n_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    text = [words[pick] for pick in picks]
    while len(foreign_ids(" ".join(text), policy.tokenizer)) > n_tokens:
        text.pop()
    return " ".join(text)


def turn_lengths(turns: int, args: argparse.Namespace) -> list[list[int]]:
    """Tokens of each turn of each row."""
    draw = random.Random(0)
    shortest, longest = (args.new, args.new) if args.even else (args.new // 4, 2 * args.new - args.new // 4)
    return [[draw.randint(shortest, longest) for _ in range(turns)] for _ in range(args.questions * args.group)]


def clocked(work: Callable[[], float]) -> tuple[float, float]:
    """Median seconds of three runs after a first, and what the last returned."""
    work()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - began)
    return sorted(times)[1], result


def roll(policy: Policy, questions: list[str], seen: str, lengths: list[list[int]], args: argparse.Namespace) -> float:
    """Our rollout; returns tokens fed / tokens of all trajectories."""

    class Same:
        def search(self, queries, topk):
            return [[Hit(Passage("", "t", seen), 1.0)] for _ in queries]

    rows = iter(lengths)

    def method(question: str) -> Method:
        turns = next(rows)
        yield Prompt(question)
        for turn, n_tokens in enumerate(turns, start=1):
            yield Generate(("\x00never",), n_tokens)
            if turn < len(turns):
                yield Observe(passages=(yield Search("q", 1)))
        yield Finish(None, "turns")

    examples = [Example(str(n), q, ("x",), "s") for n, q in enumerate(questions) for _ in range(args.group)]
    limits = RolloutLimits(len(examples), 8192, args.observation + 50)
    _, stats = rollout(examples, method, policy, Same(), limits, temperature=1.0, seed=0)
    return stats.fed_ratio


class LengthOfEach(StoppingCriteria):
    """Ends each row of a batch after a number of tokens of its own."""

    def __init__(self, width: int, lengths: list[int]) -> None:
        self.ends = torch.tensor([width + length for length in lengths])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


@torch.no_grad()
def usual_loop(
    policy: Policy, questions: list[str], seen: str, lengths: list[list[int]], args: argparse.Namespace
) -> float:
    """`generate` on the whole context at every turn, in one batch."""
    tokenizer, model = policy.tokenizer, policy.causal_lm
    rows = [prompt_ids(question, tokenizer, date.today()) for question in questions for _ in range(args.group)]
    observation = observation_ids([Passage("", "t", seen)], tokenizer, args.observation + 50)[0]
    for turn, of_turn in enumerate(zip(*lengths, strict=True), start=1):
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=max(of_turn), do_sample=True, top_k=0,
            stop_strings=["\x00never"], tokenizer=tokenizer, pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([LengthOfEach(width, of_turn)]),
        )  # fmt: skip
        seen_now = observation if turn < len(lengths[0]) else []
        rows = [row + out[i, width : width + of_turn[i]].tolist() + seen_now for i, row in enumerate(rows)]
    return 0.0


if __name__ == "__main__":
    main()
