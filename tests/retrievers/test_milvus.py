"""BM25 by Milvus (milvus-lite, in process) against ours: the same passages, whatever the terms; filled once, whole."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.datasets import load_corpus, load_examples
from searchr1_mini.data.world import make_world
from searchr1_mini.retrievers import milvus
from searchr1_mini.retrievers.bm25 import BM25S
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.retrievers.milvus import MilvusRetriever
from searchr1_mini.retrievers.terms import Terms

PASSAGES = make_world(0, "eval").passages
QUERIES = [f"Who is the mayor of {passage.title}, the capital?" for passage in PASSAGES[::40]]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("milvus") / "m.db")


def assert_same(ours: list, theirs: list, least: float) -> None:
    """The scores of ours times k1 + 1, rank by rank, and at least that share of the same passages (ties may differ)."""
    for mine, other in zip(ours, theirs, strict=True):
        assert [hit.score for hit in other] == pytest.approx([2.5 * hit.score for hit in mine], rel=1e-4)
    same = [len({h.passage for h in a} & {h.passage for h in b}) for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) >= least * sum(map(len, ours)) > 0


@pytest.mark.parametrize("terms", [Terms(), Terms(stop_words=False), Terms(stemming=True)])
def test_it_finds_what_our_bm25_finds(url, terms):
    theirs = MilvusRetriever(PASSAGES, url, terms).search(QUERIES, 5)
    assert_same(BM25S(PASSAGES, terms).search(QUERIES, 5), theirs, least=0.98)


def test_it_finds_what_our_bm25_finds_in_hotpotqa(shared, url):
    path = str(shared / "data" / "hotpotqa_distractor_100.json")
    passages = load_corpus(None, "hotpotqa", path)
    asked = [example.question for example in load_examples("hotpotqa", path, "all")]
    theirs = MilvusRetriever(passages, url).search(asked, 10)
    assert_same(BM25S(passages).search(asked, 10), theirs, least=0.99)


def test_queries_come_back_in_their_order_whatever_the_batch(url, monkeypatch):
    retriever = MilvusRetriever(PASSAGES, url)
    whole = retriever.search([*QUERIES, "", "? !", "zzz", QUERIES[0]], 3)
    assert whole[-4:] == [[], [], [], whole[0]]
    monkeypatch.setattr(milvus, "QUERIES", 2)
    assert retriever.search([*QUERIES, "", "? !", "zzz", QUERIES[0]], 3) == whole
    assert retriever.search([], 3) == []


def test_a_collection_is_filled_once_and_half_a_one_anew(tmp_path, monkeypatch):
    passages, url = PASSAGES[:30], str(tmp_path / "m.db")
    monkeypatch.setattr(milvus, "BATCH", 7)
    retriever = MilvusRetriever(passages, url)
    found = retriever.search(QUERIES, 3)
    with monkeypatch.context() as patched:
        patched.setattr(MilvusRetriever, "_fill", None)
        assert MilvusRetriever(passages, url).search(QUERIES, 3) == found
    retriever.client.delete(retriever.name, ids=list(range(20)))
    retriever.client.flush(retriever.name)
    assert MilvusRetriever(passages, url).search(QUERIES, 3) == found
    assert retriever.client.list_collections() == [retriever.name]


def test_what_breaks_off_while_filling_leaves_no_collection(tmp_path, monkeypatch):
    passages, url = PASSAGES[:30], str(tmp_path / "m.db")
    monkeypatch.setattr(milvus, "BATCH", 7)
    calls = []

    def interrupted(self, row) -> dict[str, str]:
        calls.append(row)
        if row == 10:
            raise KeyboardInterrupt
        return {"terms": "x", "all_words": "x"}

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MilvusRetriever, "_stored_texts", interrupted)
        MilvusRetriever(passages, url)
    retriever = MilvusRetriever(passages, url)
    assert calls == list(range(11)) and retriever.client.list_collections() == [retriever.name]
    assert retriever.search([passages[3].title], 1)[0][0].passage.title == passages[3].title


def test_the_slower_of_two_that_fill_takes_the_others_collection(tmp_path):
    passages, url = PASSAGES[:30], str(tmp_path / "m.db")
    retriever = MilvusRetriever(passages, url)
    retriever._fill()
    assert retriever.client.list_collections() == [retriever.name]


def test_every_corpus_and_setting_has_its_own_collection(tmp_path):
    url = str(tmp_path / "m.db")
    kinds = [(PASSAGES[:20], Terms()), (PASSAGES[:21], Terms()), (PASSAGES[:20], Terms(True, False))]
    names = {MilvusRetriever(passages, url, terms).name for passages, terms in kinds}
    assert len(names) == 3 and all(name.isidentifier() for name in names)


def test_a_passage_longer_than_a_field_is_found_by_its_beginning(tmp_path):
    passages = [Passage("0", "Long", "Ärger " * 40_000 + "end"), Passage("1", "Short", "end")]
    retriever = MilvusRetriever(passages, str(tmp_path / "m.db"))
    found = retriever.search(["Ärger", "end"], 2)
    assert [[hit.passage.id for hit in hits] for hits in found] == [["0"], ["1"]]


@pytest.mark.parametrize(
    ("url", "told"),
    [("m.sqlite", "a path that ends in .db"), ("http://127.0.0.1:9", "Milvus at http://127.0.0.1:9 does not answer")],
)
def test_what_is_no_milvus_is_said(url, told, monkeypatch):
    monkeypatch.setattr(milvus, "TIMEOUT_S", 1.0)
    with pytest.raises(UserError, match=told):
        build_retriever(Engine("milvus", url), PASSAGES)


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with pytest.raises(UserError, match=r"\.\[milvus\]"):
        MilvusRetriever(PASSAGES, str(tmp_path / "m.db"))


def test_a_store_in_use_by_another_process_is_reported(tmp_path):
    url = str(tmp_path / "m.db")
    MilvusRetriever(PASSAGES[:20], url)
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in PASSAGES[:20]))
    command = [sys.executable, "-m", "searchr1_mini.server", "--corpus", str(corpus), "--retriever", "milvus"]
    done = subprocess.run([*command, "--retriever-url", url], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "stop what else has it open" in done.stderr and done.stderr.count("\n") == 1
