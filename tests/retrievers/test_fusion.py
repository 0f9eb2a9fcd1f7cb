"""Reciprocal-rank fusion by hand, both retrievers in one, and a cross-encoder's order."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch
from helpers.encoders import PASSAGES, READ, SYNONYMS, save_bert, save_word_vectors
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.retrievers.bm25 import RankBM25
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.retrievers.fusion import FusedRetriever, Reranker, reciprocal_rank_fusion

LAKES = [Passage(str(n), f"T{n}", text) for n, text in enumerate(["a lake", "lake fish", "rock", "ice peak lake"])]
rankings = st.lists(st.permutations(range(8)).flatmap(lambda order: st.integers(0, 8).map(lambda n: order[:n])))


class Fixed:
    """A ranking of passages, whatever the query; remembers how many were asked for."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def search(self, queries, topk):
        self.asked.append(topk)
        return [[Hit(LAKES[row], 9.0 - n) for n, row in enumerate(self.rows[:topk])] for _ in queries]


def test_a_passage_scores_the_sum_of_its_reciprocal_ranks():
    """Cormack et al.: 1 / (60 + rank) in each ranking that holds it."""
    first, second = Fixed([0, 1, 2]).search(["q"], 3)[0], Fixed([1, 3]).search(["q"], 3)[0]
    fused = reciprocal_rank_fusion([first, second])
    assert [(hit.passage.id, hit.score) for hit in fused] == [
        ("1", pytest.approx(1 / 62 + 1 / 61)), ("0", pytest.approx(1 / 61)), ("3", pytest.approx(1 / 62)),
        ("2", pytest.approx(1 / 63)),
    ]  # fmt: skip


@given(rankings)
def test_fusion_ranks_every_passage_once_by_the_formula(rows):
    passages = [Passage(str(n), "t", "x") for n in range(8)]
    fused = reciprocal_rank_fusion([[Hit(passages[row], 0.0) for row in ranking] for ranking in rows])
    by_hand = {row: sum(1 / (61 + r.index(row)) for r in rows if row in r) for row in range(8)}
    assert {int(hit.passage.id) for hit in fused} == {row for row, score in by_hand.items() if score}
    assert len(fused) == len({hit.passage for hit in fused})
    assert [hit.score for hit in fused] == [pytest.approx(by_hand[int(hit.passage.id)]) for hit in fused]
    assert all(a.score >= b.score for a, b in pairwise(fused))


def test_a_single_ranking_and_ties_keep_the_given_order():
    assert [h.passage.id for h in reciprocal_rank_fusion([Fixed([3, 1, 0]).search(["q"], 3)[0]])] == ["3", "1", "0"]
    twice = [Fixed([2]).search(["q"], 1)[0], Fixed([0]).search(["q"], 1)[0]]
    assert [hit.passage.id for hit in reciprocal_rank_fusion(twice)] == ["2", "0"]


def test_the_best_are_the_same_however_many_are_asked_for():
    parts = [Fixed([0, 1, 2, 3]), Fixed([3, 2, 1, 0])]
    fused = FusedRetriever(parts)
    assert [hits[:1] for hits in fused.search(["a", "b"], 4)] == fused.search(["a", "b"], 1)
    assert parts[0].asked == [100, 100]
    assert fused.search([], 3) == []


def test_a_hybrid_finds_what_either_part_finds(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    model = save_word_vectors(tmp_path / "m", READ, {**SYNONYMS, "oslo": "peak"})
    hybrid = build_retriever(Engine("hybrid", dense_model=model), PASSAGES)
    synonym, name = hybrid.search(["boat", "fjord Oslo"], 2)
    assert synonym[0].passage.title == "Fram"  # only dense knows
    assert name[0].passage.title == "Oslo" and name[1].passage.title == "Matterhorn"


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    texts = [f"{p.title} {p.text} fish ?" for p in LAKES]
    return save_bert(tmp_path_factory.mktemp("judge") / "judge", texts, labels=1)


def test_a_reranker_orders_by_the_cross_encoders_scores(judge):
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = AutoModelForSequenceClassification.from_pretrained(judge).eval()

    def by_hand(query: str, passage: Passage) -> float:
        pair = tokenizer(query, f"{passage.title}\n{passage.text}", return_tensors="pt")
        with torch.no_grad():
            return torch.sigmoid(model(**pair).logits).item()

    first = Fixed([0, 1, 2, 3])
    queries = ["fish", "rock ?", "fish peak"]
    orders = set()
    for query, hits in zip(queries, Reranker(first, judge).search(queries, 2), strict=True):
        scores = sorted(((by_hand(query, passage), passage) for passage in LAKES), key=lambda pair: -pair[0])
        assert [hit.passage for hit in hits] == [passage for _, passage in scores[:2]]
        assert [hit.score for hit in hits] == pytest.approx([score for score, _ in scores[:2]], abs=1e-5)
        orders.add(tuple(passage.id for _, passage in scores))
    assert len(orders) > 1 and first.asked == [30]


def test_a_reranker_wraps_an_engine_and_keeps_its_hits(judge):
    found = build_retriever(Engine("bm25", reranker=judge), LAKES).search(["lake", "nothing of that", "lake"], 9)
    assert [len(hits) for hits in found] == [3, 0, 3]
    assert {hit.passage for hit in found[0]} == {h.passage for h in RankBM25(LAKES).search(["lake"], 9)[0]}
    assert build_retriever(Engine("bm25", reranker=judge), LAKES).search([], 3) == []


def test_what_cannot_rerank_is_said(tmp_path, monkeypatch):
    three = save_bert(tmp_path / "three", ["a lake"], labels=3)
    for name, told in [(three, "gives 3 scores per pair"), ("./nowhere", "--reranker takes a folder or a hub id")]:
        with pytest.raises(UserError, match=told):
            build_retriever(Engine("bm25", reranker=name), LAKES)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"\.\[dense\]"):
        build_retriever(Engine("bm25", reranker="any"), LAKES)
