"""Every option of evaluation in one flat dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from searchr1_mini.data.names import DATASETS
from searchr1_mini.options.config import (
    CORPUS_HELP,
    DATE_HELP,
    DENSE_INDEX_HELP,
    DENSE_MODEL_HELP,
    MOST_QUESTIONS,
    MOST_SEED,
    MOST_TOKENS,
    OBSERVATION_HELP,
    RERANKER_HELP,
    RETRIEVER_URL_HELP,
    STEMMING_HELP,
    STOP_WORDS_HELP,
    option,
)
from searchr1_mini.options.defaults import PROMPTED, TRAINED
from searchr1_mini.retrievers.names import MOST_TOPK


@dataclass(frozen=True)
class EvalConfig:
    """Options of eval.py. None is taken from the run (--run), or resolved per model (--model)."""

    run: str | None = option("what", None, "folder of a training run, or several, separated by commas")
    checkpoint: str | None = option("what", None, "step of the run's checkpoint, or best [default: the newest]")
    model: str | None = option("what", None, "instead of a run: tiny, a short name, a hub id or a local folder")
    adapter: str | None = option("what", None, "folder of a LoRA adapter to put on --model, for search-r1")
    ask: str | None = option("what", None, "show one trajectory for this question instead of an evaluation")
    chat: bool = option("what", False, "answer questions in the terminal, live, until Ctrl-D")
    web: bool = option("what", False, "answer questions on a page in the browser, live, until Ctrl-C")
    methods: str | None = option(
        "what", None, f"all, or some of {', '.join((*PROMPTED, *TRAINED))} [default: the run's own, or search-r1]"
    )
    datasets: str | None = option(
        "what", None, f"all, or some of {', '.join(DATASETS)}, or files [default: the run's own, or the model's]"
    )
    train: bool | None = option(
        "what", None, "train sft, r1, rejection-sampling and search-r1 first where --run has none [default: for tiny]"
    )

    limit: int = option("how", 500, "questions a data set, always the same ones", least=1, most=MOST_QUESTIONS)
    shots: int = option(
        "how",
        0,
        "worked examples, from training questions, in the prompt of methods that are not trained",
        least=0,
        most=32,
    )
    temperature: float = option("how", 0.0, "0 decodes greedily", least=0, most=100)
    seed: int = option(
        "how", 0, "of the sampling; with --model also of its world and its baselines", least=0, most=MOST_SEED
    )
    compare: bool = option("how", False, "print the paper's figures beneath ours, and what differs in the set-up")
    against: str | None = option("how", None, "row that others are tested against [default: the last]")
    output_dir: str | None = option(
        "how", None, "folder of the results; what is finished is kept [default: runs/eval-NAME]"
    )
    colour: Literal["auto", "always", "never"] = option("how", "auto", "colour trajectories by who wrote what")
    host: str | None = option("how", None, "address of the --web page [default: 127.0.0.1, this machine only]")
    port: int | None = option("how", None, "port of the --web page [default: 8765]", least=1, most=65535)

    data_path: str | None = option("data", None, "local file with the questions")
    corpus: str | None = option("data", None, CORPUS_HELP + " [default: the data set's own, or else hotpotqa]")
    world_difficulty: Literal["infobox", "simple", "natural"] | None = option("data", None, "of the synthetic world")
    world_hops: str | None = option("data", None, "hops of the synthetic questions, as 1,2")
    world_noise: int | None = option("data", None, "made-up words after every passage", least=0, most=1000)
    world_seed: int | None = option(
        "data", None, "another number is a fresh world [default: the run's seed]", least=0, most=MOST_SEED
    )
    template: Literal["paper", "short"] | None = option("data", None, "prompt template")
    observation: Literal["paper", "plain"] | None = option("data", None, OBSERVATION_HELP)
    date: str | None = option("data", None, DATE_HELP + " [default: the run's, or today]")

    retriever: str | None = option(
        "retrieval", None, "as in train.py, or several, a row each: auto,empty,random,oracle,none"
    )
    retriever_url: str | None = option("retrieval", None, RETRIEVER_URL_HELP)
    topk: int | None = option("retrieval", None, "passages a search", least=1, most=MOST_TOPK)
    stemming: bool | None = option("retrieval", None, STEMMING_HELP)
    stop_words: bool | None = option("retrieval", None, STOP_WORDS_HELP)
    dense_model: str | None = option("retrieval", None, DENSE_MODEL_HELP)
    dense_index: Literal["flat", "hnsw"] | None = option("retrieval", None, DENSE_INDEX_HELP)
    reranker: str | None = option("retrieval", None, RERANKER_HELP)

    max_turns: int | None = option("rollout", None, "actions a question", least=1, most=1000)
    max_new_tokens: int | None = option("rollout", None, "tokens a turn", least=1, most=MOST_TOKENS)
    max_total_tokens: int | None = option(
        "rollout", None, "tokens a trajectory, prompt included", least=16, most=MOST_TOKENS
    )
    max_observation_tokens: int | None = option("rollout", None, "tokens an observation", least=16, most=MOST_TOKENS)
    rollout_batch_size: int | None = option("rollout", None, "conversations decoded at a time", least=1, most=10**6)

    load_in_4bit: bool | None = option("model", None, "NF4 base through bitsandbytes")
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = option("model", "auto", "what to compute in")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("model", "auto", "where to compute")
