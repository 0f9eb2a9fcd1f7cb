"""BM25 against its formulas written out, ties, the cache, and the index on disk."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import CachedRetriever, Passage
from searchr1_mini.data.datasets import load_corpus, read_rows
from searchr1_mini.data.world import make_world
from searchr1_mini.retrievers import terms
from searchr1_mini.retrievers.bm25 import BM25S, RankBM25, best_rows, fingerprint, index_terms
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.retrievers.passages import split_contents
from searchr1_mini.retrievers.terms import STOP_WORDS, Terms, tokenize
from searchr1_mini.storage.cache import kept_at

WORDS = ["oslo", "bern", "river", "mayor", "capital", "lake"]
texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), min_size=2, max_size=12)
queries = st.lists(st.sampled_from([*WORDS, "unknown", "the"]), min_size=1, max_size=4).map(" ".join)


def corpus(passage_texts) -> list[Passage]:
    return [Passage(str(number), f"T{number}", text) for number, text in enumerate(passage_texts)]


def bm25_by_hand(passages, query, kind):
    """sum over terms of idf * tf (k1 + 1) / (tf + k1 (1 - b + b |d| / avgdl)), as the two libraries define idf."""
    k1, b = 1.5, 0.75
    documents = [index_terms(passage) for passage in passages]
    n, average = len(documents), sum(map(len, documents)) / len(documents)
    frequency = Counter(term for document in documents for term in set(document))
    if kind == "okapi":  # rank-bm25 floors a negative idf at a quarter of the mean idf
        idf = {t: math.log(n - f + 0.5) - math.log(f + 0.5) for t, f in frequency.items()}
        floor = 0.25 * sum(idf.values()) / len(idf)
        idf = {t: floor if value < 0 else value for t, value in idf.items()}
        top = k1 + 1
    else:  # Lucene's is never negative, and leaves out the factor k1 + 1
        idf = {t: math.log(1 + (n - f + 0.5) / (f + 0.5)) for t, f in frequency.items()}
        top = 1
    scores = []
    for document in documents:
        counts = Counter(document)
        norm = k1 * (1 - b + b * len(document) / average)
        scores.append(sum(idf[t] * counts[t] * top / (counts[t] + norm) for t in tokenize(query) if t in counts))
    return scores, documents


@settings(max_examples=60, deadline=None)
@given(texts, queries, st.integers(1, 5), st.sampled_from([(RankBM25, "okapi"), (BM25S, "lucene")]))
def test_engines_follow_the_formula_with_ties_in_corpus_order(passage_texts, query, topk, engine):
    passages = corpus(passage_texts)
    scores, documents = bm25_by_hand(passages, query, engine[1])
    matching = [i for i, document in enumerate(documents) if set(document) & set(tokenize(query))]
    hits = engine[0](passages).search([query], topk)[0]
    assert len(hits) == min(topk, len(matching))
    for hit in hits:
        assert hit.score == pytest.approx(scores[int(hit.passage.id)], abs=1e-4)
    found = [hit.score for hit in hits]
    assert found == sorted(found, reverse=True)
    rest = [scores[i] for i in matching if str(i) not in {hit.passage.id for hit in hits}]
    assert not hits or all(score <= found[-1] + 1e-4 for score in rest)
    by_score: dict[float, list[int]] = {}
    for hit in hits:
        by_score.setdefault(hit.score, []).append(int(hit.passage.id))
    assert all(ids == sorted(ids) for ids in by_score.values())


@given(
    st.lists(st.tuples(st.sampled_from([-1.5, 0.25, 0.5, 2.0]), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 10),
)
def test_the_best_rows_are_those_of_a_stable_sort(rows, topk):
    scores, matches = (np.array(column) for column in zip(*rows, strict=True))
    stable = sorted((i for i, is_match in enumerate(matches) if is_match), key=lambda i: -scores[i])
    assert best_rows(scores, matches, topk) == stable[:topk]


@pytest.mark.parametrize("engine", [RankBM25, BM25S])
def test_equal_passages_come_in_corpus_order(engine):
    passages = [Passage(str(number), "same", "oslo lake") for number in range(9)] + corpus(["bern"] * 30)
    assert [hit.passage.id for hit in engine(passages).search(["oslo"], 4)[0]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("engine", [RankBM25, BM25S])
def test_titles_are_indexed_and_unrelated_passages_left_out(engine):
    passages = [Passage("a", "Oslo", "a city"), Passage("b", "Bern", "another town"), Passage("c", "X", "nothing")]
    searched = engine(passages).search(["OSLO?", "zzz", "the of", ""], 3)
    assert [[hit.passage.id for hit in hits] for hits in searched] == [["a"], [], [], []]


class Counting:
    def __init__(self, retriever):
        self.retriever, self.calls = retriever, []

    def search(self, queries, topk):
        self.calls.append(list(queries))
        return self.retriever.search(queries, topk)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.lists(queries, max_size=4), st.integers(1, 3)), max_size=8), st.integers(1, 5))
def test_a_cache_changes_nothing_but_the_work(batches, max_entries):
    plain = RankBM25(corpus(["oslo lake", "bern river", "mayor capital", "oslo mayor", "lake lake"]))
    counting = Counting(plain)
    cached = CachedRetriever(counting, max_entries)
    for batch, topk in batches:
        assert cached.search(batch, topk) == plain.search(batch, topk)
        assert len(cached.results) <= max_entries
    assert all(len(call) == len(set(call)) for call in counting.calls)


def test_a_group_that_asks_the_same_costs_one_query():
    counting = Counting(RankBM25(corpus(["oslo lake", "bern"])))
    cached = CachedRetriever(counting)
    cached.search(["oslo"] * 8 + ["bern"], 3)
    cached.search(["bern", "oslo"], 3)
    assert counting.calls == [["oslo", "bern"]]


def test_the_cache_forgets_what_was_asked_longest_ago():
    counting = Counting(RankBM25(corpus(["oslo"])))
    cached = CachedRetriever(counting, max_entries=2)
    for query in ("a", "b", "a", "c", "a", "b"):
        cached.search([query], 3)
    assert counting.calls == [["a"], ["b"], ["c"], ["b"]]


def test_the_cache_is_safe_from_its_callers():
    cached = CachedRetriever(RankBM25(corpus(["oslo", "bern"])))
    cached.search(["oslo"], 3)[0].clear()
    assert len(cached.search(["oslo"], 3)[0]) == 1


def test_the_retriever_is_chosen_by_size():
    small, large = corpus(["oslo"] * 5), corpus(["oslo lake", "bern"] * 1000)
    assert isinstance(build_retriever(Engine("auto"), small).retriever, RankBM25)
    assert isinstance(build_retriever(Engine("auto"), large).retriever, BM25S)
    assert isinstance(build_retriever(Engine("bm25s"), small).retriever, BM25S)


@pytest.mark.parametrize(
    ("name", "passages", "told"),
    [
        ("bm25", [], "the corpus is empty"),
        ("elastic", corpus(["x"]), "unknown retriever 'elastic'"),
        ("elastic", [], "unknown retriever 'elastic'"),
        ("http", [], "--retriever-url"),
    ],
)
def test_what_cannot_be_built_is_said(name, passages, told):
    with pytest.raises(UserError, match=told):
        build_retriever(Engine(name), passages)


def test_a_large_index_is_kept_on_disk_and_answers_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path))
    monkeypatch.setattr("searchr1_mini.retrievers.bm25.SAVE_FROM", 100)
    passages = make_world(0, "eval").passages
    asked = [passage.title for passage in passages[:50]]
    fresh = BM25S(passages).search(asked, 3)
    assert len(list((tmp_path / "bm25s").iterdir())) == 1
    assert BM25S(passages).search(asked, 3) == fresh
    BM25S(passages[:-1])
    assert len(list((tmp_path / "bm25s").iterdir())) == 2


def test_an_index_on_disk_never_serves_other_terms(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path))
    monkeypatch.setattr("searchr1_mini.retrievers.bm25.SAVE_FROM", 2)
    passages = corpus(["the lakes of oslo", "bern and the lake"])
    kinds = [Terms(stemming, stop_words) for stemming in (False, True) for stop_words in (True, False)]
    for _ in range(2):  # built, then read back
        found = [[len(hits) for hits in BM25S(passages, kind).search(["lake", "the"], 3)] for kind in kinds]
        assert found == [[1, 2], [1, 2], [2, 2], [2, 2]]  # function words alone are asked for among all words
    names = {folder.name.removeprefix(fingerprint(passages)) for folder in (tmp_path / "bm25s").iterdir()}
    assert "-words2" in names and len(names) == 4


@pytest.mark.parametrize("name", ["bm25", "bm25s"])
def test_stems_and_stop_words_by_option(name):
    passages = corpus(["she runs", "he was running", "the lake"])

    def found(query: str, **options) -> list[str]:
        hits = build_retriever(Engine(name, **options), passages).search([query], 3)[0]
        return sorted(hit.passage.text for hit in hits)

    assert found("running") == ["he was running"] and found("the lake") == ["the lake"]
    assert found("run", stemming=True) == found("RUNNING", stemming=True) == ["he was running", "she runs"]
    assert found("the") == found("the", stemming=True) == found("the", stop_words=False) == ["the lake"]


@given(st.text(st.characters(max_codepoint=0x7F), max_size=40), st.booleans(), st.booleans())
def test_terms_of_any_text_are_its_words(text, stemming, stop_words):
    words = re.findall(r"\w+", text.lower())
    kept = words if stop_words is False else [word for word in words if word not in STOP_WORDS]
    stems = Stemmer.Stemmer("english").stemWords(kept)
    assert tokenize(text, Terms(stemming, stop_words)) == (stems if stemming else kept)


def test_decomposed_letters_match_composed_ones():
    composed, decomposed = "Zürich", unicodedata.normalize("NFD", "Zürich")
    assert composed != decomposed and tokenize(composed) == tokenize(decomposed) == ["zürich"]


def test_stemming_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    terms._stemmer.cache_clear()
    with pytest.raises(UserError, match=r"\.\[stem\]"):
        tokenize("lakes", Terms(stemming=True))
    assert tokenize("the lakes") == ["lakes"]


def test_a_damaged_index_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path))
    monkeypatch.setattr("searchr1_mini.retrievers.bm25.SAVE_FROM", 2)
    passages = corpus(["oslo lake", "bern"])
    BM25S(passages)
    (folder,) = (tmp_path / "bm25s").iterdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        file.write_bytes(b"")
        with pytest.raises(UserError, match=f"{folder.name} is damaged"):
            BM25S(passages)
        file.write_bytes(content)
    assert BM25S(passages).search(["lake"], 1)[0][0].passage == passages[0]


def test_what_breaks_off_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), kept_at(tmp_path / "x") as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_writers_keeps_the_others_folder(tmp_path):
    with kept_at(tmp_path / "x") as aside:
        aside.mkdir()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "first").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "first"]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="SEARCHR1_CACHE"), kept_at(tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize(
    ("contents", "title"),
    [('"Oslo"\nx', "Oslo"), ('""Weird Al" Yankovic"\nx', '"Weird Al" Yankovic'), ("Oslo\nx", "Oslo"), ('"\nx', '"')],
)
def test_one_pair_of_quotes_is_taken_off_a_title(contents, title):
    assert split_contents(contents) == (title, "x")


def test_hotpotqa_sample_is_found(shared):
    """The sample as one corpus: 994 passages; a supporting title is in the top 3 for 96 questions, both for 42."""
    path = shared / "data" / "hotpotqa_distractor_100.json"
    passages = load_corpus(None, "hotpotqa", str(path))
    assert len(passages) == 994
    rows = [row for row, _ in read_rows(path)]
    for engine in (RankBM25, BM25S):
        found = engine(passages).search([row["question"] for row in rows], 3)
        titles = [{hit.passage.title for hit in hits} for hits in found]
        any_found = sum(
            bool(t & {title for title, _ in row["supporting_facts"]}) for t, row in zip(titles, rows, strict=True)
        )
        assert any_found >= 93
        both_found = sum(
            {title for title, _ in row["supporting_facts"]} <= t for t, row in zip(titles, rows, strict=True)
        )
        assert both_found >= 39
