"""The metrics of retrieval: by hand on a ranking that is known, and the command on files."""

from __future__ import annotations

import sys

import pytest
from helpers.encoders import save_word_vectors
from helpers.files import write_lines
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini import retrieval_metrics
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.evaluation.grid import terminal
from searchr1_mini.retrieval_metrics import measure, parse_topks

PAGES = {"Oslo": "Oslo is the capital of Norway.", "Bern": "Bern is a capital.", "Fram": "Fram is a ship of Norway."}


class Ranked:
    """Finds for each question the titles that it is written with."""

    def search(self, queries, topk):
        return [[Hit(Passage("", title, ""), 0.0) for title in query.split()][:topk] for query in queries]


def example(question: str, *supporting: str) -> Example:
    return Example(question, question, ("x",), "q", tuple((title, "") for title in supporting))


def test_metrics_by_hand():
    """Supporting titles at ranks (2), (1, 3), (2, none) and (none); a title's first passage counts."""
    asked = [example("a b c d", "b"), example("a a b c", "a", "b"), example("a b c d", "b", "z"), example("a", "z")]
    found = measure(Ranked(), asked, [1, 2, 3])
    assert found.any_recall == {1: 0.25, 2: 0.75, 3: 0.75}
    assert found.all_recall == {1: 0.0, 2: 0.25, 3: 0.5}
    assert found.mrr == (1 / 2 + 1 + 1 / 2 + 0) / 4
    assert 0 <= found.median_ms <= found.p95_ms


def test_the_table_fits_a_terminal():
    found = measure(Ranked(), [example("a b c d", "b")], [1, 3, 5, 10])
    drawn = terminal(retrieval_metrics.table({"hybrid + stemming": found, "bm25": found}, [1, 3, 5, 10]), 80)
    assert max(map(len, drawn.splitlines())) <= 80 and drawn.count("hybrid") == 2 and "all@10" in drawn


titles = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6)


@given(st.lists(st.tuples(titles, st.sets(st.sampled_from("abcdefz"), min_size=1, max_size=3)), min_size=1, max_size=6))
def test_recall_is_what_sets_of_titles_say(pairs):
    asked = [example(" ".join(ranking), *supporting) for ranking, supporting in pairs]
    found = measure(Ranked(), asked, [1, 2, 6])
    for k in (1, 2, 6):
        assert found.any_recall[k] == pytest.approx(sum(bool(set(r[:k]) & s) for r, s in pairs) / len(pairs))
        assert found.all_recall[k] == pytest.approx(sum(s <= set(r[:k]) for r, s in pairs) / len(pairs))
    ranks = [[n for n, title in enumerate(r, start=1) if title in s] for r, s in pairs]
    assert found.mrr == pytest.approx(sum(1 / hit[0] for hit in ranks if hit) / len(pairs))


@pytest.fixture
def files(tmp_path, monkeypatch) -> tuple[str, str]:
    """Three questions, one of them without supporting titles, and a corpus."""
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": "What is the capital of Norway?", "answer": "Oslo", "supporting_facts": [["Oslo", 0]]},
        {"question": "Which boat?", "answer": "Fram", "supporting_facts": [["Fram", 0], ["Oslo", 0]]},
        {"question": "What else?", "answer": "nothing"},
    ]
    pages = [{"id": title, "title": title, "text": text} for title, text in PAGES.items()]
    return write_lines(tmp_path / "q.jsonl", rows), write_lines(tmp_path / "c.jsonl", pages)


def run(capsys, monkeypatch, *flags: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["retrieval_metrics", *flags])
    retrieval_metrics.main()
    return capsys.readouterr().out.splitlines()


