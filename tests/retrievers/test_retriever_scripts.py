"""Words of many scripts and spellings, and queries of function words alone, through every BM25 and from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.files import write_lines
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.retrieval import Passage, Retriever
from searchr1_mini.data import datasets
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.retrievers.bm25 import BM25S, RankBM25
from searchr1_mini.retrievers.fusion import FusedRetriever
from searchr1_mini.retrievers.index import PassageStore, open_store
from searchr1_mini.retrievers.milvus import MilvusRetriever
from searchr1_mini.retrievers.terms import ALL_WORDS, STOP_WORDS, VERSION, Terms, tokenize, words_of

FOUND = [  # a query, and the passage that must come first
    ("日本の首都", "東京都は日本の首都である。人口は約1400万人。"),
    ("猫", "黒い猫が庭で寝ている。"),
    ("ガラス工芸", "ｶﾞﾗｽ工芸の歴史は古い。"),
    ("北京大学在哪里", "北京大学是位于海淀区的一所大学。"),
    ("臺灣", "玉山是臺灣最高的山。"),
    ("서울", "서울은 대한민국의 수도이다."),
    ("กรุงเทพ", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"),
    ("हिन्दी भाषा", "हिन्दी भाषा भारत में बोली जाती है।"),
    ("दिल्ली", "भारत की राजधानी दिल्ली में है।"),
    ("தமிழ்", "தமிழ் மொழி தென்னிந்தியாவில் பேசப்படுகிறது."),
    ("كتاب", "قرأ الطالب كِتَابًا عن الكِتَاب المقدس كـــتاب."),
    ("שלום", "המילה שָׁלוֹם היא ברכה."),
    ("میخواهم", "من می\u200cخواهم بروم."),
    ("Istanbul", "İstanbul, Boğaz'ın iki yakasındadır."),
    ("DIYARBAKIR", "Diyarbakır surları uzundur."),
    ("STRASSE", "Die Straße von Gibraltar verbindet zwei Meere."),
    ("ΟΔΟΣ", "Η οδος Ερμού είναι πεζόδρομος."),
    ("Москва", "МОСКВА стоит на реке."),
    ("Nguyễn", "Ông Nguye\u0302\u0303n sống ở Huế."),
    ("1998", "The cup of １９９８ went to France."),
    ("2011", "२०११ में एक घटना हुई."),
    ("finance", "The \ufb01nance minister resigned."),
    ("automobile", "An auto\u00admobile factory closed."),
    ("naïve", "A nai\u0308ve painter of the last century."),
    ("Xerox", "Xerox™ machines copy paper."),
    ("The Who", "The Who recorded Tommy in 1969."),
    ("it", "It is a novel by Stephen King."),
    ("How to be", "How is one to be without a home?"),
    ("WHO?", "WHO! Who? Who."),
    ("his", "His was her."),
]
PASSAGES = [Passage(str(n), "", text) for n, (_, text) in enumerate(FOUND)]


def bm25s_store(passages: Sequence[Passage], folder: Path) -> BM25S:
    file = Path(write_lines(folder / "c.jsonl", [{"id": p.id, "contents": p.text} for p in passages]))
    return BM25S(open_store([file], passages))


ENGINES = {
    "bm25": lambda passages, folder: RankBM25(passages),
    "bm25s": lambda passages, folder: BM25S(passages),
    "store": bm25s_store,
    "milvus": lambda passages, folder: MilvusRetriever(passages, str(folder / "m.db")),
    "fused": lambda passages, folder: FusedRetriever([RankBM25(passages)]),
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory) -> Retriever:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEARCHR1_CACHE", str(folder / "cache"))
        yield ENGINES[request.param](PASSAGES, folder)


@pytest.mark.parametrize(("query", "text"), FOUND, ids=[query for query, _ in FOUND])
def test_a_query_of_any_script_finds_its_passage_first(engine, query, text):
    hits = engine.search([query], 3)[0]
    assert [hit.passage.text for hit in hits][:1] == [text]


def test_function_words_count_for_nothing_beside_other_words(engine):
    """A query without any word finds nothing."""
    assert engine.search(["?", "", " \u200b", "\u064b"], 3) == [[]] * 4
    alone, beside = engine.search(["Tommy", "who is the Tommy of it"], 9)
    assert (
        [hit.passage for hit in alone]
        == [hit.passage for hit in beside]
        == [PASSAGES[FOUND.index(("The Who", alone[0].passage.text))]]
    )


def test_function_words_score_the_same_in_a_store_and_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    there, here = bm25s_store(PASSAGES, tmp_path), BM25S(PASSAGES)
    for query in sorted(STOP_WORDS):
        ours, theirs = there.search([query], 30)[0], here.search([query], 30)[0]
        assert [hit.passage for hit in ours] == [hit.passage for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], rel=1e-5)
    assert "function_words" in {path.name for path in there.passages.folder.iterdir()}


def test_passages_without_a_function_word_make_a_store_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    assert bm25s_store([Passage("0", "", "Oslo")], tmp_path).search(["the", "Oslo"], 3)[0] == []


def test_a_big_file_of_passages_is_found_by_function_words_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "BIG_CORPUS", 10)
    path = write_lines(
        tmp_path / "c.jsonl", [{"id": "1", "contents": '"The Who"\nA band.'}, {"id": "2", "contents": "東京"}]
    )
    store = load_corpus(path, "jsonl", None)
    assert isinstance(store, PassageStore)
    assert [[hit.passage.id for hit in hits] for hits in BM25S(store).search(["the who", "東京"], 3)] == [["1"], ["2"]]


@pytest.mark.parametrize("terms", [Terms(), ALL_WORDS])
def test_an_index_of_other_rules_for_words_has_another_name(terms):
    assert terms.suffix.endswith(f"-words{VERSION}")


@given(st.text())
def test_words_do_not_depend_on_case_or_unicode_composition(text):
    from unicodedata import normalize

    for other in (normalize("NFD", text), normalize("NFC", text), text.casefold()):
        assert words_of(other) == words_of(text)
    assert set(tokenize(text, ALL_WORDS)) <= set(tokenize(text, ALL_WORDS, singles=True))
    assert all(word and not word.isspace() for word in words_of(text))
