"""What a run changed of the defaults, in the words of the command line that asked for it."""

from __future__ import annotations

import pytest

from searchr1_mini.options.changes import changes
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.resolve import resolve


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", ""), ("--output-dir x --no-tensorboard --eval-every 7 --memory-limit 3", ""),
        ("--learning-rate 0.003 --steps 40", ""), ("--learning-rate 0.002", None),
        ("--algorithm ppo", None), ("--algorithm ppo --group-size 8", None), ("--lora-rank 0", None),
        ("--lora-rank 0 --learning-rate 0.0005", "--lora-rank 0"), ("--steps 10", None), ("--clip-eps 0.3", None),
        ("--no-normalize-std --check", "--no-normalize-std"), ("--model Qwen2.5-3B", None),
        ("--model Qwen2.5-3B --dtype float16", None), ("--preset laptop-llm", None),
        ("--preset laptop-llm --topk 3", None), ("--preset laptop-llm --cold-start 0", None),
        ("--preset laptop-llm --model Qwen2.5-0.5B", None),
        ("--preset paper-ppo --model Qwen2.5-7B", None), ("--preset 12gb --model Qwen2.5-3B", None),
        ("--algorithm sft", None), ("--cold-start 20 --cold-start-multi-hop 0.5", None),
    ],
)  # fmt: skip
def test_the_words_are_those_that_make_the_run(given, told):
    """In any order; None: those that were given. And they make the same run again."""
    config = resolve(*parse_asked(TrainConfig, "train.py", "", given.split()))
    words = changes(config)
    assert sorted(" ".join(words).split()) == sorted((given if told is None else told).split())
    again = resolve(*parse_asked(TrainConfig, "train.py", "", " ".join(words).split()))
    assert changes(again) == words