def test_one_table_of_several_retrievers(files, tmp_path, capsys, monkeypatch):
    model = save_word_vectors(tmp_path / "m", [f"{t} {text}" for t, text in PAGES.items()], {"boat": "ship"})
    url = str(tmp_path / "m.db")
    flags = ["--dataset", files[0], "--corpus", files[1], "--retriever", "bm25,bm25s,hybrid,milvus", "--topk", "3,1"]
    out = run(capsys, monkeypatch, *flags, "--dense-model", model, "--retriever-url", url, "--stemming")
    assert out[0] == "2 questions with supporting titles, of 3, asked of 3 passages"
    table = [[cell.strip() for cell in line.strip("|").replace("\\_", "_").split("|")] for line in out[4:]]
    assert table[0] == ["retriever", "any@1", "any@3", "all@1", "all@3", "MRR@3", "ms, median", "ms, p95"]
    shares = {row[0]: row[1:6] for row in table[2:]}
    assert list(shares) == ["bm25 + stemming", "bm25s + stemming", f"hybrid ({model}, flat) + stemming",
                            "milvus + stemming"]  # fmt: skip
    assert shares["bm25s + stemming"] == ["0.500", "0.500", "0.500", "0.500", "0.500"] == shares["milvus + stemming"]
    assert shares[f"hybrid ({model}, flat) + stemming"] == ["1.000", "1.000", "0.500", "1.000", "1.000"]


def test_the_hotpotqa_sample_by_command(shared, capsys, monkeypatch):
    flags = ["--dataset", "hotpotqa", "--data-path", str(shared / "data" / "hotpotqa_distractor_100.json")]
    out = run(capsys, monkeypatch, *flags, "--retriever", "bm25s", "--topk", "3")
    assert out[0] == "100 questions with supporting titles, of 100, asked of 994 passages"
    assert [cell.strip() for cell in out[-1].split("|")][1:4] == ["bm25s", "0.960", "0.420"]


def test_passages_alone_name_no_questions(files, capsys, monkeypatch):
    with pytest.raises(UserError, match="needs questions that its passages answer; name them: --dataset FILE"):
        run(capsys, monkeypatch, "--corpus", files[1])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--topk", "0,3"], "--topk 0,3: give numbers from 1"),
        (["--retriever", "bm52"], "did you mean bm25"),
        (["--retriever", "oracle"], "unknown 'oracle'"),
        (["--retriever", "all"], "unknown 'all'.*; known: auto, bm25"),
        (["--retriever", "bm25,dense", "--retriever-url", "x"], "--retriever-url does nothing with"),
        (["--retriever", "http,milvus", "--retriever-url", "http://x"], "leave the other out"),
        (["--retriever", "bm25,milvus"], "--retriever milvus needs the address"),
        (["--retriever", "bm25", "--dense-index", "hnsw"], "it needs --retriever dense or hybrid"),
    ],
)
def test_what_cannot_be_measured_is_said(files, flags, told, capsys, monkeypatch):
    with pytest.raises(UserError, match=told):
        run(capsys, monkeypatch, "--dataset", files[0], "--corpus", files[1], *flags)


def test_without_supporting_titles_a_gold_answer_counts(files, tmp_path, capsys, monkeypatch):
    rows = [("What is the capital of Norway?", "oslo"), ("Which ship of Norway?", "Fram"), ("What capital?", "no such")]
    path = write_lines(tmp_path / "none.jsonl", [{"question": question, "answer": answer} for question, answer in rows])
    out = run(capsys, monkeypatch, "--dataset", path, "--corpus", files[1], "--retriever", "bm25s", "--topk", "1,3")
    assert out[0].startswith(
        "3 questions, none with supporting titles, asked of 3 passages; a passage counts if a gold"
    )
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out[5:]]
    assert table[0] == ["retriever", "gold@1", "gold@3", "MRR@3", "ms, median", "ms, p95"]
    assert table[2][:4] == ["bm25s", "0.667", "0.667", "0.667"]


@given(st.lists(st.integers(1, 99), min_size=1))
def test_numbers_come_once_and_ascending(numbers):
    assert parse_topks(",".join(map(str, numbers))) == sorted(set(numbers))


@pytest.mark.parametrize("text", ["0", "1,0", "-1", "\u0663", "1001", "9" * 5000, "1e3", "nan", ",", "1_0"])
def test_numbers_of_passages_have_a_bound(text):
    with pytest.raises(UserError, match=r"^--topk ") as told:
        parse_topks(text)
    assert len(str(told.value)) < 200
