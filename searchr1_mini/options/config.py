"""Every option of training in one flat dataclass; `resolve.py` fills in what is open, `defaults.py` holds with what."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from searchr1_mini.data.names import DATASETS
from searchr1_mini.options.defaults import REAL, TINY
from searchr1_mini.retrievers.names import DENSE_MODEL, MOST_TOPK


def option(group: str, default: Any, help_text: str, **bounds: float):
    """A field with its group in --help, its meaning and unit, and its `least` (or `above`) and `most`."""
    range_ = {"least": None, "above": None, "most": None} | bounds
    return field(default=default, metadata={"group": group, "help": help_text} | range_)


def flag_of(name: str) -> str:
    """`max_turns` -> `--max-turns`."""
    return "--" + name.replace("_", "-")


def _auto(name: str) -> str:
    return f" [default: {TINY[name]} for tiny, else {REAL[name]}]"


MOST_STEPS, MOST_TOKENS, MOST_QUESTIONS = 10**6, 2**20, 10**7
MOST_SEED = 2**32 - 1  # seeds of steps, rounds and updates are made of it, and torch takes 64 bits
NEVER = 10**9  # steps between evaluations, or checkpoints to keep

CORPUS_HELP = "passages: a jsonl file, a folder of such or of notes (text, HTML, PDF), hotpotqa or squad"
RETRIEVER_URL_HELP = "address of a /retrieve server, for --retriever http, or of Milvus (a path is milvus-lite)"
OBSERVATION_HELP = (
    "how passages are shown: as the public code shows wiki-18 (paper), or as the tiny base knows them (plain)"
)
STEMMING_HELP = "let BM25 see stems of words (English Snowball)"
STOP_WORDS_HELP = "leave English function words out of BM25"
DATE_HELP = "what a chat template that writes today's date is told, as 2026-11-25"
DENSE_MODEL_HELP = "encoder of sentence-transformers for dense and hybrid: a hub id or a folder"
DENSE_INDEX_HELP = "compare with every vector (flat), or walk a graph (hnsw)"
RERANKER_HELP = "cross-encoder of sentence-transformers that re-ranks what was found: a hub id or a folder"


@dataclass(frozen=True)
class TrainConfig:
    """Options of train.py. None is resolved per model by `resolve`."""

    model: str = option(
        "run", "tiny", "tiny, a short name such as Qwen2.5-3B, or a hub id or folder of a family in docs/models.md"
    )
    method: Literal["search-r1", "r1", "direct"] | None = option(
        "run",
        None,
        "with the search engine, without it (r1), or without reasoning too (direct) [default: direct for sft, else "
        "search-r1]",
    )
    algorithm: Literal["grpo", "ppo", "sft", "rejection-sampling"] = option(
        "run", "grpo", "RL by grpo or ppo, sft on the gold answers, or sft on sampled rollouts that were right"
    )
    init: str | None = option(
        "run",
        None,
        "start from what was learnt before, and take that as the reference: a run, a checkpoint, an adapter, or "
        "fine-tuned weights of --model",
    )
    output_dir: str | None = option("run", None, "folder of the run [default: runs/<time>-<model>-<algorithm>]")
    resume: bool = option("run", False, "go on from the newest checkpoint in --output-dir")
    seed: int = option(
        "run", 0, "of the world, the order of questions, sampling and the adapter", least=0, most=MOST_SEED
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option("run", "auto", "where to compute")

    dataset: str | None = option("data", None, f"a file, or one of {', '.join(DATASETS)}" + _auto("dataset"))
    data_path: str | None = option("data", None, "local file with the questions, instead of the hub")
    corpus: str | None = option("data", None, CORPUS_HELP + " [default: the data set's own]")
    eval_questions: int | None = option(
        "data",
        None,
        "held-out questions; of a file's half of them at most" + _auto("eval_questions"),
        least=1,
        most=MOST_QUESTIONS,
    )
    world_difficulty: Literal["infobox", "simple", "natural"] | None = option(
        "data", None, "how the synthetic world's passages are written [default: natural]"
    )
    world_hops: str | None = option("data", None, "hops of the synthetic questions, in equal shares [default: 1,2]")
    world_noise: int = option("data", 0, "made-up words after every passage of the synthetic world", least=0, most=1000)
    template: Literal["paper", "short"] | None = option("data", None, "prompt template" + _auto("template"))
    observation: Literal["paper", "plain"] | None = option("data", None, OBSERVATION_HELP + _auto("observation"))

    date: str | None = option("data", None, DATE_HELP + " [default: the day that the run begins on]")

    retriever: Literal[
        "auto", "bm25", "bm25s", "dense", "hybrid", "milvus", "http", "none", "empty", "random", "oracle"
    ] = option(
        "retrieval",
        "auto",
        "bm25 is rank-bm25; auto by size; hybrid is BM25 and dense; probes: no engine (none), nothing found (empty), "
        "any passages (random), the supporting ones (oracle)",
    )
    retriever_url: str | None = option("retrieval", None, RETRIEVER_URL_HELP)
    topk: int = option("retrieval", 3, "passages a search", least=1, most=MOST_TOPK)
    stemming: bool = option("retrieval", False, STEMMING_HELP)
    stop_words: bool = option("retrieval", True, STOP_WORDS_HELP)
    dense_model: str = option("retrieval", DENSE_MODEL, DENSE_MODEL_HELP)
    dense_index: Literal["flat", "hnsw"] = option("retrieval", "flat", DENSE_INDEX_HELP)
    reranker: str | None = option("retrieval", None, RERANKER_HELP)

    max_turns: int = option("rollout", 4, "actions a question; then one last turn without search", least=1, most=1000)
    max_new_tokens: int | None = option(
        "rollout", None, "tokens a turn" + _auto("max_new_tokens"), least=1, most=MOST_TOKENS
    )
    max_total_tokens: int | None = option(
        "rollout", None, "tokens a trajectory, prompt included" + _auto("max_total_tokens"), least=16, most=MOST_TOKENS
    )
    max_observation_tokens: int | None = option(
        "rollout", None, "tokens an observation" + _auto("max_observation_tokens"), least=16, most=MOST_TOKENS
    )
    temperature: float = option("rollout", 1.0, "of sampling, in rollouts and in the loss alike", above=0, most=100)
    rollout_batch_size: int | None = option(
        "rollout",
        None,
        "conversations decoded at a time; lower it to save memory" + _auto("rollout_batch_size"),
        least=1,
        most=10**6,
    )

    steps: int | None = option("optimisation", None, "training steps" + _auto("steps"), least=1, most=MOST_STEPS)
    questions_per_step: int | None = option(
        "optimisation", None, "questions a step" + _auto("questions_per_step"), least=1, most=10**6
    )
    stratify: bool = option(
        "optimisation", False, "take equal shares of every source into a step; in the world, of every number of hops"
    )
    group_size: int | None = option(
        "optimisation", None, "rollouts a question (G); 1 is REINFORCE" + _auto("group_size"), least=1, most=10_000
    )
    demonstration_questions: int | None = option(
        "optimisation",
        None,
        "training questions that sft and rejection-sampling learn from [default: 800 for tiny, else 10000]",
        least=1,
        most=MOST_QUESTIONS,
    )
    mini_batches: int = option("optimisation", 2, "optimiser steps a pass over the rollouts", least=1, most=10**6)
    epochs: int = option("optimisation", 1, "passes over the rollouts of a step", least=1, most=1000)
    learning_rate: float | None = option(
        "optimisation",
        None,
        "[default: LoRA 3e-3 for tiny, else 2e-5; full fine-tuning 5e-4 for tiny, else 1e-6]",
        above=0,
        most=10,
    )
    warmup_steps: int | None = option(
        "optimisation", None, "steps of linear warm-up, then constant" + _auto("warmup_steps"), least=0, most=MOST_STEPS
    )
    decay_steps: int | None = option(
        "optimisation",
        None,
        "last steps, over which the learning rate falls to 0" + _auto("decay_steps"),
        least=0,
        most=MOST_STEPS,
    )
    weight_decay: float = option("optimisation", 0.0, "of AdamW", least=0, most=10)
    grad_clip: float = option("optimisation", 1.0, "largest norm of the gradient", above=0, most=1e9)
    tokens_per_micro_batch: int | None = option(
        "optimisation",
        None,
        "tokens a forward and backward; lower it to save memory" + _auto("tokens_per_micro_batch"),
        least=1,
        most=2**24,
    )
    max_skipped_updates: int = option(
        "optimisation",
        10,
        "stop after so many updates in a row whose loss or gradient was not finite",
        least=1,
        most=MOST_STEPS,
    )

    cold_start: int = option(
        "imitation",
        0,
        "scripted episodes that are imitated before RL, for a model that never earns a reward",
        least=0,
        most=MOST_QUESTIONS,
    )
    demonstrations: str | None = option(
        "imitation", None, "imitate these instead: a jsonl file of question and turns, or a run's rollouts"
    )
    cold_start_learning_rate: float | None = option(
        "imitation",
        None,
        "[default: LoRA 3e-3 for tiny, else 5e-4; full fine-tuning 5e-4 for tiny, else 2e-5]",
        above=0,
        most=10,
    )
    cold_start_batch_size: int = option("imitation", 8, "episodes per optimizer step", least=1, most=10_000)
    cold_start_multi_hop: float | None = option(
        "imitation",
        None,
        "share of the episodes that search twice or more; where too few do, the policy learns to search once "
        "[default: as the questions come]",
        least=0,
        most=1,
    )

    reward: Literal["em", "sub-em", "f1", "format"] = option(
        "reward", "em", "format: exact match with the public code's partial credit for a well-formed trajectory"
    )
    retrieval_bonus: float = option(
        "reward", 0.0, "added to a wrong answer's reward if a passage held the right one", least=0, most=10
    )
    overlong: Literal["keep", "drop", "penalise"] = option(
        "reward", "keep", "trajectories cut by --max-total-tokens: keep, drop from the loss, or penalise softly (DAPO)"
    )
    overlong_buffer: int = option(
        "reward", 64, "tokens before the limit over which the penalty grows to 1", least=1, most=MOST_TOKENS
    )

    baseline: Literal["group", "leave-one-out", "none"] = option(
        "objective",
        "group",
        "what a reward is compared with: the group's mean, the others' (RLOO), nothing (REINFORCE)",
    )
    normalize_std: bool = option(
        "objective", True, "divide a group's advantages by the std of its rewards; Dr. GRPO does not"
    )
    drop_zero_variance: bool | None = option(
        "objective", None, "leave out groups whose rewards are all equal" + _auto("drop_zero_variance")
    )
    dynamic_sampling: int = option(
        "objective",
        1,
        "rounds of rollouts a step at most, to replace groups whose rewards are all equal (DAPO)",
        least=1,
        most=100,
    )
    loss_aggregation: Literal["token", "sequence", "constant"] = option(
        "objective",
        "token",
        "mean over tokens (DAPO), over sequences of their means (GRPO), or sum over a constant (Dr. GRPO)",
    )
    ratio: Literal["token", "sequence"] = option(
        "objective", "token", "importance ratio of each token, or of the whole trajectory (GSPO)"
    )
    clip_eps: float = option("objective", 0.2, "the ratio is clipped below at 1 - this", above=0, most=1)
    clip_eps_high: float | None = option(
        "objective", None, "and above at 1 + this; more is DAPO's clip-higher [default: --clip-eps]", above=0, most=1000
    )
    kl_coef: float = option(
        "objective", 0.001, "beta, weight of the KL to the reference; 0 does without", least=0, most=1000
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = option(
        "objective", None, "of the KL [default: k3, in the loss, for grpo; k1, in the reward, for ppo]"
    )
    entropy_coef: float = option("objective", 0.0, "weight of an entropy bonus", least=0, most=1000)
    importance_cap: float | None = option(
        "objective",
        None,
        "weigh tokens by trainer / sampler probability, at most this [default: no weights]",
        above=0,
        most=10_000,
    )
    llds_coef: float = option(
        "objective", 0.0, "weight of the likelihood-preserving regulariser LLDS (arXiv 2512.04220)", least=0, most=1000
    )

    critic_learning_rate: float | None = option(
        "PPO", None, "of the critic's adapter and value head [default: 3e-3 for tiny, else 1e-4]", above=0, most=10
    )
    critic_warmup_steps: int = option(
        "PPO", 2, "steps of the critic's linear warm-up, then constant", least=0, most=MOST_STEPS
    )
    gamma: float = option("PPO", 1.0, "discount a policy token", least=0, most=1)
    gae_lambda: float = option("PPO", 1.0, "lambda of GAE; 1 is the return less the value", least=0, most=1)
    value_clip: float = option(
        "PPO", 0.5, "a value moves at most this far from its old one in a step's loss", above=0, most=1e6
    )

    mask_observations: bool = option(
        "museum", True, "keep what the engine returned out of the loss (paper, section 5.4)"
    )
    bug_retokenise: bool = option(
        "museum", False, "train on turns that were decoded, cut at the stop string and encoded again"
    )
    bug_colliding_groups: bool = option(
        "museum", False, "number groups within each data source, so that two sources share numbers"
    )
    bug_masked_in_denominator: bool = option(
        "museum", False, "divide the loss by all tokens, those of prompt, observations and padding included"
    )
    bug_tool_tokens_in_length: bool = option(
        "museum", False, "count observation tokens in the length that a sequence's loss is divided by"
    )
    bug_no_last_turn: bool = option("museum", False, "no last turn without search once the action budget is spent")
    bug_reward_from_whole_text: bool = option(
        "museum", False, "pay for a gold answer anywhere in the text, passages included"
    )

    lora_rank: int | None = option("model", None, "0 is full fine-tuning" + _auto("lora_rank"), least=0, most=4096)
    lora_alpha: int | None = option(
        "model", None, "scale of the adapter [default: twice the rank]", least=1, most=10**6
    )
    load_in_4bit: bool | None = option("model", None, "NF4 base through bitsandbytes" + _auto("load_in_4bit"))
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = option(
        "model",
        "auto",
        "auto: bfloat16 where the GPU has it, else float16; float32 on other devices. fast: bfloat16 on a CPU that "
        "has it too",
    )
    gradient_checkpointing: bool | None = option(
        "model", None, "recompute activations to save memory" + _auto("gradient_checkpointing")
    )

    check: bool = option(
        "logging", False, "check every invariant of a step before its update; costs a forward, and stops on a fault"
    )
    memory_check: bool = option("model", True, "predict peak memory before loading, and refuse what does not fit")
    memory_limit: float | None = option(
        "model",
        None,
        "GB that the run may take, where others share the device [default: what is free]",
        above=0,
        most=10**6,
    )
    rollout_weights: Literal["auto", "base", "dequantised"] = option(
        "model",
        "auto",
        "what rollouts read of a 4-bit base: itself (base), or a copy of the same numbers unpacked to --dtype, which "
        "is faster; auto takes the copy if the memory check finds room",
    )
    compile_decode: bool = option("model", False, "torch.compile the decode step: faster after a minute or two")
    fused_kernels: bool = option("model", False, "Liger's kernels in the model; a GPU and liger-kernel")

    eval_every: int | None = option(
        "logging", None, "steps between evaluations" + _auto("eval_every"), least=1, most=NEVER
    )
    save_every: int | None = option(
        "logging", None, "steps between checkpoints" + _auto("save_every"), least=1, most=NEVER
    )
    keep_checkpoints: int = option(
        "logging", 2, "newest checkpoints to keep; the best is kept besides", least=1, most=NEVER
    )
    tensorboard: bool = option("logging", True, "write TensorBoard event files")
    wandb: bool = option("logging", False, "log to Weights & Biases")

    @property
    def has_bug(self) -> bool:
        """Whether a flag of the museum breaks the run on purpose."""
        return any(getattr(self, option_.name) for option_ in fields(self) if option_.name.startswith("bug_"))
