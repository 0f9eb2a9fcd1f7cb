"""Small models on disk, and the shape of a large one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from searchr1_mini.run.shape import model_shape

CPU = torch.device("cpu")


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


INDEX = "model.safetensors.index.json"


def sharded(model: Path, name: str = "model-00001-of-00001.safetensors") -> Path:
    """The same weights in a file that an index names."""
    (model / "model.safetensors").rename(model / name)
    weight_map = dict.fromkeys(load_file(model / name), name)
    (model / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return model


QWEN_3B = Qwen2Config(
    hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2, intermediate_size=11008,
    vocab_size=151_936, tie_word_embeddings=True,
)  # fmt: skip


SHAPE = model_shape(QWEN_3B)
