"""One protocol, `search(queries, topk)`: BM25 in process, the client of a retrieval server, and a cache in front."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from searchr1_mini.errors import UserError
from searchr1_mini.retrievers.terms import DEFAULT_TERMS, Terms, tokenize

SAVE_FROM = 50_000  # from here on an index is worth keeping on disk
LARGEST_REPLY = 2**28  # bytes of a server's answer
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
    return tokenize(f"{passage.title} {passage.text}", terms)


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
    """rank-bm25's BM25Okapi: short enough to read, linear in the corpus for every query."""

    def __init__(self, passages: Sequence[Passage], terms: Terms = DEFAULT_TERMS) -> None:
        from rank_bm25 import BM25Okapi

        self.passages, self.terms = passages, terms
        self.index = BM25Okapi([index_terms(passage, terms) or [""] for passage in passages], k1=K1, b=B)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [self._search(tokenize(query, self.terms), topk) for query in queries]

    def _search(self, terms: list[str], topk: int) -> list[Hit]:
        scores = self.index.get_scores(terms)
        matches = np.array([any(term in counts for term in terms) for counts in self.index.doc_freqs])
        return [Hit(self.passages[row], float(scores[row])) for row in best_rows(scores, matches, topk)]


class BM25S:
    """bm25s with Lucene's idf, which is never negative: scores are computed when indexing, queries add them up."""

    def __init__(self, passages: Sequence[Passage], terms: Terms = DEFAULT_TERMS) -> None:
        """Indexes the passages, or opens their index if it is on disk.

        Raises:
            UserError: the index on disk is damaged, or cannot be written.
            ValueError: the passages are a store that was indexed by other terms.
        """
        self.passages, self.terms = passages, terms
        folder = getattr(passages, "folder", None)  # a PassageStore brings its index
        if folder is not None and passages.suffix != terms.suffix:
            raise ValueError(f"{folder} was indexed with other terms ({passages.suffix!r}, not {terms.suffix!r})")
        if folder is None and len(passages) >= SAVE_FROM:
            folder = cache_dir() / "bm25s" / (fingerprint(passages) + terms.suffix)
        self.index = (
            _load_index(folder, len(passages)) if folder and folder.is_dir() else _build_index(passages, terms, folder)
        )

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [self._search(tokenize(query, self.terms), topk) for query in queries]

    def _search(self, terms: list[str], topk: int) -> list[Hit]:
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


def _load_index(folder: Path, n_passages: int):
    import bm25s

    try:
        index = bm25s.BM25.load(folder, mmap=True)
        sizes = {len(index.scores["data"]), len(index.scores["indices"]), int(index.scores["indptr"][-1])}
        n_more = len(index.vocab_dict) - (len(index.scores["indptr"]) - 1)  # bm25s adds an empty term of its own
        if len(sizes) > 1 or index.scores["num_docs"] != n_passages or n_more not in (0, 1):
            raise ValueError("its files do not fit together")
        return index
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"the saved index {folder} is damaged ({error}); delete the folder and try again") from error


def fingerprint(passages: Sequence[Passage]) -> str:
    """A hash of a corpus, whatever its terms, and of BM25's constants."""
    if hasattr(passages, "folder"):
        return passages.folder.name.removesuffix(passages.suffix)
    digest = hashlib.sha256(f"terms-1 {K1} {B}".encode())
    for passage in passages:
        digest.update(f"{passage.id}\0{passage.title}\0{passage.text}\0".encode())
    return digest.hexdigest()[:24]


def cache_dir() -> Path:
    """Where corpora and indexes are kept: $SEARCHR1_CACHE, or ~/.cache/searchr1_mini."""
    return Path(os.environ.get("SEARCHR1_CACHE") or Path.home() / ".cache" / "searchr1_mini")


@contextmanager
def kept_at(path: Path) -> Iterator[Path]:
    """A path to write a file or folder to, renamed to `path` once complete: nobody ever reads half of it.

    Raises:
        UserError: the cache folder cannot be written, or its disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            yield Path(aside) / path.name
            try:
                os.replace(Path(aside) / path.name, path)
            except OSError:
                if not path.exists():  # else another process was faster
                    raise
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); point $SEARCHR1_CACHE at a folder with room") from error


def new_memmap(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A .npy file to write through memory, with all of its room taken at once.

    Without the room, a disk that fills up later would end the process by SIGBUS, with no word.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


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


class HTTPRetriever:
    """Client of the paper's retrieval server: `POST /retrieve {"queries", "topk", "return_scores"}`."""

    def __init__(self, url: str, timeout_s: float = 60.0, retries: int = 3) -> None:
        self.url = _retrieve_url(url)
        self.timeout_s, self.retries = timeout_s, retries

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """See `Retriever.search`.

        Raises:
            UserError: the server does not answer, `retries` repeats included, or not in the agreed form.
        """
        body = json.dumps({"queries": list(queries), "topk": topk, "return_scores": True}).encode()
        reply = self._post(body)
        try:
            if len(reply) > LARGEST_REPLY:
                raise ValueError(f"more than {LARGEST_REPLY} bytes")
            results = json.loads(reply)["result"]
            if len(results) != len(queries):
                raise ValueError(f"{len(results)} results for {len(queries)} queries")
            return [[_parse_hit(item) for item in items[:topk]] for items in results]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f'the retrieval server at {self.url} answered in another form than {{"result": [[{{"document": '
                f'{{"id", "contents"}}, "score"}}]]}} ({error!r}); check --retriever-url'
            ) from error

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        for attempt in count():
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    reply = response.read(LARGEST_REPLY + 1)
                    if response.length and len(reply) <= LARGEST_REPLY:  # bytes that were promised and did not come
                        raise http.client.IncompleteRead(reply, response.length)
                    return reply
            except (OSError, http.client.HTTPException) as error:  # the second: a reply that is cut, or no HTTP
                is_refusal = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if is_refusal or attempt == self.retries:
                    raise UserError(
                        f"the retrieval server at {self.url} does not answer ({error}); start it, or check "
                        "--retriever-url"
                    ) from error
                time.sleep(0.2 * 2**attempt)


def _retrieve_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or len(url.split()) != 1:
            raise ValueError("needs http or https, a host, no spaces")
    except ValueError as error:  # `parts.port` raises it too
        raise UserError(
            f"--retriever-url {url!r} is no address of a server ({error}); write it as http://host:port"
        ) from error
    return parts._replace(path="/retrieve").geturl() if parts.path in ("", "/") else url


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of the paper's corpus format, `"Title"\\ntext`; quotes inside the title stay."""
    title, _, text = contents.partition("\n")
    title = title.strip()
    is_quoted = len(title) > 1 and title[0] == title[-1] == '"'
    return title[1:-1] if is_quoted else title, text.strip()


def _parse_hit(item: dict) -> Hit:
    document = item.get("document", item)
    title, text = split_contents(_whole(document["contents"]))
    return Hit(Passage(_whole(str(document.get("id", ""))), title, text), float(item.get("score", 0.0)))


def _whole(text: str) -> str:
    """The text with `?` for halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
