"""BM25 in process, twice: rank-bm25, short enough to read, and bm25s, which computes scores when indexing."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.retrievers.terms import ALL_WORDS, DEFAULT_TERMS, Terms, tokenize, words_of
from searchr1_mini.storage.cache import cache_dir, kept_at

SAVE_FROM = 50_000  # from here on an index is worth keeping on disk
FUNCTION_WORDS = "function_words"  # of a store: the scores of function words where every word counts

K1, B = 1.5, 0.75


def index_terms(passage: Passage, terms: Terms = DEFAULT_TERMS) -> list[str]:
    """Returns the terms by which a passage is found: its title's and its text's."""
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
        """Finds the best passages, see `Retriever.search`."""
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


class BM25S:
    """bm25s with Lucene's idf, which is never negative: scores are computed when indexing, queries add them up.

    A query of function words alone is answered from an index of all words, as by `RankBM25`.
    """

    def __init__(self, passages: Sequence[Passage], terms: Terms = DEFAULT_TERMS, folder: Path | None = None) -> None:
        """Indexes the passages, or opens their index if it is on disk.

        Args:
            passages: the corpus; a store brings its index.
            terms: by which passages are found.
            folder: of another index that a store brings.

        Raises:
            UserError: the index on disk is damaged, or cannot be written.
            ValueError: the passages are a store that was indexed by other terms.
        """
        self.passages, self.terms = passages, terms
        store = getattr(passages, "folder", None)
        if store and folder is None and passages.suffix != terms.suffix:
            raise ValueError(f"{store} was indexed with other terms ({passages.suffix!r}, not {terms.suffix!r})")
        if store is None and len(passages) >= SAVE_FROM:
            folder = cache_dir() / "bm25s" / (fingerprint(passages) + terms.suffix)
        if store:
            self.index = _load_index(folder or store, len(passages), store)
        elif folder and folder.is_dir():
            self.index = _load_index(folder, len(passages), folder)
        else:
            self.index = _build_index(passages, terms, folder)
        if store and folder is None and terms.stop_words:
            _ = self.of_all_words  # a store is looked over as a whole, before a run relies on it

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Finds the best passages, see `Retriever.search`."""
        return [self._search(query, topk) for query in queries]

    @cached_property
    def of_all_words(self) -> BM25S:
        """The same passages by all of their words."""
        store = getattr(self.passages, "folder", None)
        return BM25S(self.passages, ALL_WORDS, store and store / FUNCTION_WORDS)

    def _search(self, query: str, topk: int) -> list[Hit]:
        terms = tokenize(query, self.terms)
        if not terms and words_of(query) and self.terms.stop_words:
            return self.of_all_words._search(query, topk)
        known = [term for term in terms if term in self.index.vocab_dict]
        if not known:
            return []
        scores = self.index.get_scores(known)
        return [Hit(self.passages[row], float(scores[row])) for row in best_rows(scores, scores > 0, topk)]


def _build_index(passages: Sequence[Passage], terms: Terms, folder: Path | None):
    import bm25s

    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    shows = len(passages) >= SAVE_FROM and sys.stderr.isatty()
    index.index([index_terms(passage, terms) or ["\0"] for passage in passages], show_progress=shows)
    if folder is not None:
        with kept_at(folder) as aside:
            index.save(aside, show_progress=False)
    return index


def _load_index(folder: Path, n_passages: int, whole: Path):
    """The index in a folder, which is `whole` or a part of it."""
    import bm25s

    try:
        index = bm25s.BM25.load(folder, mmap=True)
        sizes = {len(index.scores["data"]), len(index.scores["indices"]), int(index.scores["indptr"][-1])}
        n_more = len(index.vocab_dict) - (len(index.scores["indptr"]) - 1)  # bm25s adds an empty term of its own
        if len(sizes) > 1 or index.scores["num_docs"] != n_passages or n_more not in (0, 1):
            raise ValueError("its files do not fit together")
        return index
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"the saved index {whole} is damaged ({error}); delete the folder and try again") from error


def fingerprint(passages: Sequence[Passage]) -> str:
    """Hashes a corpus, whatever its terms, and BM25's constants."""
    if hasattr(passages, "folder"):
        return passages.folder.name.removesuffix(passages.suffix)
    digest = hashlib.sha256(f"terms-1 {K1} {B}".encode())
    for passage in passages:
        digest.update(f"{passage.id}\0{passage.title}\0{passage.text}\0".encode())
    return digest.hexdigest()[:24]
