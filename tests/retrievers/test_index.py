"""A corpus on disk: the same answers as in memory, whatever it holds; built once, whole or not at all."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data import datasets
from searchr1_mini.data.corpus import distinct
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrievers import index
from searchr1_mini.retrievers.bm25 import BM25S, fingerprint
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.retrievers.index import PassageStore, build_store, open_store
from searchr1_mini.retrievers.probes import RandomRetriever
from searchr1_mini.retrievers.terms import Terms
from searchr1_mini.run.task import Library, load_task

WORDS = st.sampled_from("oslo bern rome the of a Ärger 東京 x1 x2 x3 !".split())
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)


def passages_of(texts: list[str]) -> list[Passage]:
    return [Passage(str(n), f"t{n % 3}", text) for n, text in enumerate(texts)]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=30),
    queries=st.lists(TEXTS, min_size=1, max_size=4),
    batch=st.integers(1, 9),
)
def test_a_store_answers_as_an_index_in_memory(tmp_path_factory, texts, queries, batch):
    passages = passages_of(texts)
    folder = tmp_path_factory.mktemp("store") / "s"
    index.BATCH, before = batch, index.BATCH
    try:
        build_store(passages, folder)
    finally:
        index.BATCH = before
    store = PassageStore(folder)
    kept = distinct(passages)
    assert list(store) == kept and len(store) == len(kept)
    assert not list(folder.glob("terms-*"))
    there, here = BM25S(store).search(queries, 4), BM25S(kept).search(queries, 4)
    for ours, theirs in zip(there, here, strict=True):
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], rel=1e-5)
        surely = max((hit.score for hit in theirs[-1:]), default=0) * 1.0001  # ties at the end may fall either way
        above = [{hit.passage for hit in hits if hit.score > surely} for hits in (ours, theirs)]
        assert above[0] == above[1]


def test_the_arrays_are_those_that_bm25s_builds(tmp_path):
    passages = passages_of([f"w{n % 7} w{n % 3} w{n}" for n in range(200)])
    build_store(passages, tmp_path / "s")
    ours, theirs = BM25S(PassageStore(tmp_path / "s")).index, BM25S(passages).index
    assert set(ours.vocab_dict) == set(theirs.vocab_dict) - {""}
    for term, column in ours.vocab_dict.items():
        for made, column_ in ((ours, column), (theirs, theirs.vocab_dict[term])):
            start, end = made.scores["indptr"][column_], made.scores["indptr"][column_ + 1]
            rows, values = made.scores["indices"][start:end], made.scores["data"][start:end]
            found = dict(zip(rows.tolist(), values.tolist(), strict=True))
            if made is ours:
                mine = found
        assert mine == pytest.approx(found, rel=1e-6)
    assert isinstance(ours.scores["data"], np.memmap)


@pytest.fixture
def big(monkeypatch, tmp_path):
    """Every file counts as a big one; the cache is a folder of the test's own."""
    monkeypatch.setattr(datasets, "BIG_CORPUS", 0)
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_corpus(path: Path, n: int) -> Path:
    rows = [{"id": str(k), "contents": f'"T{k}"\nplace number {k} of all'} for k in range(n)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_a_big_corpus_is_indexed_once_and_read_from_disk(big, name, monkeypatch):
    path = write_corpus(big / name, 50)
    store = load_corpus(str(path), "jsonl", None)
    assert (
        isinstance(store, PassageStore) and len(store) == 50 and store[7] == Passage("7", "T7", "place number 7 of all")
    )
    retriever = build_retriever(Engine("auto"), store)
    assert [hits[0].passage.id for hits in retriever.search(["T7", "number 30"], 2)] == ["7", "30"]
    assert len(RandomRetriever(store).search(["x"], 3)[0]) == 3
    monkeypatch.setattr(index, "build_store", None)  # it is there: not built again
    again = load_corpus(str(path), "jsonl", None)
    assert fingerprint(again) == fingerprint(store) and list(again) == list(store)


def test_a_store_never_serves_other_terms(big):
    path = big / "c.jsonl"
    path.write_text("".join(json.dumps({"id": t, "title": t, "text": t}) + "\n" for t in ("the lakes", "a lake")))
    kinds = [Terms(stemming, stop_words) for stemming in (False, True) for stop_words in (True, False)]
    for _ in range(2):  # built, then read back
        stores = [load_corpus(str(path), "jsonl", None, kind) for kind in kinds]
        engines = [BM25S(store, kind) for store, kind in zip(stores, kinds, strict=True)]
        found = [[len(hits) for hits in engine.search(["lake", "the"], 3)] for engine in engines]
        assert found == [[1, 1], [1, 1], [2, 1], [2, 1]]
    assert len({store.folder for store in stores}) == 4
    assert {fingerprint(store) for store in stores} == {stores[0].folder.name.removesuffix("-words2")}  # one corpus
    with pytest.raises(ValueError, match="indexed with other terms"):
        BM25S(stores[0], Terms(stemming=True))


def test_a_task_opens_the_store_of_its_terms(big):
    corpus = write_corpus(big / "c.jsonl", 20)
    questions = big / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"place {n}?", "answer": "x"}) + "\n" for n in range(4)))
    config = resolve(make(TrainConfig, model="Qwen2.5-3B", dataset=str(questions), corpus=str(corpus)))
    library = Library()
    plain = load_task(config, "train", library)
    stems = load_task(with_options(config, stemming=True), "train", library)
    assert plain.retriever.search(["placed 7"], 1) != stems.retriever.search(["placed 7"], 1)
    assert plain.corpus_hash == stems.corpus_hash and len(list((big / "cache" / "stores").iterdir())) == 2


