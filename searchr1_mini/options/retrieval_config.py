"""Options of the commands that are about retrieval alone: the server, and the retrieval metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from searchr1_mini.options.config import (
    CORPUS_HELP,
    DENSE_INDEX_HELP,
    DENSE_MODEL_HELP,
    MOST_QUESTIONS,
    RERANKER_HELP,
    RETRIEVER_URL_HELP,
    STEMMING_HELP,
    STOP_WORDS_HELP,
    option,
)
from searchr1_mini.retrievers.names import DENSE_MODEL


@dataclass(frozen=True)
class ServerConfig:
    """Options of the retrieval server."""

    corpus: str | None = option("index", None, CORPUS_HELP)
    dataset: str = option("index", "hotpotqa", "data set whose own paragraphs are served, without --corpus")
    data_path: str | None = option("index", None, "local file of that data set")
    retriever: Literal["auto", "bm25", "bm25s", "dense", "hybrid", "milvus"] = option(
        "index", "auto", "bm25 is rank-bm25; auto by size; hybrid is BM25 and dense"
    )
    retriever_url: str | None = option("index", None, "address of Milvus, for --retriever milvus")
    stemming: bool = option("index", False, STEMMING_HELP)
    stop_words: bool = option("index", True, STOP_WORDS_HELP)
    dense_model: str = option("index", DENSE_MODEL, DENSE_MODEL_HELP)
    dense_index: Literal["flat", "hnsw"] = option("index", "flat", DENSE_INDEX_HELP)
    reranker: str | None = option("index", None, RERANKER_HELP)

    host: str = option("network", "127.0.0.1", "address to listen on; 0.0.0.0 is every network, without a password")
    port: int = option("network", 8000, "port to listen on", least=1, most=65535)
    max_body_mb: float = option("network", 8.0, "largest body of a request, in MiB", above=0, most=4096)
    body_timeout: float = option(
        "network", 10.0, "seconds for a client to send, or to take an answer", above=0, most=86_400
    )
    max_connections: int = option("network", 128, "at the same time; to more the answer is 503", least=1, most=65_535)


SERVER_NEEDS: dict = {"dataset": {"corpus": (None,)}, "data_path": {"corpus": (None,)}}  # see options.NEEDS


@dataclass(frozen=True)
class MetricsConfig:
    """Options of the retrieval metrics."""

    dataset: str = option("data", "hotpotqa", "a file of questions with supporting titles, or a data set")
    data_path: str | None = option("data", None, "local file of that data set")
    corpus: str | None = option("data", None, CORPUS_HELP)
    limit: int = option("data", 500, "questions, always the same ones", least=1, most=MOST_QUESTIONS)

    retriever: str = option("retrieval", "auto", "as in train.py without the probes; several, a row each: bm25,dense")
    retriever_url: str | None = option("retrieval", None, RETRIEVER_URL_HELP)
    topk: str = option("retrieval", "1,3,5,10", "numbers of passages that recall is measured at")
    stemming: bool = option("retrieval", False, STEMMING_HELP)
    stop_words: bool = option("retrieval", True, STOP_WORDS_HELP)
    dense_model: str = option("retrieval", DENSE_MODEL, DENSE_MODEL_HELP)
    dense_index: Literal["flat", "hnsw"] = option("retrieval", "flat", DENSE_INDEX_HELP)
    reranker: str | None = option("retrieval", None, RERANKER_HELP)
