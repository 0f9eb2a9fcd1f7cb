"""Options of training, one dataclass per concern; `resolve.py` fills in what is open, `defaults.py` holds with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from searchr1_mini.core.config import (
    ObjectiveConfig,
    OptimizationConfig,
    PPOConfig,
    RewardConfig,
    RolloutConfig,
    option,
)
from searchr1_mini.data.names import DATASETS
from searchr1_mini.retrievers.names import DENSE_MODEL, MOST_TOPK

MOST_QUESTIONS = 10**7
NEVER = 10**9  # steps between evaluations, or checkpoints to keep
MAY_CHANGE = (  # with --resume: what does not decide what is learnt, or how long
    "output_dir resume steps decay_steps eval_every save_every keep_checkpoints tensorboard wandb check device dtype "
    "memory_check memory_limit rollout_weights rollout_batch_size tokens_per_micro_batch gradient_checkpointing "
    "compile_decode fused_kernels max_skipped_updates retriever_url"
).split()


@dataclass(frozen=True)
class RunConfig:
    """What is trained, how, and where it is kept."""

    model: str = option(
        "tiny", "tiny, a short name such as Qwen2.5-3B, or a hub id or folder of a family in docs/models.md"
    )
    method: Literal["search-r1", "r1", "direct"] | str | None = option(
        None,
        "with the search engine, without it (r1), without reasoning too (direct), or your own as my_methods.py:name "
        "[default: direct for sft, else search-r1]",
    )
    algorithm: Literal["grpo", "ppo", "sft", "rejection-sampling"] = option(
        "grpo", "RL by grpo or ppo, sft on the gold answers, or sft on sampled rollouts that were right"
    )
    init: str | None = option(
        None,
        "start from what was learnt before, and take that as the reference: a run, a checkpoint, an adapter, or "
        "fine-tuned weights of --model",
    )
    output_dir: str | None = option(None, "folder of the run [default: runs/<time>-<model>-<algorithm>]")
    resume: bool = option(False, "go on from the newest checkpoint in --output-dir")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute")
    bug: Literal[
        "retokenize", "colliding-groups", "masked-in-denominator", "tool-tokens-in-length", "no-last-turn",
        "reward-from-whole-text",
    ] | None = option(None, "break the method on purpose, as public code did (docs/algorithms.md, museum)")  # fmt: skip
    mystery: int | None = option(
        None,
        "number of a bug hunt: one fault of the museum is planted, and nothing says which",
        least=0,
        most=1_000_000,
    )


@dataclass(frozen=True)
class DataConfig:
    """Questions, passages, and how they are shown."""

    dataset: str | None = option(None, f"a file, or one of {', '.join(DATASETS)}")
    data_path: str | None = option(None, "local file with the questions, instead of the hub")
    corpus: str | None = option(
        None,
        "passages: a jsonl file, a folder of such or of notes (text, HTML, PDF), hotpotqa or squad [default: the data "
        "set's own]",
    )
    eval_questions: int | None = option(
        None,
        "held-out questions; of a file's half of them at most",
        least=1,
        most=MOST_QUESTIONS,
    )
    world_difficulty: Literal["infobox", "simple", "natural"] | None = option(
        None, "how the synthetic world's passages are written [default: natural]"
    )
    world_hops: str | None = option(None, "hops of the synthetic questions, in equal shares [default: 1,2]")
    world_noise: int = option(0, "made-up words after every passage of the synthetic world", least=0, most=1000)
    template: Literal["paper", "short"] | None = option(None, "prompt template")
    observation: Literal["paper", "plain"] | None = option(
        None, "how passages are shown: as the public code shows wiki-18 (paper), or as the tiny base knows them (plain)"
    )
    date: str | None = option(
        None,
        "what a chat template that writes today's date is told, as 2026-11-25 [default: the day that the run begins "
        "on]",
    )


@dataclass(frozen=True)
class RetrievalConfig:
    """The search engine."""

    retriever: (
        Literal["auto", "bm25", "bm25s", "dense", "hybrid", "milvus", "http", "none", "empty", "random", "oracle"] | str
    ) = option(
        "auto",
        "bm25 is rank-bm25; auto by size; hybrid is BM25 and dense; probes: no engine (none), nothing found (empty), "
        "any passages (random), the supporting ones (oracle); or your own as my_engine.py:Engine",
    )
    retriever_url: str | None = option(
        None, "address of a /retrieve server, for --retriever http, or of Milvus (a path is milvus-lite)"
    )
    topk: int = option(3, "passages a search", least=1, most=MOST_TOPK)
    stemming: bool = option(False, "let BM25 see stems of words (English Snowball)")
    stop_words: bool = option(True, "leave English function words out of BM25")
    dense_model: str = option(
        DENSE_MODEL, "encoder of sentence-transformers for dense and hybrid: a hub id or a folder"
    )
    dense_index: Literal["flat", "hnsw"] = option("flat", "compare with every vector (flat), or walk a graph (hnsw)")
    reranker: str | None = option(
        None, "cross-encoder of sentence-transformers that re-ranks what was found: a hub id or a folder"
    )


@dataclass(frozen=True)
class ImitationConfig:
    """What is imitated: demonstrations, and scripted episodes before RL."""

    demonstration_questions: int | None = option(
        None,
        "training questions that sft and rejection-sampling learn from [default: 800 for tiny, else 10000]",
        least=1,
        most=MOST_QUESTIONS,
    )
    cold_start: int = option(
        0,
        "scripted episodes that are imitated before RL, for a model that never earns a reward",
        least=0,
        most=MOST_QUESTIONS,
    )
    demonstrations: str | None = option(
        None, "imitate these instead: a jsonl file of question and turns, or a run's rollouts"
    )
    cold_start_learning_rate: float | None = option(
        None,
        "[default: LoRA 3e-3 for tiny, else 5e-4; full fine-tuning 5e-4 for tiny, else 2e-5]",
        above=0,
        most=10,
    )
    cold_start_batch_size: int = option(8, "episodes per optimizer step", least=1, most=10_000)
    cold_start_multi_hop: float | None = option(
        None,
        "share of the episodes that search twice or more; where too few do, the policy learns to search once "
        "[default: as the questions come]",
        least=0,
        most=1,
    )


@dataclass(frozen=True)
class ModelConfig:
    """How a model is loaded, and what is trained on it."""

    lora_rank: int | None = option(None, "0 is full fine-tuning", least=0, most=4096)
    lora_alpha: int | None = option(None, "scale of the adapter [default: twice the rank]", least=1, most=10**6)
    load_in_4bit: bool | None = option(None, "NF4 base through bitsandbytes")
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = option(
        "auto",
        "auto: bfloat16 where the GPU has it, else float16; float32 on other devices. fast: bfloat16 on a CPU that "
        "has it too",
    )
    gradient_checkpointing: bool | None = option(None, "recompute activations to save memory")
    memory_check: bool = option(True, "predict peak memory before loading, and refuse what does not fit")
    memory_limit: float | None = option(
        None,
        "GB that the run may take, where others share the device [default: what is free]",
        above=0,
        most=10**6,
    )
    rollout_weights: Literal["auto", "base", "dequantised"] = option(
        "auto",
        "what rollouts read of a 4-bit base: itself (base), or a copy of the same numbers unpacked to --dtype, which "
        "is faster; auto takes the copy if the memory check finds room",
    )
    compile_decode: bool = option(False, "torch.compile the decode step: faster after a minute or two")
    fused_kernels: bool = option(False, "Liger's kernels in the model; a GPU and liger-kernel")


@dataclass(frozen=True)
class LoggingConfig:
    """What a run checks, measures and keeps."""

    check: bool = option(
        False, "check every invariant of a step before its update; costs a forward, and stops on a fault"
    )
    eval_every: int | None = option(None, "steps between evaluations", least=1, most=NEVER)
    save_every: int | None = option(None, "steps between checkpoints", least=1, most=NEVER)
    keep_checkpoints: int = option(2, "newest checkpoints to keep; the best is kept besides", least=1, most=NEVER)
    tensorboard: bool = option(True, "write TensorBoard event files")
    wandb: bool = option(False, "log to Weights & Biases")


@dataclass(frozen=True)
class TrainConfig:
    """Options of train.py, by concern. None is resolved per model by `resolve`."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    weights: ModelConfig = field(default_factory=ModelConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
