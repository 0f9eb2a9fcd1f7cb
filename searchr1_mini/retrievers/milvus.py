"""BM25 by Milvus, the engine for a corpus whose index outgrows one machine: a cluster, or milvus-lite in this process.

Milvus holds one row per passage with its terms, counts and scores them (its own full-text function), and gives back row
numbers; the passages are read from the corpus.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.retrievers.bm25 import K1, B, fingerprint, index_terms
from searchr1_mini.retrievers.terms import ALL_WORDS, DEFAULT_TERMS, Terms, reduced, tokenize
from searchr1_mini.storage.extras import require

BATCH = 2_000  # passages an insert
QUERIES = 64  # a request
FIELDS = ("terms", "all_words")  # the second for queries of function words alone
MOST_BYTES = 65_535  # of a text field; a longer passage is found by what comes before
TIMEOUT_S = 60.0


class MilvusRetriever:
    """A collection of Milvus that holds the corpus; filled the first time."""

    def __init__(self, passages: Sequence[Passage], url: str, terms: Terms = DEFAULT_TERMS) -> None:
        """Connects, and fills the collection if it is not there whole.

        Args:
            passages: the corpus.
            url: `http://host:19530`, or a path that ends in `.db` for milvus-lite.
            terms: by which passages are found.

        Raises:
            UserError: a package is missing, or Milvus does not answer or refuses.
        """
        self.passages, self.url, self.terms = passages, url, terms
        self.pymilvus = require("pymilvus", "milvus")
        for logger in ("pymilvus", "milvus_lite"):  # they log tracebacks of what is told in a sentence
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self.name = "searchr1_" + (fingerprint(passages) + terms.suffix).replace("-", "_").replace(".", "_")
        self.client = self._asked(lambda: self.pymilvus.MilvusClient(_checked(url), timeout=TIMEOUT_S))
        if not self._asked(self._is_whole):
            self._asked(self._fill)
        self._asked(lambda: self.client.load_collection(self.name))

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Finds the best passages, see `Retriever.search`.

        Raises:
            UserError: Milvus does not answer.
        """
        asked = [self._field_and_text(query) for query in queries]
        found: dict[tuple[str, str], list[Hit]] = {}
        for field in FIELDS:
            texts = list(dict.fromkeys(text for of_field, text in asked if of_field == field and text))
            for start in range(0, len(texts), QUERIES):
                batch = texts[start : start + QUERIES]
                hits = self._asked(lambda field=field, batch=batch: self._search(field, batch, topk))
                found |= zip([(field, text) for text in batch], hits, strict=True)
        return [list(found.get(key, ())) for key in asked]  # a query without a word finds nothing

    def _field_and_text(self, query: str) -> tuple[str, str]:
        """What is searched for, and where: function words only if the query has nothing else."""
        terms = tokenize(query, self.terms)
        return ("terms", _joined(terms)) if terms else ("all_words", _joined(tokenize(query, ALL_WORDS)))

    def _search(self, field: str, texts: list[str], topk: int) -> list[list[Hit]]:
        results = self.client.search(
            self.name, data=texts, anns_field=f"{field}_bm25", limit=topk, output_fields=["row"],
            search_params={"metric_type": "BM25"}, timeout=TIMEOUT_S,
        )  # fmt: skip
        # milvus-lite gives scores below zero
        scored = [[(-abs(hit["distance"]), hit["entity"]["row"]) for hit in hits] for hits in results]
        return [[Hit(self.passages[row], -score) for score, row in sorted(hits)] for hits in scored]

    def _is_whole(self) -> bool:
        """Whether the collection holds every passage; half a one, which something broke, is dropped."""
        if not self.client.has_collection(self.name):
            return False
        if int(self.client.get_collection_stats(self.name)["row_count"]) == len(self.passages):
            return True
        self.client.drop_collection(self.name)
        return False

    def _fill(self) -> None:
        """Fills a collection under another name, and gives it its own once it is whole: nobody searches half a one."""
        aside = f"{self.name}_{uuid.uuid4().hex[:8]}"
        self._create(aside)
        try:
            with tqdm(
                total=len(self.passages), desc="filling", unit=" passages", disable=not sys.stderr.isatty()
            ) as bar:
                for start in range(0, len(self.passages), BATCH):
                    rows = range(start, min(start + BATCH, len(self.passages)))
                    self.client.insert(aside, [{"row": row} | self._stored_texts(row) for row in rows])
                    bar.update(len(rows))
            self.client.flush(aside)
            try:
                self.client.rename_collection(aside, self.name)
            except self.pymilvus.MilvusException:
                if not self.client.has_collection(self.name):  # else another process was faster
                    raise
        finally:
            if self.client.has_collection(aside):
                self.client.drop_collection(aside)

    def _create(self, name: str) -> None:
        milvus, client = self.pymilvus, self.client
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", milvus.DataType.INT64, is_primary=True)
        index = client.prepare_index_params()
        for field in FIELDS:
            schema.add_field(
                field, milvus.DataType.VARCHAR, max_length=MOST_BYTES, enable_analyzer=True,
                analyzer_params={"tokenizer": "standard"},
            )  # fmt: skip
            schema.add_field(f"{field}_bm25", milvus.DataType.SPARSE_FLOAT_VECTOR)
            schema.add_function(
                milvus.Function(
                    name=f"count_{field}", function_type=milvus.FunctionType.BM25,
                    input_field_names=[field], output_field_names=[f"{field}_bm25"],
                )
            )  # fmt: skip
            # for a cluster, whose defaults differ; milvus-lite reads neither and has these
            params = {"bm25_k1": K1, "bm25_b": B}
            index.add_index(f"{field}_bm25", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params=params)
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Session")

    def _stored_texts(self, row: int) -> dict[str, str]:
        words = index_terms(self.passages[row], ALL_WORDS)
        return {"terms": _joined(reduced(words, self.terms)), "all_words": _joined(words)}

    def _asked(self, asking: Any) -> Any:
        """What Milvus answers."""
        try:
            return asking()
        except self.pymilvus.MilvusException as error:
            told = " ".join(str(error.message).split())[:200]
            remedy = "stop what else has it open" if self.url.endswith(".db") else "start it"
            raise UserError(
                f"Milvus at {self.url} does not answer or refuses ({told}); {remedy}, or check --retriever-url"
            ) from error


def _joined(terms: list[str]) -> str:
    """Terms as a text that fits into a field.

    A term that Milvus' tokenizer might split (at a mark, at an underscore) stands there by its hash.
    """
    whole = (term if term.isascii() and term.isalnum() else f"x{_hash(term)}" for term in terms)
    return " ".join(whole)[:MOST_BYTES]


def _hash(term: str) -> str:
    return hashlib.blake2b(term.encode("utf-8", "replace"), digest_size=10).hexdigest()


def _checked(url: str) -> str:
    if url.startswith(("http://", "https://")):
        return url
    if not url.endswith(".db"):
        raise UserError(f"--retriever-url {url}: write http://host:19530, or a path that ends in .db for milvus-lite")
    require("milvus_lite", "milvus")
    path = Path(os.path.expanduser(url)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)
