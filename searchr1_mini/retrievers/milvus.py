"""BM25 by Milvus, the engine for a corpus whose index outgrows one machine: a cluster, or milvus-lite in this process.

Milvus holds one row a passage with its terms, counts and scores them (its own full-text function), and gives back row
numbers; the passages are read from the corpus.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from searchr1_mini.errors import UserError
from searchr1_mini.retrieval import K1, B, Hit, Passage, fingerprint, index_terms
from searchr1_mini.retrievers.extras import require
from searchr1_mini.retrievers.terms import DEFAULT_TERMS, Terms, tokenize

BATCH = 2_000  # passages an insert
QUERIES = 64  # a request
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
        """See `Retriever.search`.

        Raises:
            UserError: Milvus does not answer.
        """
        texts = [_joined(tokenize(query, self.terms)) for query in queries]
        asked = list(dict.fromkeys(filter(None, texts)))
        found: dict[str, list[Hit]] = {"": []}  # a query without a term finds nothing
        for start in range(0, len(asked), QUERIES):
            batch = asked[start : start + QUERIES]
            found |= zip(batch, self._asked(lambda batch=batch: self._search(batch, topk)), strict=True)
        return [list(found[text]) for text in texts]

    def _search(self, texts: list[str], topk: int) -> list[list[Hit]]:
        results = self.client.search(
            self.name, data=texts, anns_field="bm25", limit=topk, output_fields=["row"],
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
                    self.client.insert(aside, [{"row": row, "terms": self._terms_of(row)} for row in rows])
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
        schema.add_field(
            "terms", milvus.DataType.VARCHAR, max_length=MOST_BYTES, enable_analyzer=True,
            analyzer_params={"tokenizer": "standard"},
        )  # fmt: skip
        schema.add_field("bm25", milvus.DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(
            milvus.Function(
                name="terms_bm25", function_type=milvus.FunctionType.BM25,
                input_field_names=["terms"], output_field_names=["bm25"],
            )
        )  # fmt: skip
        index = client.prepare_index_params()
        # for a cluster, whose defaults differ; milvus-lite reads neither and has these
        index.add_index(
            "bm25", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", params={"bm25_k1": K1, "bm25_b": B}
        )
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Session")

    def _terms_of(self, row: int) -> str:
        return _joined(index_terms(self.passages[row], self.terms))

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
    """Terms as a text that fits into a field."""
    return " ".join(terms).encode("utf-8", "replace")[:MOST_BYTES].decode("utf-8", "ignore")


def _checked(url: str) -> str:
    if url.startswith(("http://", "https://")):
        return url
    if not url.endswith(".db"):
        raise UserError(f"--retriever-url {url}: write http://host:19530, or a path that ends in .db for milvus-lite")
    require("milvus_lite", "milvus")
    path = Path(url).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)
