"""What a run changed of the defaults, in the words of the command line that asked for it."""

from __future__ import annotations

import pytest

from searchr1_mini.options.changes import changes, public
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


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/ada/rewards.py:brevity", "rewards.py:brevity"), ("C:\\Users\\ada\\base", "base"),
        ("rewards.py:f", None), ("/srv/ada/notes/", "notes"), ("runs/a", None), ("Qwen/Qwen2.5-3B", None),
        ("http://a.b:80/x", None), (3, None), (None, None),
    ],
)  # fmt: skip
def test_of_a_path_from_the_root_others_read_the_last_part(value, told):
    assert public(value) == (value if told is None else told)


def test_a_home_is_not_among_the_words(tmp_path):
    (tmp_path / "rewards.py").write_text("def brevity(trajectory, example): return 1.0\n")
    given = f"--reward {tmp_path / 'rewards.py'}:brevity --model {tmp_path} --demonstrations {tmp_path / 'shown.jsonl'}"
    config = resolve(*parse_asked(TrainConfig, "train.py", "", [*given.split(), "--cold-start", "4"]))
    words = changes(config)
    assert {"--reward rewards.py:brevity", f"--model {tmp_path.name}", "--demonstrations shown.jsonl"} < set(words)
    assert str(tmp_path) not in " ".join(words)
