"""Milliseconds per query of rank-bm25 and bm25s over synthetic passages: why `--retriever auto` changes over at 2,000.

    python benchmarks/retrieval_speed.py --sizes 1000 2000 10000 --queries 20

Words follow Zipf's law, as in real text, so that a query holds common terms (long posting lists) and rare ones.
Building and the first query, which warms caches, are not part of the time a query.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from searchr1_mini.core.retrieval import Passage, Retriever
from searchr1_mini.retrievers.bm25 import BM25S, RankBM25

SLOW_FROM = 50_000  # rank-bm25 takes seconds per query beyond it


def synthetic_passages(n: int, words: int, vocabulary: int, seed: int = 0) -> list[Passage]:
    """`n` passages of `words` words each, drawn by Zipf's law from `vocabulary` words."""
    terms = zipf_words(n * words, vocabulary, np.random.default_rng(seed)).reshape(n, words)
    return [Passage(str(i), f"title{i}", " ".join(row)) for i, row in enumerate(terms.tolist())]


def synthetic_queries(n: int, words: int, vocabulary: int, seed: int = 1) -> list[str]:
    """`n` queries of `words` words each, of the same distribution."""
    rows = zipf_words(n * words, vocabulary, np.random.default_rng(seed)).reshape(n, words).tolist()
    return [" ".join(row) for row in rows]


def zipf_words(n: int, vocabulary: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) words w0, w1, ..., the k-th of them with probability proportional to 1 / (k + 10)."""
    weights = 1.0 / (np.arange(vocabulary) + 10)
    names = np.array([f"w{k}" for k in range(vocabulary)])
    return names[rng.choice(vocabulary, size=n, p=weights / weights.sum())]


def milliseconds_a_query(retriever: Retriever, queries: Sequence[str], topk: int) -> float:
    """Median over the queries, each searched on its own."""
    retriever.search(queries[:1], topk)
    times = []
    for query in queries:
        start = time.perf_counter()
        retriever.search([query], topk)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def measure(engine: type[RankBM25] | type[BM25S], passages: list[Passage], queries: list[str], topk: int) -> str:
    """Two cells of the table: seconds to build, median milliseconds per query."""
    start = time.perf_counter()
    retriever = engine(passages)
    built = time.perf_counter() - start
    return f"{built:>10.2f} {milliseconds_a_query(retriever, queries, topk):>10.3f}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1_000, 2_000, 5_000, 20_000], metavar="N")
    parser.add_argument("--queries", type=int, default=20, help="queries measured at each size (default 20)")
    parser.add_argument("--query-words", type=int, default=8, help="words of a query (default 8)")
    parser.add_argument("--passage-words", type=int, default=80, help="words of a passage (default 80)")
    parser.add_argument("--vocabulary", type=int, default=50_000, help="distinct words (default 50,000)")
    parser.add_argument("--topk", type=int, default=3, help="passages per query (default 3)")
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but it is {value}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    queries = synthetic_queries(arguments.queries, arguments.query_words, arguments.vocabulary)
    print(f"{'':>10} {'rank-bm25':>21} {'bm25s':>21}")
    print(f"{'passages':>10} {'build s':>10} {'ms/query':>10} {'build s':>10} {'ms/query':>10}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEARCHR1_CACHE"] = folder  # a saved index would hide what building costs
        for size in arguments.sizes:
            passages = synthetic_passages(size, arguments.passage_words, arguments.vocabulary)
            slow = measure(RankBM25, passages, queries, arguments.topk) if size < SLOW_FROM else f"{'-':>10} {'-':>10}"
            print(f"{size:>10,} {slow} {measure(BM25S, passages, queries, arguments.topk)}", flush=True)


if __name__ == "__main__":
    main()
