"""The search engines by name, built from options: BM25, dense, both, Milvus or a server, and a re-ranker around any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import CachedRetriever, Passage, Retriever
from searchr1_mini.retrievers.bm25 import BM25S, RankBM25
from searchr1_mini.retrievers.dense import DenseRetriever
from searchr1_mini.retrievers.fusion import FusedRetriever, Reranker
from searchr1_mini.retrievers.http_client import HTTPRetriever
from searchr1_mini.retrievers.milvus import MilvusRetriever
from searchr1_mini.retrievers.names import DENSE_MODEL, ENGINES, READ_BY
from searchr1_mini.retrievers.terms import Terms

SMALL_CORPUS = 2_000  # below it rank-bm25 costs a few milliseconds per query; benchmarks/retrieval_speed.py


@dataclass(frozen=True)
class Engine:
    """What a search engine is made of: the options of the command line by the same names."""

    retriever: str = "auto"
    retriever_url: str | None = None
    stemming: bool = False
    stop_words: bool = True
    dense_model: str = DENSE_MODEL
    dense_index: str = "flat"
    reranker: str | None = None

    @property
    def terms(self) -> Terms:
        """How BM25 sees texts."""
        return Terms(self.stemming, self.stop_words)


def configured_engine(config: Any, retriever: str | None = None) -> Engine:
    """Returns the engine that a config describes; options that its retriever does not read stay at their defaults.

    Args:
        config: any dataclass with options of `Engine`'s names.
        retriever: instead of the config's.
    """
    name = retriever or config.retriever
    read = [f.name for f in fields(Engine) if name in READ_BY.get(f.name, ()) and hasattr(config, f.name)]
    return Engine(name, **{option: getattr(config, option) for option in read})


def described(engine: Engine) -> str:
    """Describes the engine in words, for tables: its name and what differs from the default.

    One of the user's own is named without the folder of its file.
    """
    is_dense = engine.retriever in READ_BY["dense_model"]
    parts = [Path(engine.retriever).name + (f" ({engine.dense_model}, {engine.dense_index})" if is_dense else "")]
    parts += ["stemming"] if engine.stemming else []
    parts += [] if engine.stop_words else ["stop words kept"]
    parts += [f"re-ranked by {engine.reranker}"] if engine.reranker else []
    return " + ".join(parts)


def build_retriever(engine: Engine, passages: Sequence[Passage]) -> CachedRetriever:
    """Builds the search engine, behind a cache.

    Args:
        engine: its `retriever` is "auto" (rank-bm25 below 2,000 passages, else bm25s), "bm25" (rank-bm25), "bm25s",
            "dense", "hybrid" (BM25 and dense), "milvus" or "http".
        passages: the corpus; unused by "http".

    Raises:
        UserError: the corpus is empty, there is no such retriever, or a package, model or server that it needs.
    """
    found = _build(engine, passages)
    return CachedRetriever(Reranker(found, engine.reranker) if engine.reranker else found)


def _build(engine: Engine, passages: Sequence[Passage]) -> Retriever:
    name = engine.retriever
    if name not in ENGINES:
        raise UserError(f"unknown retriever {name!r}; choose one of {', '.join(ENGINES)}")
    if name in READ_BY["retriever_url"] and not engine.retriever_url:
        raise UserError(f"--retriever {name} needs an address; add --retriever-url")
    if name == "http":
        return HTTPRetriever(engine.retriever_url)
    if not passages:
        raise UserError("the corpus is empty; give --corpus a file with passages")
    if name == "milvus":
        return MilvusRetriever(passages, engine.retriever_url, engine.terms)
    if name == "dense":
        return DenseRetriever(passages, engine.dense_model, engine.dense_index)
    is_small = name == "bm25" or (name != "bm25s" and len(passages) < SMALL_CORPUS)
    bm25 = (RankBM25 if is_small else BM25S)(passages, engine.terms)
    if name == "hybrid":
        return FusedRetriever([bm25, DenseRetriever(passages, engine.dense_model, engine.dense_index)])
    return bm25