def test_another_byte_is_another_index(big):
    first = fingerprint(load_corpus(str(write_corpus(big / "c.jsonl", 5)), "jsonl", None))
    assert fingerprint(load_corpus(str(write_corpus(big / "c.jsonl", 6)), "jsonl", None)) != first


def test_many_threads_read_one_store(tmp_path):
    build_store(passages_of([f"text {n}" for n in range(300)]), tmp_path / "s")
    store = PassageStore(tmp_path / "s")
    with ThreadPoolExecutor(8) as pool:
        assert [p.id for p in pool.map(store.__getitem__, range(300))] == [str(n) for n in range(300)]
    with pytest.raises(IndexError):
        store[300]


@pytest.mark.parametrize("line", ["{broken", '{"id": "x"}', ""])
def test_what_breaks_off_leaves_no_store(big, line):
    path = write_corpus(big / "c.jsonl", 3 if line else 0)
    path.write_text(path.read_text() + line)
    with pytest.raises(UserError, match="line 4" if line else "is empty; each line"):
        load_corpus(str(path), "jsonl", None)
    assert not list((big / "cache" / "stores").glob("*"))


def test_two_processes_that_build_at_once_and_one_that_is_killed(tmp_path):
    """Whoever is later finds the folder there and keeps it; a killed one leaves nothing that is taken for an index."""
    corpus = write_corpus(tmp_path / "c.jsonl", 3000)
    code = (
        "from searchr1_mini.data import datasets as data; data.BIG_CORPUS = 0; import sys; print('go', flush=True);"
        "s = data.load_corpus(sys.argv[1], 'jsonl', None); print(len(s), s.folder, flush=True)"
    )
    command = [sys.executable, "-c", code, str(corpus)]
    environment = {"SEARCHR1_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "text": True}
    killed = subprocess.Popen(command, **options)
    killed.stdout.readline()
    killed.kill()
    killed.wait()
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    told = [process.communicate()[0].splitlines()[-1] for process in both]
    assert told[0] == told[1] and told[0].startswith("3000 ")
    store = PassageStore(Path(told[0].split(" ", 1)[1]))
    assert BM25S(store).search(["T2999"], 1)[0][0].passage.id == "2999"


def test_the_stores_hash_is_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    files = [write_corpus(tmp_path / name, n) for name, n in (("a.jsonl", 2), ("b.jsonl", 3))]
    store = open_store(files, passages_of(["x", "y"]))
    assert store.folder == open_store(files, iter(())).folder
    assert store.folder.name != index.files_fingerprint(files[:1])
