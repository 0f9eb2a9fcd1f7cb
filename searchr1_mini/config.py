"""Every option in two flat dataclasses, and how what is left open is resolved for the model at hand."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from searchr1_mini.errors import UserError

HUB_MODELS = {
    f"Qwen2.5-{size}{kind}": f"Qwen/Qwen2.5-{size}{kind}"
    for size in ("0.5B", "1.5B", "3B", "7B", "14B")
    for kind in ("", "-Instruct")
}
DATASETS = "world hotpotqa nq_hotpotqa nq triviaqa popqa 2wikimultihopqa musique bamboogle jsonl".split()

TINY = {
    "dataset": "world", "eval_questions": 200, "template": "short", "max_new_tokens": 64, "max_total_tokens": 640,
    "max_observation_tokens": 256, "rollout_batch_size": 256, "steps": 40, "questions_per_step": 16, "group_size": 8,
    "warmup_steps": 4, "drop_zero_variance": True, "tokens_per_micro_batch": 16384, "lora_rank": 16,
    "load_in_4bit": False, "gradient_checkpointing": False, "eval_every": 5, "save_every": 20,
}  # fmt: skip
REAL = {
    "dataset": "hotpotqa", "eval_questions": 200, "template": "paper", "max_new_tokens": 500, "max_total_tokens": 4096,
    "max_observation_tokens": 500, "rollout_batch_size": 32, "steps": 500, "questions_per_step": 8, "group_size": 5,
    "warmup_steps": 20, "drop_zero_variance": False, "tokens_per_micro_batch": 8192, "lora_rank": 32,
    "load_in_4bit": True, "gradient_checkpointing": True, "eval_every": 50, "save_every": 50,
}  # fmt: skip
# LoRA wants about ten times the learning rate of full fine-tuning; the tiny base, a thousand times smaller, wants more
LEARNING_RATES = {("tiny", "lora"): 3e-3, ("tiny", "full"): 5e-4, ("real", "lora"): 2e-5, ("real", "full"): 1e-6}

PRESETS: dict[str, dict[str, Any]] = {
    "24gb": {"tokens_per_micro_batch": 8192, "rollout_batch_size": 32, "max_total_tokens": 4096},
    "16gb": {"tokens_per_micro_batch": 4096, "rollout_batch_size": 16, "max_total_tokens": 3072, "lora_rank": 16},
    "12gb": {"tokens_per_micro_batch": 2048, "rollout_batch_size": 8, "max_total_tokens": 2048, "lora_rank": 16,
             "max_observation_tokens": 400, "max_new_tokens": 300},
    "t4": {"tokens_per_micro_batch": 4096, "rollout_batch_size": 16, "max_total_tokens": 3072, "lora_rank": 16,
           "dtype": "float16"},
    "paper": {"questions_per_step": 512, "group_size": 5, "lora_rank": 0, "load_in_4bit": False, "learning_rate": 1e-6,
              "warmup_steps": 142, "steps": 500, "mini_batches": 2, "max_total_tokens": 4096, "max_new_tokens": 500,
              "max_observation_tokens": 500, "save_every": 100, "topk": 3, "max_turns": 4},
}  # fmt: skip


def option(group: str, default: Any, help_text: str, least: float | None = None, above: float | None = None):
    """A field with its group in --help, its meaning and unit, and its range: at least `least`, or above `above`."""
    return field(default=default, metadata={"group": group, "help": help_text, "least": least, "above": above})


def _auto(name: str) -> str:
    return f" [default: {TINY[name]} for tiny, else {REAL[name]}]"


@dataclass(frozen=True)
class TrainConfig:
    """Options of train.py. None is resolved per model by `resolve`."""

    model: str = option("run", "tiny", "tiny, a short name such as Qwen2.5-3B, a hub id, or a local folder")
    method: Literal["search-r1", "r1"] = option("run", "search-r1", "with the search engine, or without (r1)")
    algorithm: Literal["grpo"] = option("run", "grpo", "how the policy is updated")
    output_dir: str | None = option("run", None, "folder of the run [default: runs/<time>-<model>-<algorithm>]")
    resume: bool = option("run", False, "go on from the newest checkpoint in --output-dir")
    seed: int = option("run", 0, "of the world, the order of questions, sampling and the adapter", least=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("run", "auto", "where to compute")

    dataset: str | None = option("data", None, f"one of {', '.join(DATASETS)}" + _auto("dataset"))
    data_path: str | None = option("data", None, "local file with the questions, instead of the hub")
    corpus: str | None = option("data", None, "local jsonl with the passages [default: the data set's own paragraphs]")
    eval_questions: int | None = option("data", None, "held-out questions" + _auto("eval_questions"), least=1)
    world_difficulty: Literal["infobox", "simple", "natural"] | None = option(
        "data", None, "how the synthetic world's passages are written [default: simple]"
    )
    world_hops: str | None = option("data", None, "hops of the synthetic questions, in equal shares [default: 1,2]")
    template: Literal["paper", "short"] | None = option("data", None, "prompt template" + _auto("template"))

    retriever: Literal["auto", "bm25", "bm25s", "http"] = option("retrieval", "auto", "bm25 is rank-bm25; auto by size")
    retriever_url: str | None = option("retrieval", None, "address of a /retrieve server, for --retriever http")
    topk: int = option("retrieval", 3, "passages a search", least=1)

    max_turns: int = option("rollout", 4, "actions a question; then one last turn without search", least=1)
    max_new_tokens: int | None = option("rollout", None, "tokens a turn" + _auto("max_new_tokens"), least=1)
    max_total_tokens: int | None = option(
        "rollout", None, "tokens a trajectory, prompt included" + _auto("max_total_tokens"), least=16
    )
    max_observation_tokens: int | None = option(
        "rollout", None, "tokens an observation" + _auto("max_observation_tokens"), least=16
    )
    temperature: float = option("rollout", 1.0, "of sampling, in rollouts and in the loss alike", above=0)
    rollout_batch_size: int | None = option(
        "rollout",
        None,
        "conversations decoded at a time; lower it to save memory" + _auto("rollout_batch_size"),
        least=1,
    )

    steps: int | None = option("optimisation", None, "training steps" + _auto("steps"), least=1)
    questions_per_step: int | None = option(
        "optimisation", None, "questions a step" + _auto("questions_per_step"), least=1
    )
    group_size: int | None = option(
        "optimisation", None, "rollouts a question (G); 1 is REINFORCE" + _auto("group_size"), least=1
    )
    mini_batches: int = option("optimisation", 2, "optimiser steps a pass over the rollouts", least=1)
    epochs: int = option("optimisation", 1, "passes over the rollouts of a step", least=1)
    learning_rate: float | None = option(
        "optimisation",
        None,
        "[default: LoRA 3e-3 for tiny, else 2e-5; full fine-tuning 5e-4 for tiny, else 1e-6]",
        above=0,
    )
    warmup_steps: int | None = option(
        "optimisation", None, "steps of linear warm-up, then constant" + _auto("warmup_steps"), least=0
    )
    weight_decay: float = option("optimisation", 0.0, "of AdamW", least=0)
    grad_clip: float = option("optimisation", 1.0, "largest norm of the gradient", above=0)
    kl_coef: float = option("optimisation", 0.001, "beta, weight of the KL to the reference; 0 does without", least=0)
    clip_eps: float = option("optimisation", 0.2, "the ratio is clipped below at 1 - this", above=0)
    clip_eps_high: float | None = option("optimisation", None, "and above at 1 + this [default: --clip-eps]", above=0)
    loss_aggregation: Literal["token", "sequence"] = option(
        "optimisation", "token", "mean over all tokens of a step, or over sequences of their token means"
    )
    normalize_std: bool = option("optimisation", True, "divide a group's advantages by the std of its rewards")
    drop_zero_variance: bool | None = option(
        "optimisation", None, "leave out groups whose rewards are all equal" + _auto("drop_zero_variance")
    )
    mask_observations: bool = option("optimisation", True, "keep what the engine returned out of the loss")
    tokens_per_micro_batch: int | None = option(
        "optimisation",
        None,
        "tokens a forward and backward; lower it to save memory" + _auto("tokens_per_micro_batch"),
        least=1,
    )

    lora_rank: int | None = option("model", None, "0 is full fine-tuning" + _auto("lora_rank"), least=0)
    lora_alpha: int | None = option("model", None, "scale of the adapter [default: twice the rank]", least=1)
    load_in_4bit: bool | None = option("model", None, "NF4 base through bitsandbytes" + _auto("load_in_4bit"))
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "model", "auto", "auto: bfloat16 where the GPU has it, else float16; float32 on a CPU"
    )
    gradient_checkpointing: bool | None = option(
        "model", None, "recompute activations to save memory" + _auto("gradient_checkpointing")
    )

    eval_every: int | None = option("logging", None, "steps between evaluations" + _auto("eval_every"), least=1)
    save_every: int | None = option("logging", None, "steps between checkpoints" + _auto("save_every"), least=1)
    keep_checkpoints: int = option("logging", 2, "newest checkpoints to keep", least=1)
    tensorboard: bool = option("logging", True, "write TensorBoard event files")
    wandb: bool = option("logging", False, "log to Weights & Biases")


@dataclass(frozen=True)
class EvalConfig:
    """Options of eval.py. None is taken from the run (--run), or resolved per model (--model)."""

    run: str | None = option("what", None, "folder of a training run")
    checkpoint: int | None = option("what", None, "step of the run's checkpoint [default: the newest]", least=1)
    model: str | None = option("what", None, "instead of a run: tiny, a short name, a hub id or a local folder")
    adapter: str | None = option("what", None, "folder of a LoRA adapter to put on --model")
    ask: str | None = option("what", None, "show one trajectory for this question instead of an evaluation")

    method: Literal["search-r1", "r1"] | None = option("how", None, "with the search engine, or without (r1)")
    questions: int = option("how", 500, "held-out questions in all", least=1)
    temperature: float = option("how", 0.0, "0 decodes greedily", least=0)
    seed: int = option("how", 0, "of the sampling", least=0)
    output: str | None = option("how", None, "write the summary and every trajectory to this json file")
    colour: Literal["auto", "always", "never"] = option("how", "auto", "colour trajectories by who wrote what")

    dataset: str | None = option("data", None, f"one of {', '.join(DATASETS)}")
    data_path: str | None = option("data", None, "local file with the questions")
    corpus: str | None = option("data", None, "local jsonl with the passages")
    world_difficulty: Literal["infobox", "simple", "natural"] | None = option("data", None, "of the synthetic world")
    world_hops: str | None = option("data", None, "hops of the synthetic questions, as 1,2")
    world_seed: int | None = option("data", None, "another number is a fresh world [default: the run's seed]", least=0)
    template: Literal["paper", "short"] | None = option("data", None, "prompt template")

    retriever: Literal["auto", "bm25", "bm25s", "http", "empty"] | None = option(
        "retrieval", None, "empty finds nothing"
    )
    retriever_url: str | None = option("retrieval", None, "address of a /retrieve server, for --retriever http")
    topk: int | None = option("retrieval", None, "passages a search", least=1)

    max_turns: int | None = option("rollout", None, "actions a question", least=1)
    max_new_tokens: int | None = option("rollout", None, "tokens a turn", least=1)
    max_total_tokens: int | None = option("rollout", None, "tokens a trajectory, prompt included", least=16)
    max_observation_tokens: int | None = option("rollout", None, "tokens an observation", least=16)
    rollout_batch_size: int | None = option("rollout", None, "conversations decoded at a time", least=1)

    load_in_4bit: bool | None = option("model", None, "NF4 base through bitsandbytes")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("model", "auto", "what to compute in")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("model", "auto", "where to compute")


def is_tiny(config: TrainConfig) -> bool:
    """Whether the run is on the base that ships with the package."""
    return config.model == "tiny"


def resolve_model(name: str) -> str:
    """What transformers loads: an existing folder, a hub id, a known short name, or the packaged tiny base.

    Raises:
        UserError: it is none of these; names the closest.
    """
    if name == "tiny":
        return str(Path(__file__).parent / "tiny_base")
    if Path(name).is_dir() or "/" in name:
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise UserError(f"there is no folder {name}; --model takes a folder, a hub id or a short name")
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    if name in HUB_MODELS:
        return HUB_MODELS[name]
    raise UserError(
        f"unknown model {name!r}{suggest(name, ['tiny', *HUB_MODELS])}; any hub id or local folder works too"
    )


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing if nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def world_hops_list(config: TrainConfig) -> list[int]:
    """`1,2` -> [1, 2].

    Raises:
        UserError: it is no list of numbers from 1 to 3.
    """
    try:
        hops = [int(part) for part in config.world_hops.split(",")]
    except ValueError:
        hops = []
    if not hops or len(set(hops)) < len(hops) or not all(1 <= hop <= 3 for hop in hops):
        raise UserError(f"--world-hops {config.world_hops}: give different numbers from 1 to 3, as in 1,2")
    return hops


def resolve(config: TrainConfig) -> TrainConfig:
    """Fills every open value for the model at hand and refuses what does not fit together.

    Raises:
        UserError: one sentence that names the flag, its value and the remedy.
    """
    check_ranges(config)
    _check_given(config)
    size = "tiny" if is_tiny(config) else "real"
    values = dict(TINY if size == "tiny" else REAL)
    if config.lora_rank == 0:
        values["load_in_4bit"] = False
    given = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) is not None}
    values |= given
    way = "full" if values["lora_rank"] == 0 else "lora"
    values.setdefault("learning_rate", LEARNING_RATES[size, way])
    values.setdefault("lora_alpha", max(2 * values["lora_rank"], 1))
    values.setdefault("clip_eps_high", config.clip_eps)
    if values["dataset"] == "world":
        values.setdefault("world_difficulty", "simple")
        values.setdefault("world_hops", "1,2")
    config = replace(config, **values)
    _check_resolved(config)
    return config


def check_ranges(config: TrainConfig | EvalConfig) -> None:
    """Refuses a number outside of its range.

    Raises:
        UserError: names the flag, its value and the range.
    """
    for option_ in fields(config):
        value, least, above = getattr(config, option_.name), option_.metadata["least"], option_.metadata["above"]
        flag = flag_of(option_.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag} {value}: it must be a finite number")
        if value is not None and least is not None and not value >= least:
            raise UserError(f"{flag} {value}: it must be at least {least}")
        if value is not None and above is not None and not value > above:
            raise UserError(f"{flag} {value}: it must be above {above}")


def flag_of(name: str) -> str:
    """`max_turns` -> `--max-turns`."""
    return "--" + name.replace("_", "-")


def _check_given(config: TrainConfig) -> None:
    if config.dataset is not None and config.dataset not in DATASETS:
        raise UserError(
            f"unknown data set {config.dataset!r}{suggest(config.dataset, DATASETS)}; known: {', '.join(DATASETS)}"
        )
    if config.resume and config.output_dir is None:
        raise UserError("--resume needs the run's folder; add --output-dir runs/NAME")
    if config.retriever == "http" and not config.retriever_url:
        raise UserError("--retriever http needs the address of a server; add --retriever-url http://host:port")
    if config.retriever_url and config.retriever != "http":
        raise UserError(f"--retriever-url does nothing with --retriever {config.retriever}; add --retriever http")
    if config.method == "r1" and (config.retriever != "auto" or config.corpus or config.topk != TrainConfig.topk):
        raise UserError("--method r1 trains without a search engine; leave out --retriever, --corpus and --topk")


def _check_resolved(config: TrainConfig) -> None:
    is_world = config.dataset == "world"
    rules = [
        (is_world and config.data_path, "--data-path does not go with --dataset world; name the file's data set"),
        (is_world and config.corpus, "--corpus does not go with --dataset world, which brings its own passages"),
        (is_world and config.retriever == "http", "--retriever http cannot know the passages of --dataset world"),
        (not is_world and (config.world_difficulty or config.world_hops),
         f"--world-difficulty and --world-hops need --dataset world, but it is {config.dataset}"),
        (config.load_in_4bit and config.lora_rank == 0,
         "--load-in-4bit needs an adapter; set --lora-rank above 0, or --no-load-in-4bit for full fine-tuning"),
        (config.max_new_tokens >= config.max_total_tokens,
         f"--max-new-tokens {config.max_new_tokens} must be below --max-total-tokens {config.max_total_tokens}"),
        (config.max_observation_tokens >= config.max_total_tokens,
         f"--max-observation-tokens {config.max_observation_tokens} must be below --max-total-tokens "
         f"{config.max_total_tokens}"),
        (config.mini_batches > config.questions_per_step,
         f"--mini-batches {config.mini_batches} is more than --questions-per-step {config.questions_per_step}"),
        (config.clip_eps >= 1, f"--clip-eps {config.clip_eps}: it must be below 1"),
        (config.clip_eps_high < config.clip_eps,
         f"--clip-eps-high {config.clip_eps_high} must not be below --clip-eps {config.clip_eps}"),
    ]  # fmt: skip
    for is_broken, sentence in rules:
        if is_broken:
            raise UserError(sentence)
    if is_world:
        world_hops_list(config)
