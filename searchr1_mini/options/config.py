"""Options of training, one dataclass per concern; `resolve.py` fills in open ones with what `defaults.py` holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from searchr1_mini.core.config import (
    ObjectiveConfig,
    OptimizationConfig,
    PPOConfig,
    RewardConfig,
    RolloutConfig,
    option,
)
from searchr1_mini.data.names import DATASETS
from searchr1_mini.retrievers.names import DENSE_MODEL, MOST_TOPK, EngineName, ProbeName

MOST_QUESTIONS = 10**7
NEVER = 10**9  # steps between evaluations, or checkpoints to keep
MAY_CHANGE = (  # with --resume: what does not decide what is learned, or how long
    "output_dir resume steps decay_steps eval_every save_every keep_checkpoints tensorboard wandb check device dtype "
    "memory_check memory_limit rollout_weights rollout_batch_size tokens_per_micro_batch gradient_checkpointing "
    "compile_decode fused_kernels max_skipped_updates retriever_url"
).split()
Bug = Literal[  # of the museum; one more deals every number of a --mystery anew
    "retokenize", "colliding-groups", "masked-in-denominator", "tool-tokens-in-length", "no-last-turn",
    "reward-from-whole-text",
]  # fmt: skip
BUGS: tuple[str, ...] = get_args(Bug)
KEPT_ON_RESUME = [name for name in MAY_CHANGE if name not in ("output_dir", "resume", "check")]


@dataclass(frozen=True)
class RunConfig:
    """What is trained, how, and where it is kept."""

    model: str = option(
        "tiny", "model: tiny, a short name such as Qwen2.5-3B, or the hub id or folder of a family in docs/models.md"
    )
    method: Literal["search-r1", "r1", "direct"] | str | None = option(
        None,
        "rollout method: search-r1, r1 (no search engine), direct (no reasoning either), or your own as "
        "my_methods.py:name [default: direct for sft, else search-r1]",
    )
    algorithm: Literal["grpo", "ppo", "sft", "rejection-sampling"] = option(
        "grpo",
        "training algorithm: RL by grpo or ppo, sft on the gold answers, or sft on sampled rollouts that were right",
    )
    init: str | None = option(
        None,
        "weights to start from, which become the reference too: a run, a checkpoint, an adapter, or fine-tuned "
        "weights of --model",
    )
    output_dir: str | None = option(None, "folder of the run [default: runs/<time>-<model>-<algorithm>]")
    resume: bool = option(False, "continue from the newest checkpoint in --output-dir")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "device to compute on")
    bug: Bug | None = option(None, "bug planted on purpose, as public code had it (docs/algorithms.md, museum)")
    mystery: int | None = option(
        None,
        "number of a bug hunt, which plants one fault of the museum and says nowhere which; compare it with a run of "
        "--max-turns 2",
        least=0,
        most=1_000_000,
    )


@dataclass(frozen=True)
class DataConfig:
    """Questions, passages, and how they are shown."""

    dataset: str | None = option(None, f"data set: a file, or one of {', '.join(DATASETS)}")
    data_path: str | None = option(None, "local file with the questions, instead of the hub")
    corpus: str | None = option(
        None,
        "passages: a jsonl file, a folder of such or of notes (text, HTML, PDF), hotpotqa or squad [default: the data "
        "set's own]",
    )
    eval_questions: int | None = option(
        None,
        "number of held-out questions; of a file, at most half of those held out",
        least=1,
        most=MOST_QUESTIONS,
    )
    world_difficulty: Literal["infobox", "simple", "natural"] | None = option(
        None, "style of the synthetic world's passages [default: natural]"
    )
    world_hops: str | None = option(None, "hops of the synthetic questions, in equal shares [default: 1,2]")
    world_noise: int = option(0, "made-up words after every passage of the synthetic world", least=0, most=1000)
    template: Literal["paper", "short"] | None = option(None, "prompt template")
    observation: Literal["paper", "plain"] | None = option(
        None,
        "form of shown passages: as the public code shows wiki-18 (paper), or as the tiny base knows them (plain)",
    )
    date: str | None = option(
        None,
        "date for a chat template that writes today's, such as 2026-11-25 [default: the day on which the run begins]",
    )


@dataclass(frozen=True)
class RetrievalConfig:
    """The search engine."""

    retriever: Literal[EngineName, ProbeName] | str = option(
        "auto",
        "search engine: bm25 is rank-bm25, auto chooses by size, hybrid is BM25 and dense; probes: no engine (none), "
        "nothing found (empty), any passages (random), the supporting ones (oracle); or your own as "
        "my_engine.py:Engine",
    )
    retriever_url: str | None = option(
        None, "address of a /retrieve server, for --retriever http, or of Milvus (a path is milvus-lite)"
    )
    topk: int = option(3, "passages per search", least=1, most=MOST_TOPK)
    stemming: bool = option(False, "let BM25 see stems of words (English Snowball)")
    stop_words: bool = option(True, "leave English function words out of BM25")
    dense_model: str = option(
        DENSE_MODEL, "encoder of sentence-transformers for dense and hybrid: a hub id or a folder"
    )
    dense_index: Literal["flat", "hnsw"] = option(
        "flat", "vector index: comparison with every vector (flat), or a walk along a graph (hnsw)"
    )
    reranker: str | None = option(
        None, "cross-encoder of sentence-transformers that re-ranks the hits: a hub id or a folder"
    )


@dataclass(frozen=True)
class ImitationConfig:
    """Imitation: demonstrations, and scripted episodes before RL."""

    demonstration_questions: int | None = option(
        None,
        "training questions that sft and rejection-sampling learn from [default: 800 for tiny, else 10000]",
        least=1,
        most=MOST_QUESTIONS,
    )
    cold_start: int = option(
        0,
        "number of scripted episodes to imitate before RL, for a model that never earns a reward",
        least=0,
        most=MOST_QUESTIONS,
    )
    demonstrations: str | None = option(
        None, "episodes to imitate instead: a jsonl file of questions with turns, or a run's rollouts"
    )
    cold_start_learning_rate: float | None = option(
        None,
        "learning rate of the cold start [default: LoRA 3e-3 for tiny, else 5e-4; full fine-tuning 5e-4 for tiny, else "
        "2e-5]",
        above=0,
        most=10,
    )
    cold_start_batch_size: int = option(8, "episodes per optimizer step of the cold start", least=1, most=10_000)
    cold_start_multi_hop: float | None = option(
        None,
        "share of episodes with two searches or more; with too few of them the policy learns to search once "
        "[default: as the questions come]",
        least=0,
        most=1,
    )


@dataclass(frozen=True)
class VariantConfig:
    """What others do in the place of GRPO's own terms, or beside them (docs/algorithms.md, variants)."""

    baseline: Literal["group", "leave-one-out", "batch", "group-batch", "none"] = option(
        "group",
        "baseline of a reward: the group's mean, the mean of the others (RLOO), the step's mean (REINFORCE++), the "
        "group's mean over the step's std (REINFORCE++ with a baseline), or none (REINFORCE)",
    )
    normalize_std: bool = option(True, "divide a group's advantages by the std of its rewards; Dr. GRPO does not")
    ratio: Literal["token", "sequence"] = option(
        "token", "importance ratio of each token, or of the whole trajectory (GSPO)"
    )
    action_penalty: float = option(
        0.0, "penalty for never searching, and again for giving no answer (Search-R1++)", least=0, most=10
    )
    importance_mode: Literal["truncate", "mask"] = option(
        "truncate", "treatment of a weight beyond --importance-cap: it is cut to the cap, or its token is left out"
    )
    surrogate: Literal["clip", "cispo"] = option(
        "clip", "surrogate of the policy's loss: PPO's clip, or CISPO, which clips the ratio's weight alone"
    )
    sapo_coef: float = option(
        0.0, "weight of a KL on tokens of better rollouts that became less likely (SAPO)", least=0, most=1000
    )
    sapo_threshold: float = option(1.0, "ratio below which SAPO's KL acts", above=0, most=1)
    turn_coef: float = option(
        0.0, "weight of an advantage per turn, among turns taken in the same state (GiGPO; its paper takes 1)", least=0,
        most=1000,
    )  # fmt: skip
    turn_gamma: float = option(0.95, "discount per turn in GiGPO's returns", above=0, most=1)
    tree_branches: int = option(
        0, "branches per chain of a group, each from after one of its searches (Tree-GRPO)", least=0, most=1000
    )


