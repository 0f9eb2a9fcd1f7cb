"""Every option of the pre-training of the tiny base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from searchr1_mini.core.config import MOST_SEED
from searchr1_mini.options.nested import grouped
from searchr1_mini.tiny.curriculum import STAGES


@dataclass(frozen=True)
class PretrainConfig:
    """Options of the pre-training."""

    output: str | None = grouped("what", None, "folder for the base and its tokenizer")
    init: str | None = grouped("what", None, "base to start from instead of a random one")
    first_stage: int = grouped(
        "what", 0, "number of the stage to begin with; 1 leaves out the first", least=0, most=len(STAGES) - 1
    )
    warm_start: bool = grouped("what", False, "train in a single stage with many right episodes instead")

    vocab_size: int = grouped("model", 1664, "number of tokens in the vocabulary", least=400, most=200_000)
    hidden: int = grouped("model", 128, "width of the model, a multiple of 64", least=64, most=8192)
    layers: int = grouped("model", 4, "number of layers", least=1, most=128)

    tokens: float = grouped("training", 100e6, "tokens of all stages, padding included", above=0, most=1e12)
    muon_lr: float = grouped("training", 0.015, "learning rate of Muon, for the matrices", above=0, most=10)
    adam_lr: float = grouped("training", 3e-3, "learning rate of Adam, for all other weights", above=0, most=10)
    batch_tokens: int = grouped("training", 8_192, "tokens per optimizer step", least=1024, most=10**7)
    max_length: int = grouped(
        "training", 640, "most tokens in a trace; longer ones are left out", least=64, most=32_768
    )
    report_every: float = grouped("training", 2e6, "tokens between reports", above=0, most=1e12)
    workers: int = grouped("training", 1, "processes that write demonstrations", least=1, most=256)
    device: Literal["auto", "cpu", "cuda", "mps"] = grouped("training", "auto", "device to compute on")
    compile: bool = grouped("training", True, "compile the step with torch.compile")
    seed: int = grouped("training", 0, "random seed for the weights and the demonstrations", least=0, most=MOST_SEED)
