"""The smallest real things: the shipped tokenizer, a random two-layer Qwen2 on disk, and the real Qwen2.5 tokenizer."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from searchr1_mini.core import interrupt
from searchr1_mini.core.policy import Policy
from searchr1_mini.models.loading import load_policy
from searchr1_mini.options.resolve import resolve_model

CPU = torch.device("cpu")
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


@pytest.fixture(autouse=True)
def nobody_asked():
    """A test that leaves a step in its midst, or asks to stop, does so alone."""
    yield
    interrupt.clear()


def save_random_qwen2(folder: Path, tokenizer, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """Writes a random Qwen2 of that tokenizer; a large initializer_range makes its greedy text varied."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(path, rows) -> str:
    """Writes rows (or lines as they are) to a .jsonl or .jsonl.gz file; returns its path."""
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve_model("tiny"))


@pytest.fixture(scope="session")
def random_qwen2(tmp_path_factory, tokenizer) -> Path:
    return save_random_qwen2(tmp_path_factory.mktemp("qwen2"), tokenizer)


@pytest.fixture(scope="session")
def random_policy(random_qwen2) -> Policy:
    return load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )


@pytest.fixture(scope="session")
def tiny_policy() -> Policy:
    return load_policy(
        resolve_model("tiny"), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = os.environ.get("SEARCHR1_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SEARCHR1_SHARED names no folder with the real Qwen2.5 tokenizer and the HotpotQA sample")
    return Path(folder)


@pytest.fixture(scope="session")
def qwen_tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "qwen2.5-tokenizer")
