"""A corpus and its BM25 index on disk, built in one stream: memory grows with the vocabulary, not with the passages.

The files of the index are those of bm25s, which answers the queries from them memory-mapped; bm25s itself would build
them from the terms of all passages in memory. Scores are Lucene's, see docs/retrieval.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.retrievers.bm25 import FUNCTION_WORDS, K1, B, index_terms
from searchr1_mini.retrievers.terms import ALL_WORDS, DEFAULT_TERMS, STOP_WORDS, Terms, reduced
from searchr1_mini.storage.cache import cache_dir, kept_at, new_memmap

BATCH = 50_000  # passages whose terms are held at a time
TERMS_FILE = "terms.txt"  # a line with their suffix
EMPTY = "\0"  # the term of a passage that has none; no query holds it


class PassageStore(Sequence):
    """Passages in a file, read one at a time; `folder` is what `build_store` wrote. Safe to read from many threads.

    `suffix` is that of the terms by which the store was indexed.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files of a store.

        Raises:
            UserError: one of them is missing or was cut.
        """
        self.folder = folder
        try:
            self.suffix, is_whole, _ = (folder / TERMS_FILE).read_text(encoding="utf-8").partition("\n")
            if not is_whole:
                raise ValueError(f"{TERMS_FILE} was cut")
            self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")
            self.file = (folder / "passages.jsonl").open("rb")
            if os.fstat(self.file.fileno()).st_size != self.offsets[-1]:
                raise ValueError("passages.jsonl was cut")
        except (OSError, ValueError, EOFError, IndexError) as error:
            raise UserError(f"the store {folder} is damaged ({error}); delete the folder and try again") from error

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Passage:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        start, end = (int(self.offsets[row % len(self) + step]) for step in (0, 1))
        return Passage(*json.loads(os.pread(self.file.fileno(), end - start, start)))


def open_store(
    files: Sequence[Path], passages: Iterable[Passage], terms: Terms = DEFAULT_TERMS, root: Path | None = None
) -> PassageStore:
    """Opens the store of these files, in the cache folder under a hash of them and the terms; built if not there.

    Args:
        files: the corpus.
        passages: what is in them; read only if the store has to be built.
        terms: by which it is indexed.
        root: the folder by which the files are named.

    Raises:
        UserError: as `build_store`, or what reading the passages raises.
    """
    folder = cache_dir() / "stores" / (files_fingerprint(files, root) + terms.suffix)
    if not folder.is_dir():
        build_store(passages, folder, terms)
    return PassageStore(folder)


def build_store(passages: Iterable[Passage], folder: Path, terms: Terms = DEFAULT_TERMS) -> None:
    """Writes passages and index in one pass over `passages` and one over what it wrote; repeats are left out.

    The folder appears once all of it is written, and the same of two processes that build it at once stays.

    Raises:
        UserError: there are no passages, the folder cannot be written, or its disk is full.
    """
    with kept_at(folder) as aside:
        aside.mkdir()
        index, of_all_words = Columns(aside), Columns(aside / FUNCTION_WORDS)
        offsets = array("Q", [0])
        with (aside / "passages.jsonl").open("wb") as file:
            bar = tqdm(unique(passages), desc="indexing", unit=" passages", disable=not sys.stderr.isatty())
            for batch in batched(bar):
                for passage in batch:
                    row = json.dumps([passage.id, passage.title, passage.text], ensure_ascii=False)
                    offsets.append(offsets[-1] + file.write(row.encode("utf-8", "replace") + b"\n"))
                    words = index_terms(passage, ALL_WORDS)
                    index.count(reduced(words, terms))
                    of_all_words.count(words, STOP_WORDS)
                index.set_aside()
                of_all_words.set_aside()
        if not index.lengths:
            raise UserError("the corpus is empty; each line needs one passage")
        np.save(aside / "offsets.npy", np.frombuffer(offsets, dtype=np.uint64))
        index.write()
        of_all_words.write()
        (aside / TERMS_FILE).write_text(terms.suffix + "\n", encoding="utf-8")


def unique(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Drops repeats of (title, text), told apart by 64 bits of a hash; a passage without an id gets its number."""
    seen: set[int] = set()
    for passage in passages:
        digest = hashlib.blake2b(f"{passage.title}\0{passage.text}".encode("utf-8", "replace"), digest_size=8).digest()
        if (key := int.from_bytes(digest, "big")) not in seen:
            yield passage if passage.id else Passage(str(len(seen)), passage.title, passage.text)
            seen.add(key)


