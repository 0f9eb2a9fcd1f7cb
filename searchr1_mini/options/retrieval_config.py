"""Options of the retrieval server and of the retrieval metrics; those that training has too are declared there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from searchr1_mini.options.config import MOST_QUESTIONS, TrainConfig
from searchr1_mini.options.nested import grouped, shared
from searchr1_mini.retrievers.names import DENSE_MODEL, LocalEngine


@dataclass(frozen=True)
class ServerConfig:
    """Options of the retrieval server."""

    corpus: str | None = shared("index", TrainConfig, "corpus")
    dataset: str = grouped("index", "hotpotqa", "data set whose own paragraphs are served, without --corpus")
    data_path: str | None = grouped("index", None, "local file of that data set")
    retriever: Literal[LocalEngine] | str = grouped(
        "index",
        "auto",
        "search engine: bm25 is rank-bm25, auto chooses by size, hybrid is BM25 and dense; or your own as "
        "my_engine.py:Engine",
    )
    retriever_url: str | None = grouped("index", None, "address of Milvus, for --retriever milvus")
    stemming: bool = shared("index", TrainConfig, "stemming", False)
    stop_words: bool = shared("index", TrainConfig, "stop_words", True)
    dense_model: str = shared("index", TrainConfig, "dense_model", DENSE_MODEL)
    dense_index: Literal["flat", "hnsw"] = shared("index", TrainConfig, "dense_index", "flat")
    reranker: str | None = shared("index", TrainConfig, "reranker")

    host: str = grouped("network", "127.0.0.1", "address to listen on; 0.0.0.0 is every network, without a password")
    port: int = grouped("network", 8000, "port to listen on", least=1, most=65535)
    max_body_mb: float = grouped("network", 8.0, "largest body of a request, in MiB", above=0, most=4096)
    body_timeout: float = grouped(
        "network", 10.0, "seconds that a client has to send a request, or to take an answer", above=0, most=86_400
    )
    max_connections: int = grouped(
        "network", 128, "connections at a time; any more are answered with 503", least=1, most=65_535
    )


SERVER_NEEDS: dict = {"dataset": {"corpus": (None,)}, "data_path": {"corpus": (None,)}}  # see needs.NEEDS


@dataclass(frozen=True)
class MetricsConfig:
    """Options of the retrieval metrics."""

    dataset: str | None = grouped(
        "data", None, "data set, or a file of questions with supporting titles [default: hotpotqa]"
    )
    data_path: str | None = grouped("data", None, "local file of that data set")
    corpus: str | None = shared("data", TrainConfig, "corpus")
    limit: int = grouped("data", 500, "number of questions, always the same ones", least=1, most=MOST_QUESTIONS)

    retriever: str = grouped(
        "retrieval", "auto", "search engine as in train.py, without the probes, or several, one row each: bm25,dense"
    )
    retriever_url: str | None = shared("retrieval", TrainConfig, "retriever_url")
    topk: str = grouped("retrieval", "1,3,5,10", "numbers of passages at which recall is measured")
    stemming: bool = shared("retrieval", TrainConfig, "stemming", False)
    stop_words: bool = shared("retrieval", TrainConfig, "stop_words", True)
    dense_model: str = shared("retrieval", TrainConfig, "dense_model", DENSE_MODEL)
    dense_index: Literal["flat", "hnsw"] = shared("retrieval", TrainConfig, "dense_index", "flat")
    reranker: str | None = shared("retrieval", TrainConfig, "reranker")
