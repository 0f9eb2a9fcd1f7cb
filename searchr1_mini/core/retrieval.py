"""What a rollout needs of a search engine: one protocol, `search(queries, topk)`, and a cache in front of any."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


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
        """Finds each query's best passages, best first: at most `topk`; by BM25 only those that share a term."""


def ask(retriever: Retriever, queries: Sequence[str], ids: Sequence[str], topk: int) -> list[list[Hit]]:
    """Searches for the queries of examples with these ids; a probe, such as the oracle, looks at the id itself."""
    search_for = getattr(retriever, "search_for", None)
    return search_for(ids, topk) if search_for else retriever.search(queries, topk)


class CachedRetriever:
    """Keeps the newest `max_entries` results: a group asks the same things."""

    def __init__(self, retriever: Retriever, max_entries: int = 50_000) -> None:
        self.retriever, self.max_entries = retriever, max_entries
        self.results: OrderedDict[tuple[str, int], list[Hit]] = OrderedDict()

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Searches as the wrapped retriever does, which sees each missing query once, all in one call."""
        keys = [(query, topk) for query in queries]
        missing = list(dict.fromkeys(key for key in keys if key not in self.results))
        fresh = self.retriever.search([query for query, _ in missing], topk) if missing else []
        found = dict(zip(missing, fresh, strict=True))
        out = [found[key] if key in found else self.results[key] for key in keys]
        for key, hits in zip(keys, out, strict=True):
            self.results[key] = hits
            self.results.move_to_end(key)
        while len(self.results) > self.max_entries:
            self.results.popitem(last=False)
        return [list(hits) for hits in out]