def batched(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Lists of `BATCH` passages."""
    batch: list[Passage] = []
    for passage in passages:
        batch.append(passage)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class Columns:
    """The scores of an index while they are made: passage by passage, then all terms, set aside on disk in between."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.vocabulary: dict[str, int] = {}
        self.lengths = array("I")
        self.parts: list[Path] = []
        self.entries = {name: array("I") for name in ("terms", "counts", "rows")}

    def count(self, words: list[str], only: Container[str] | None = None) -> None:
        """Counts the words of the next passage, or of them those in `only`; its length is that of all of them."""
        words, row = words or [EMPTY], len(self.lengths)
        self.lengths.append(len(words))
        for word, count in Counter(words).items():
            if only is None or word in only:
                self._enter(word, count, row)

    def _enter(self, word: str, count: int, row: int) -> None:
        self.entries["terms"].append(self.vocabulary.setdefault(word, len(self.vocabulary)))
        self.entries["counts"].append(count)
        self.entries["rows"].append(row)

    def set_aside(self) -> None:
        """Moves what was counted from memory to disk."""
        if not self.vocabulary:
            self._enter(EMPTY, 1, 0)  # an array without a number cannot be mapped
        self.parts.append(self.folder / f"terms-{len(self.parts)}.npz")
        arrays = {name: np.frombuffer(values, dtype=np.uint32) for name, values in self.entries.items()}
        np.savez(self.parts[-1], **arrays)
        self.entries = {name: array("I") for name in self.entries}

    def write(self) -> None:
        """Writes the scores as a sparse matrix by columns (terms), in the files of bm25s."""
        import bm25s

        lengths, n_terms, folder = np.frombuffer(self.lengths, dtype=np.uint32), len(self.vocabulary), self.folder
        frequencies = np.zeros(n_terms, dtype=np.int64)
        for path in self.parts:
            frequencies += np.bincount(np.load(path)["terms"], minlength=n_terms)
        starts = np.concatenate([[0], np.cumsum(frequencies)])
        n = len(lengths)
        idf = np.log(1 + (n - frequencies + 0.5) / (frequencies + 0.5))
        norms = K1 * (1 - B + B * lengths / lengths.mean())
        data = new_memmap(folder / "data.csc.index.npy", np.float32, (int(starts[-1]),))
        indices = new_memmap(folder / "indices.csc.index.npy", np.int32, (int(starts[-1]),))
        np.save(folder / "indptr.csc.index.npy", starts)
        free = starts[:-1].copy()  # where the next entry of each term goes
        for path in self.parts:
            part = np.load(path)
            order = np.argsort(part["terms"], kind="stable")
            terms, counts, rows = (part[name][order] for name in ("terms", "counts", "rows"))
            sizes = np.bincount(terms, minlength=n_terms)
            within = np.arange(len(terms)) - (np.cumsum(sizes) - sizes)[terms]
            at = free[terms] + within
            data[at] = idf[terms] * counts / (counts + norms[rows])
            indices[at] = rows
            free += sizes
        data.flush()
        indices.flush()
        index = bm25s.BM25(method="lucene", k1=K1, b=B)
        names = ("k1", "b", "delta", "method", "idf_method", "dtype", "int_dtype", "backend")
        params = {name: getattr(index, name) for name in names} | {"num_docs": n, "version": bm25s.__version__}
        (folder / "params.index.json").write_text(json.dumps(params))
        (folder / "vocab.index.json").write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")
        for path in self.parts:
            path.unlink()


def files_fingerprint(files: Sequence[Path], root: Path | None = None) -> str:
    """Hashes the files' names (a text's is its title), sizes and bytes, and how they are indexed."""
    digest = hashlib.blake2b(f"store-5 {K1} {B}".encode(), digest_size=12)
    for path in files:
        digest.update(b"\0%s\0%d\0" % (os.fsencode(path.relative_to(root) if root else path.name), path.stat().st_size))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
