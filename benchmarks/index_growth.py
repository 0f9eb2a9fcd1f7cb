"""How the index on disk grows with the corpus, and what a query costs, beside rank-bm25.

    python benchmarks/index_growth.py

Each size is built in a process of its own from synthetic passages of 80 words (Zipf's law) that are made as they are
read: seconds, peak memory above that of an empty process, bytes on disk, milliseconds a query in batches of 64. The
last line scales the largest size up to the 21 million passages of Wikipedia 2018, linearly.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from retrieval_speed import synthetic_passages, synthetic_queries

from searchr1_mini.core.retrieval import Passage
from searchr1_mini.retrievers.bm25 import BM25S, RankBM25
from searchr1_mini.retrievers.index import PassageStore, build_store

WIKI18 = 21_015_324
COLUMNS = ("engine", "passages", "build s", "peak GB", "disk GB", "ms per query")


def main() -> None:
    """Prints one line a size and engine, and the estimate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--vocabulary", type=int, default=200_000)
    parser.add_argument("--rank-bm25-up-to", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        engine, n = args.measure
        print(json.dumps(measure(engine, int(n), args.vocabulary)))
        return
    print("".join(f"{name:>12}" for name in COLUMNS))
    rows = {}
    for n in args.sizes:
        for engine in ("store", "rank-bm25") if n <= args.rank_bm25_up_to else ("store",):
            command = [sys.executable, __file__, "--vocabulary", str(args.vocabulary), "--measure", engine, str(n)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[engine, n] = json.loads(done.stdout.splitlines()[-1])
            print(f"{engine:>12}{n:>12}" + "".join(f"{value:>12.3f}" for value in rows[engine, n]), flush=True)
    factor = WIKI18 / max(args.sizes)
    build, peak, disk, query = rows["store", max(args.sizes)]
    print(f"\n{WIKI18} passages, scaled up: {build * factor / 60:.0f} minutes, {disk * factor:.0f} GB on disk, at most "
          f"{peak * factor:.0f} GB of memory, {query * factor:.0f} ms per query")  # fmt: skip


def measure(engine: str, n: int, vocabulary: int) -> tuple[float, float, float, float]:
    """Seconds to build, peak memory in GB above the start, GB on disk, milliseconds per query."""
    queries = synthetic_queries(64 if engine == "store" else 4, 8, vocabulary)
    before = peak_gb()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        began = time.perf_counter()
        if engine == "store":
            build_store(passages(n, vocabulary), path)
            built, peak = time.perf_counter() - began, peak_gb() - before
            retriever, disk = BM25S(PassageStore(path)), sum(f.stat().st_size for f in path.iterdir()) / 1e9
        else:
            retriever, disk = RankBM25(list(passages(n, vocabulary))), 0.0
            built, peak = time.perf_counter() - began, peak_gb() - before
        retriever.search(queries[:1], 3)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            retriever.search(queries, 3)
            times.append(time.perf_counter() - began)
        return built, peak, disk, 1000 * float(np.median(times)) / len(queries)


def passages(n: int, vocabulary: int, chunk: int = 10_000) -> Iterator[Passage]:
    """`n` passages, made by chunks."""
    for first in range(0, n, chunk):
        for row, passage in enumerate(synthetic_passages(min(chunk, n - first), 80, vocabulary, seed=first)):
            yield Passage(str(first + row), passage.title, passage.text)


def peak_gb() -> float:
    """The process's peak resident memory in 10^9 bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