@dataclass(frozen=True)
class ModelConfig:
    """How a model is loaded, and what is trained on it."""

    lora_rank: int | None = option(None, "rank of the LoRA adapter; 0 is full fine-tuning", least=0, most=4096)
    lora_alpha: int | None = option(None, "scale of the adapter [default: twice the rank]", least=1, most=10**6)
    load_in_4bit: bool | None = option(None, "base in 4-bit NF4, by bitsandbytes")
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = option(
        "auto",
        "number format: auto is bfloat16 on a GPU that has it, float16 on any other GPU, and float32 elsewhere; fast "
        "also takes bfloat16 on a CPU that has it",
    )
    gradient_checkpointing: bool | None = option(None, "recompute activations to save memory")
    memory_check: bool = option(True, "predict peak memory before loading, and refuse what does not fit")
    memory_limit: float | None = option(
        None,
        "memory that the run may take, in GB, on a device that others share [default: what is free]",
        above=0,
        most=10**6,
    )
    rollout_weights: Literal["auto", "base", "dequantized"] = option(
        "auto",
        "weights that rollouts read of a 4-bit base: the base itself, or a copy of the same numbers unpacked to "
        "--dtype, which is faster; auto takes the copy if the memory check finds room",
    )
    compile_decode: bool = option(
        False, "compile the decode step with torch.compile, which is faster after a minute or two"
    )
    fused_kernels: bool = option(False, "use Liger's fused kernels in the model; needs a GPU and liger-kernel")


@dataclass(frozen=True)
class LoggingConfig:
    """What a run checks, measures and keeps."""

    check: bool = option(
        False, "check every invariant of a step before its update and stop at a fault; costs a forward pass"
    )
    eval_every: int | None = option(None, "steps between evaluations", least=1, most=NEVER)
    save_every: int | None = option(None, "steps between checkpoints", least=1, most=NEVER)
    keep_checkpoints: int = option(
        2, "number of newest checkpoints to keep; the best one is kept as well", least=1, most=NEVER
    )
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
    variant: VariantConfig = field(default_factory=VariantConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    weights: ModelConfig = field(default_factory=ModelConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
