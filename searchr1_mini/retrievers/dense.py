"""Dense retrieval: passages and queries as vectors of one encoder (E5 by default), the nearest by FAISS.

Vectors are normalized, so that their inner product is the cosine. They are computed once and kept on disk.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.models.weights import refuse_pickles
from searchr1_mini.retrievers.bm25 import fingerprint
from searchr1_mini.retrievers.names import DENSE_MODEL
from searchr1_mini.storage.cache import cache_dir, kept_at, new_memmap
from searchr1_mini.storage.extras import require
from searchr1_mini.storage.hub import ask_hub_first

CHUNK = 4096  # passages encoded between two moves of the progress bar
E5_PROMPTS = ("query: ", "passage: ")  # Wang et al. 2022, arXiv 2212.03533
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 128  # M, efConstruction, efSearch of Malkov & Yashunin 2018


class DenseRetriever:
    """The passages whose vectors are nearest to the query's, by FAISS.

    `flat` compares a query with every vector, read from disk memory-mapped; `hnsw` walks a graph in memory, which is
    fast and nearly exact.
    """

    def __init__(self, passages: Sequence[Passage], model: str = DENSE_MODEL, kind: str = "flat") -> None:
        """Loads the encoder, and the vectors of the passages if they are on disk; computes and keeps them if not.

        Raises:
            UserError: a package or the model is missing, vectors on disk are damaged, or the disk is full.
        """
        self.faiss = require("faiss", "dense")
        self.passages = passages
        self.encoder = load_model("SentenceTransformer", model, "--dense-model")
        self.query_prompt, passage_prompt = encoder_prompts(self.encoder, model)
        texts = f"{fingerprint(passages)} {passage_prompt} {model_fingerprint(self.encoder)}"
        folder = cache_dir() / "dense" / hashlib.sha256(texts.encode()).hexdigest()[:24]
        path = folder / "vectors.npy"
        if not path.is_file():
            encode_corpus(self.encoder, passage_prompt, passages, path)
        self.vectors = _opened(path, lambda: np.load(path, mmap_mode="r"))
        if self.vectors.shape[0] != len(passages):
            raise UserError(f"the vectors in {path} are not one per passage; delete the file and try again")
        self.graph = self._graph(folder) if kind == "hnsw" else None

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Finds for each query the `topk` passages with the largest inner products, best first."""
        if not queries:
            return []
        encoded = encode(self.encoder.encode_query, list(queries), self.query_prompt)  # (Q, D)
        k = min(topk, len(self.passages))
        if self.graph is None:
            scores, rows = self.faiss.knn(encoded, self.vectors, k, metric=self.faiss.METRIC_INNER_PRODUCT)
        else:
            self.graph.hnsw.efSearch = max(HNSW_SEARCH, k)
            scores, rows = self.graph.search(encoded, k)
        found = [sorted(zip(-s, r, strict=True)) for s, r in zip(scores, rows, strict=True)]  # ties in corpus order
        return [[Hit(self.passages[row], float(-score)) for score, row in hits if row >= 0] for hits in found]

    def _graph(self, folder: Path) -> Any:
        """The HNSW graph over the vectors, from disk or built now."""
        path = folder / f"hnsw-{HNSW_LINKS}-{HNSW_BUILD}.faiss"
        if path.is_file():
            return _opened(path, lambda: self.faiss.read_index(str(path)))
        graph = self.faiss.IndexHNSWFlat(self.vectors.shape[1], HNSW_LINKS, self.faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = HNSW_BUILD
        for start in _starts(len(self.vectors), "linking"):
            graph.add(self.vectors[start : start + CHUNK])
        with kept_at(path) as aside:
            self.faiss.write_index(graph, str(aside))
        return graph


def encode_corpus(encoder: Any, prompt: str, passages: Sequence[Passage], path: Path) -> None:
    """Writes the passages' vectors, (N, D) float32, to a .npy file, chunk by chunk; the file appears once complete.

    Raises:
        UserError: the file cannot be written, or its disk is full.
    """
    with kept_at(path) as aside:
        shape = len(passages), len(encode(encoder.encode_document, [""], prompt)[0])
        vectors = new_memmap(aside, np.float32, shape)
        for start in _starts(len(passages), "encoding"):
            rows = range(start, min(start + CHUNK, len(passages)))
            texts = [passage_text(passages[row]) for row in rows]
            vectors[rows.start : rows.stop] = encode(encoder.encode_document, texts, prompt)
        vectors.flush()


def encode(encoding: Callable[..., Any], texts: list[str], prompt: str) -> np.ndarray:
    """Computes normalized vectors, (N, D) float32, by one of an encoder's two methods, prompts included."""
    vectors = encoding(texts, prompt=prompt, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def passage_text(passage: Passage) -> str:
    """Returns what an encoder or re-ranker reads of a passage."""
    return f"{passage.title}\n{passage.text}"


def encoder_prompts(encoder: Any, model: str) -> tuple[str, str]:
    """Returns what goes before queries and passages: the model's own prompts, E5's if it brings none, or nothing."""
    own = encoder.prompts
    passage = next((own[name] for name in ("document", "passage", "corpus") if own.get(name)), "")
    if own.get("query") or passage:
        return own.get("query") or "", passage
    return E5_PROMPTS if "e5" in Path(model).name.lower() else ("", "")


def load_model(kind: str, name: str, flag: str) -> Any:
    """Loads a model of sentence-transformers, by hub id or folder, onto the device that it picks: a GPU if any.

    Args:
        kind: `SentenceTransformer` or `CrossEncoder`.
        name: of the model.
        flag: that named it.

    Raises:
        UserError: the package is not installed, or the model cannot be loaded, or only by running its code.
    """
    path = Path(os.path.expanduser(name))
    if name.startswith((".", "/", "~")) and not path.is_dir():
        raise UserError(f"there is no folder {name}; {flag} takes a folder or a hub id")
    refuse_pickles(path, f"{flag} {name}")
    load = getattr(require("sentence_transformers", "dense"), kind)
    source = str(path) if path.is_dir() else name
    ask_hub_first(source)
    try:
        return load(source, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, KeyError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load the model {name} ({told}); {flag} takes a folder or a hub id") from error


def model_fingerprint(encoder: Any) -> str:
    """Hashes an encoder's weights, layers and vocabulary: vectors of another model are never taken for its own."""
    digest = hashlib.sha256(repr(encoder).encode())
    digest.update(repr(sorted(encoder.tokenizer.get_vocab().items())).encode("utf-8", "replace"))
    for name, weights in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(weights.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _starts(n: int, what: str) -> Iterator[int]:
    """Where each chunk of `n` passages starts, with a progress bar that counts passages."""
    with tqdm(total=n, desc=what, unit=" passages", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, n, CHUNK):
            yield start
            bar.update(min(CHUNK, n - start))


def _opened(path: Path, opening: Callable[[], Any]) -> Any:
    try:
        return opening()
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise UserError(f"the saved file {path} is damaged ({error}); delete it and try again") from error
