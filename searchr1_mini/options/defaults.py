"""Default values for each model size and algorithm, the presets, and the short names of models."""

from __future__ import annotations

from typing import Any

HUB_MODELS = {
    short: f"{owner}/{short}"
    for owner, family, sizes, kinds in (
        ("Qwen", "Qwen2.5", ("0.5B", "1.5B", "3B", "7B", "14B"), ("", "-Instruct")),
        ("Qwen", "Qwen3", ("0.6B", "1.7B", "4B"), ("", "-Base")),  # without -Base it is instructed
        ("HuggingFaceTB", "SmolLM2", ("135M", "360M", "1.7B"), ("", "-Instruct")),
        ("meta-llama", "Llama-3.2", ("1B", "3B"), ("", "-Instruct")),
    )
    for short in (f"{family}-{size}{kind}" for size in sizes for kind in kinds)
}

PROMPTED = ("direct", "cot", "ircot", "search-o1", "rag")  # methods that need no training
TRAINED = ("sft", "r1", "rejection-sampling", "search-r1")
MAX_TURNS, HUNT_TURNS = 4, 2  # in a bug hunt so few that conversations use them up, else one fault would not act
WITHOUT_SEARCH = ("direct", "cot", "r1", "sft")  # every other method asks an engine, one of the user's own too
SEARCHING = tuple(name for name in (*PROMPTED, *TRAINED) if name not in WITHOUT_SEARCH)


TINY = {
    "dataset": "world", "eval_questions": 200, "template": "short", "observation": "plain",
    "max_new_tokens": 64, "max_total_tokens": 640, "max_observation_tokens": 256, "rollout_batch_size": 256,
    "steps": 40, "questions_per_step": 16, "group_size": 8, "warmup_steps": 4, "decay_steps": 20,
    "drop_zero_variance": True, "tokens_per_micro_batch": 4096, "lora_rank": 16, "load_in_4bit": False,
    "gradient_checkpointing": False, "eval_every": 5, "save_every": 20,
}  # fmt: skip
REAL = {
    "dataset": "hotpotqa", "eval_questions": 200, "template": "paper", "observation": "paper",
    "max_new_tokens": 500, "max_total_tokens": 4096, "max_observation_tokens": 500, "rollout_batch_size": 32,
    "steps": 500, "questions_per_step": 8, "group_size": 5, "warmup_steps": 20, "decay_steps": 0,
    "drop_zero_variance": False, "tokens_per_micro_batch": 8192, "lora_rank": 32, "load_in_4bit": True,
    "gradient_checkpointing": True, "eval_every": 50, "save_every": 50,
}  # fmt: skip
# LoRA wants ten to twenty times the learning rate of full fine-tuning; the tiny base, far smaller, wants more
LEARNING_RATES = {("tiny", "lora"): 3e-3, ("tiny", "full"): 5e-4, ("real", "lora"): 2e-5, ("real", "full"): 1e-6}
IMITATION_RATES = {("tiny", "lora"): 3e-3, ("tiny", "full"): 5e-4, ("real", "lora"): 1e-4, ("real", "full"): 1e-5}
COLD_START_RATES = {("tiny", "lora"): 3e-3, ("tiny", "full"): 5e-4, ("real", "lora"): 5e-4, ("real", "full"): 2e-5}

# one rollout a question: the critic is the baseline, so that as many questions as rollouts fit into a step
PPO = {
    "tiny": {"questions_per_step": 128, "group_size": 1, "steps": 36, "drop_zero_variance": False},
    "real": {"questions_per_step": 40, "group_size": 1, "drop_zero_variance": False},
}
# imitation: a step is a batch of demonstrations
IMITATION = {
    "tiny": {"questions_per_step": 64, "steps": 20, "eval_every": 20, "demonstration_questions": 800},
    "real": {"questions_per_step": 64, "demonstration_questions": 10_000},
}
PAPERS_ROLLOUTS = 5  # a question, in rejection sampling
# the paper's critic learns ten times as fast as its policy
CRITIC_LEARNING_RATES = {("tiny", "lora"): 3e-3, ("tiny", "full"): 3e-3, ("real", "lora"): 1e-4, ("real", "full"): 1e-5}

PAPER = {
    "questions_per_step": 512, "group_size": 5, "lora_rank": 0, "load_in_4bit": False, "learning_rate": 1e-6,
    "warmup_steps": 142, "steps": 500, "mini_batches": 2, "max_total_tokens": 4096, "max_new_tokens": 500,
    "max_observation_tokens": 500, "save_every": 100, "topk": 3, "max_turns": 4,
}  # fmt: skip
# a real model that learns to search on two cores, see docs/laptop_llm.md
LAPTOP_LLM = {
    "model": "SmolLM2-135M-Instruct", "dataset": "world", "template": "short", "observation": "plain", "topk": 2,
    "max_turns": 3, "max_new_tokens": 48, "max_total_tokens": 640, "max_observation_tokens": 160,
    "load_in_4bit": False, "gradient_checkpointing": False, "dtype": "fast", "tokens_per_micro_batch": 2048,
    "rollout_batch_size": 128, "cold_start": 176, "cold_start_multi_hop": 0.6, "steps": 27, "questions_per_step": 16,
    "stratify": True, "group_size": 6, "temperature": 0.6, "mini_batches": 1, "learning_rate": 7.5e-5,
    "warmup_steps": 2, "decay_steps": 14, "kl_coef": 0.0, "drop_zero_variance": True, "retrieval_bonus": 0.3,
    "search_cost": 0.1, "eval_questions": 400, "eval_every": 27, "save_every": 2,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "laptop-llm": LAPTOP_LLM,
    "24gb": {"tokens_per_micro_batch": 8192, "rollout_batch_size": 32, "max_total_tokens": 4096},
    "16gb": {"tokens_per_micro_batch": 4096, "rollout_batch_size": 16, "max_total_tokens": 3072, "lora_rank": 16},
    "12gb": {"tokens_per_micro_batch": 2048, "rollout_batch_size": 8, "max_total_tokens": 2048, "lora_rank": 16,
             "max_observation_tokens": 400, "max_new_tokens": 300},
    "t4": {"tokens_per_micro_batch": 4096, "rollout_batch_size": 16, "max_total_tokens": 3072, "lora_rank": 16,
           "dtype": "float16"},
    "paper": PAPER,
    "paper-ppo": PAPER | {"algorithm": "ppo", "group_size": 1, "critic_learning_rate": 1e-5, "critic_warmup_steps": 8},
}  # fmt: skip
