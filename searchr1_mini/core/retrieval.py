"""One protocol, `search(queries, topk)`: BM25 in process, and a cache in front."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from searchr1_mini.core.terms import ALL_WORDS, DEFAULT_TERMS, Terms, tokenize, words_of

K1, B = 1.5, 0.75


@dataclass(frozen=True)
class Passage:
    """One document of the corpus."""

    id: str
    title: str
    text: str


class Hit(NamedTuple):
    """A passage with its score; higher is better."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """What a rollout needs of a search engine."""

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """For each query its best passages, best first: at most `topk`; by BM25 only such as share a term with it."""


def index_terms(passage: Passage, terms: Terms = DEFAULT_TERMS) -> list[str]:
    """The terms a passage is found by: its title's and its text's."""
    return tokenize(f"{passage.title} {passage.text}", terms, singles=True)


def best_rows(scores: np.ndarray, matches: np.ndarray, topk: int) -> list[int]:
    """Indices of the `topk` largest scores among the matches; equal scores in corpus order, in linear time.

    Args:
        scores: (N,) float.
        matches: (N,) bool, passages that share a term with the query.
    """
    rows = np.flatnonzero(matches)
    if len(rows) > topk:
        cut = np.partition(scores[rows], len(rows) - topk)[len(rows) - topk]
        above, level = rows[scores[rows] > cut], rows[scores[rows] == cut]
        rows = np.concatenate([above, level[: topk - len(above)]])
    return sorted(rows.tolist(), key=lambda row: (-scores[row], row))


class RankBM25:
    """rank-bm25's BM25Okapi: short enough to read, linear in the corpus for every query.

    A query of function words alone (`The Who`) is answered from an index of all words, built when first asked.
    """

    def __init__(self, passages: Sequence[Passage], terms: Terms = DEFAULT_TERMS) -> None:
        from rank_bm25 import BM25Okapi

        self.passages, self.terms = passages, terms
        self.index = BM25Okapi([index_terms(passage, terms) or [""] for passage in passages], k1=K1, b=B)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [self._search(query, topk) for query in queries]

    @cached_property
    def of_all_words(self) -> RankBM25:
        """The same passages by all of their words."""
        return RankBM25(self.passages, ALL_WORDS)

    def _search(self, query: str, topk: int) -> list[Hit]:
        terms = tokenize(query, self.terms)
        if not terms and words_of(query) and self.terms.stop_words:
            return self.of_all_words._search(query, topk)
        scores = self.index.get_scores(terms)
        matches = np.array([any(term in counts for term in terms) for counts in self.index.doc_freqs])
        return [Hit(self.passages[row], float(scores[row])) for row in best_rows(scores, matches, topk)]


class CachedRetriever:
    """Keeps the newest `max_entries` results (a group asks the same things); counts queries and hits."""

    def __init__(self, retriever: Retriever, max_entries: int = 50_000) -> None:
        self.retriever, self.max_entries = retriever, max_entries
        self.results: OrderedDict[tuple[str, int], list[Hit]] = OrderedDict()
        self.n_queries = self.n_hits = 0

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As the wrapped retriever, which sees each missing query once, all in one call."""
        keys = [(query, topk) for query in queries]
        missing = list(dict.fromkeys(key for key in keys if key not in self.results))
        fresh = self.retriever.search([query for query, _ in missing], topk) if missing else []
        found = dict(zip(missing, fresh, strict=True))
        self.n_queries, self.n_hits = self.n_queries + len(keys), self.n_hits + len(keys) - len(missing)
        out = [found[key] if key in found else self.results[key] for key in keys]
        for key, hits in zip(keys, out, strict=True):
            self.results[key] = hits
            self.results.move_to_end(key)
        while len(self.results) > self.max_entries:
            self.results.popitem(last=False)
        return [list(hits) for hits in out]
