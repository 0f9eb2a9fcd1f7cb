"""Names of retrievers, and which options each reads."""

from __future__ import annotations

from typing import Literal, get_args

LocalEngine = Literal["auto", "bm25", "bm25s", "dense", "hybrid", "milvus"]  # what the server can serve
EngineName = Literal[LocalEngine, "http"]
ENGINES: tuple[str, ...] = get_args(EngineName)
ProbeName = Literal["none", "empty", "random", "oracle"]  # they tell whether a policy really searches
PROBES: tuple[str, ...] = get_args(ProbeName)
MOST_EMPTIED = 0.02  # exact match with `empty`, which luck may give a policy that searches for what it answers
MOST_TOPK = 1000  # passages per search
DENSE_MODEL = "intfloat/e5-base-v2"
_BM25 = ("auto", "bm25", "bm25s", "hybrid", "milvus")
READ_BY = {  # option -> the retrievers that read it
    "retriever_url": ("http", "milvus"), "stemming": _BM25, "stop_words": _BM25, "dense_model": ("dense", "hybrid"),
    "dense_index": ("dense", "hybrid"), "reranker": ENGINES,
}  # fmt: skip
