"""Questions drafted from documents: what is kept, what is not and why, and the files that a run then reads."""

from __future__ import annotations

import pytest

from searchr1_mini import make_questions
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.datasets import load_examples
from searchr1_mini.make_questions import fault_of, main, parsed
from searchr1_mini.retrievers.bm25 import RankBM25
from searchr1_mini.storage.files import read_jsonl

PASSAGE = "The Fram Museum opened in 1936. It shows the ship Fram, built by Colin Archer."
FRAM = Passage("0", "Fram", PASSAGE)


@pytest.mark.parametrize(("text", "expected"), [
    (" When did it open?\nAnswer: 1936.\n\n", ("When did it open?", "1936")),
    ("Question: Who built it?\n\nAnswer:  Colin Archer \nmore", ("Who built it?", "Colin Archer")),
    ("I am a helpful assistant.", ("I am a helpful assistant.", "")),
    ("", ("", "")),
])  # fmt: skip
def test_a_draft_is_read_as_question_and_answer(text, expected):
    assert parsed(text) == expected


@pytest.mark.parametrize(("question", "answer", "reason"), [
    ("Who built the ship?", "Colin Archer", None),
    ("Who built the ship?", "colin archer!", None),
    ("It was built.", "Colin Archer", "no question with an answer"),
    ("Who built the ship?", "", "no question with an answer"),
    ("Who built the ship?", "Roald Amundsen", "does not stand in the passage"),
    ("What did Colin Archer build?", "Colin Archer", "gives the answer away"),
    ("What is shown?", "The Fram Museum opened in 1936. It shows the ship", "more than 8 words"),
])  # fmt: skip
def test_a_draft_is_kept_or_has_a_reason(question, answer, reason):
    fault = fault_of(question, answer, FRAM, RankBM25([FRAM]), 1)
    assert fault is None if reason is None else reason in fault


def write_notes(folder):
    folder.mkdir()
    (folder / "fram.txt").write_text(PASSAGE)
    (folder / "bern.txt").write_text("Bern is a city. Its oldest bridge is the Untertorbrücke, finished in 1489.")
    (folder / "lost.txt").write_text("Quite another text about nothing in particular.")
    return folder


DRAFTS = {
    "Fram": "When did the Fram Museum open?\nAnswer: 1936",
    "Bern": "When was the oldest bridge finished?\nAnswer: 1489",
}


def drafted(monkeypatch, write) -> None:
    """Has drafts written by a function of a passage's text, one passage at a time."""
    monkeypatch.setattr(
        make_questions, "draft_questions", lambda config, passages: (([p], [write(p.text)]) for p in passages)
    )


def test_the_files_are_what_a_run_reads(tmp_path, monkeypatch, capsys):
    notes = write_notes(tmp_path / "notes")
    drafted(monkeypatch, lambda text: next((draft for name, draft in DRAFTS.items() if name in text), "no idea"))
    out = tmp_path / "questions.jsonl"
    main([str(notes), "--out", str(out)])
    assert {row["question"]: row["golden_answers"] for row in read_jsonl(out)} == {
        "When did the Fram Museum open?": ["1936"], "When was the oldest bridge finished?": ["1489"],
    }  # fmt: skip
    (rejected,) = read_jsonl(tmp_path / "questions.rejected.jsonl")
    assert (rejected["draft"], rejected["reason"]) == ("no idea", "no question with an answer")
    assert "2 of 3 drafts kept" in capsys.readouterr().out
    assert len(load_examples("jsonl", str(out), "all")) == 2
    with pytest.raises(UserError, match="is there already"):
        main([str(notes), "--out", str(out)])


def test_what_was_drafted_before_an_interrupt_is_kept(tmp_path, monkeypatch):
    def write(text: str) -> str:
        if "Quite another" in text:
            raise KeyboardInterrupt
        return next(draft for name, draft in DRAFTS.items() if name in text)

    drafted(monkeypatch, write)
    with pytest.raises(KeyboardInterrupt):
        main([str(write_notes(tmp_path / "notes")), "--out", str(tmp_path / "q.jsonl")])
    assert len(read_jsonl(tmp_path / "q.jsonl")) == 2


def test_a_question_that_misses_its_passage_or_recurs_is_dropped():
    passages = [Passage(str(n), "", f"Fram number {n} sails to port {n}.") for n in range(9)]
    asked = "Where does number 3 go?", "port 3", passages[3], RankBM25(passages), 1
    assert fault_of(*asked) is None
    assert fault_of(*asked, seen={asked[0].lower()}) == "the same question again"
    assert "do not find the passage" in fault_of("Where does it go?", "port 3", *asked[2:])


def test_a_model_drafts_through_the_rollouts_engine(tmp_path, capsys):
    """The tiny base knows only its world, and writes nothing that is kept; the command says so and keeps the drafts."""
    notes = write_notes(tmp_path / "notes")
    main([str(notes), "--model", "tiny", "--out", str(tmp_path / "q.jsonl"), "--device", "cpu"])
    assert "0 of 3 drafts kept" in capsys.readouterr().out
    assert len(read_jsonl(tmp_path / "q.rejected.jsonl")) == 3 and not (tmp_path / "q.jsonl").exists()


def test_documents_that_are_not_named_or_not_there_are_told():
    with pytest.raises(UserError, match="name the documents"):
        main([])
    with pytest.raises(UserError):
        main(["/no/such/folder"])
    with pytest.raises((UserError, SystemExit)):
        main(["notes", "--dtype", "float17"])


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("nowhere/q.jsonl", "there is no folder"),
        (".", "is a folder"),
        ("q.csv", "JSON lines are written; name a file that ends in .jsonl"),
        ("q.jsonl.gz", "JSON lines are written"),
        ("q", "JSON lines are written"),
    ],
)
def test_a_file_that_no_run_could_read_is_refused_at_once(tmp_path, monkeypatch, out, told):
    monkeypatch.setattr(make_questions, "draft_questions", None)
    with pytest.raises(UserError, match=told):
        main([str(write_notes(tmp_path / "notes")), "--out", str(tmp_path / out)])


def test_questions_are_not_written_among_the_documents(tmp_path, monkeypatch):
    """A corpus of one folder is read whole, and would then be the questions."""
    monkeypatch.chdir(write_notes(tmp_path / "notes"))
    with pytest.raises(UserError, match="lies among the documents"):
        main(["."])


def test_a_question_in_chinese_is_one():
    passage = Passage("0", "北京", "中国的首都是北京。它很大。")
    assert fault_of("中国的首都是哪里？", "北京", passage, RankBM25([passage]), 1) is None
