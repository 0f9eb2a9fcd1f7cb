"""Every option of evaluation; those that training has too are declared there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from searchr1_mini.core.config import MOST_SEED
from searchr1_mini.data.names import DATASETS
from searchr1_mini.options.config import MOST_QUESTIONS, TrainConfig
from searchr1_mini.options.defaults import PROMPTED, TRAINED
from searchr1_mini.options.nested import grouped, shared


@dataclass(frozen=True)
class EvalConfig:
    """Options of eval.py. None is taken from the run (--run), or resolved per model (--model)."""

    run: str | None = grouped("what", None, "folder of a training run, or several, separated by commas")
    checkpoint: str | None = grouped("what", None, "checkpoint of the run: a step, or best [default: the newest]")
    model: str | None = grouped(
        "what", None, "model to evaluate instead of a run: tiny, a short name, a hub id or a local folder"
    )
    adapter: str | None = grouped("what", None, "folder of a LoRA adapter to put on --model, for search-r1")
    ask: str | None = grouped("what", None, "question to answer, in place of an evaluation")
    chat: bool = grouped("what", False, "answer questions in the terminal, live, until Ctrl-D")
    web: bool = grouped("what", False, "answer questions on a page in the browser, live, until Ctrl-C")
    methods: str | None = grouped(
        "what",
        None,
        f"methods: all, or some of {', '.join((*PROMPTED, *TRAINED))} [default: the run's own, or search-r1]",
    )
    datasets: str | None = grouped(
        "what",
        None,
        f"data sets: all, or some of {', '.join(DATASETS)}, or files [default: the run's own, or the model's]",
    )
    train: bool | None = grouped(
        "what",
        None,
        "train sft, r1, rejection-sampling and search-r1 first if no --run brings them [default: for tiny]",
    )

    limit: int = grouped("how", 500, "questions per data set, always the same ones", least=1, most=MOST_QUESTIONS)
    shots: int = grouped(
        "how",
        0,
        "worked examples in the prompt of untrained methods, made from training questions",
        least=0,
        most=32,
    )
    temperature: float = grouped("how", 0.0, "sampling temperature; 0 decodes greedily", least=0, most=100)
    seed: int = grouped(
        "how",
        0,
        "random seed for sampling; with --model, also for its world and its baselines",
        least=0,
        most=MOST_SEED,
    )
    compare: bool = grouped("how", False, "print the paper's figures beneath ours, and what differs in the set-up")
    against: str | None = grouped("how", None, "row that others are tested against [default: the last]")
    output_dir: str | None = grouped(
        "how",
        None,
        "folder for the results; finished parts are kept [default: in the run's own, or evaluations/NAME]",
    )
    color: Literal["auto", "always", "never"] = grouped(
        "how", "auto", "colors that tell who wrote what; auto is where a terminal shows them, without NO_COLOR"
    )
    host: str | None = grouped("how", None, "address of the --web page [default: 127.0.0.1, this machine only]")
    port: int | None = grouped("how", None, "port of the --web page [default: 8765]", least=1, most=65535)

    data_path: str | None = shared("data", TrainConfig, "data_path")
    corpus: str | None = shared("data", TrainConfig, "corpus", note=" [default: the data set's own, or else hotpotqa]")
    world_difficulty: Literal["infobox", "simple", "natural"] | None = shared("data", TrainConfig, "world_difficulty")
    world_hops: str | None = shared("data", TrainConfig, "world_hops")
    world_noise: int | None = shared("data", TrainConfig, "world_noise")
    world_seed: int | None = grouped(
        "data",
        None,
        "seed of the synthetic world; another number is a fresh world [default: the run's seed]",
        least=0,
        most=MOST_SEED,
    )
    template: Literal["paper", "short"] | None = shared("data", TrainConfig, "template")
    observation: Literal["paper", "plain"] | None = shared("data", TrainConfig, "observation")
    date: str | None = shared("data", TrainConfig, "date", note=" [default: the run's, or today]")

    retriever: str | None = grouped(
        "retrieval", None, "search engine as in train.py, or several, one row each: auto,empty,random,oracle,none"
    )
    retriever_url: str | None = shared("retrieval", TrainConfig, "retriever_url")
    topk: int | None = shared("retrieval", TrainConfig, "topk")
    stemming: bool | None = shared("retrieval", TrainConfig, "stemming")
    stop_words: bool | None = shared("retrieval", TrainConfig, "stop_words")
    dense_model: str | None = shared("retrieval", TrainConfig, "dense_model")
    dense_index: Literal["flat", "hnsw"] | None = shared("retrieval", TrainConfig, "dense_index")
    reranker: str | None = shared("retrieval", TrainConfig, "reranker")

    max_turns: int | None = shared("rollout", TrainConfig, "max_turns")
    max_new_tokens: int | None = shared("rollout", TrainConfig, "max_new_tokens")
    max_total_tokens: int | None = shared("rollout", TrainConfig, "max_total_tokens")
    max_observation_tokens: int | None = shared("rollout", TrainConfig, "max_observation_tokens")
    rollout_batch_size: int | None = shared("rollout", TrainConfig, "rollout_batch_size")

    load_in_4bit: bool | None = shared("model", TrainConfig, "load_in_4bit")
    rollout_weights: Literal["auto", "base", "dequantized"] | None = shared("model", TrainConfig, "rollout_weights")
    memory_limit: float | None = shared("model", TrainConfig, "memory_limit")
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = shared("model", TrainConfig, "dtype", "auto")
    device: Literal["auto", "cpu", "cuda", "mps"] = shared("model", TrainConfig, "device", "auto")
