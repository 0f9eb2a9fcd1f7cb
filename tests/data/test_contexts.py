"""Passages that come with questions, in the forms of the data sets that bring them."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.files import write_lines

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.datasets import load_corpus, load_examples

CONTEXT = [["Oslo", ["It is a city.", " It is in Norway."]], ["Bern", ["Another."]]]
FACTS = [["Oslo", 1]]
HUB = {"title": ["Oslo", "Bern"], "sentences": [sentences for _, sentences in CONTEXT]}
TWO_WIKI = {"title": HUB["title"], "content": HUB["sentences"]}  # as the hub and FlashRAG have it
MUSIQUE = [
    {"idx": n, "title": title, "paragraph_text": "".join(sentences), "is_supporting": title == "Oslo"}
    for n, (title, sentences) in enumerate(CONTEXT)
]
FORMS = {
    "HotpotQA's files": {"context": CONTEXT, "supporting_facts": FACTS},
    "HotpotQA on the hub": {"context": HUB, "supporting_facts": {"title": ["Oslo"], "sent_id": [1]}},
    "2WikiMultihopQA's parquet": {"context": json.dumps(CONTEXT), "supporting_facts": json.dumps(FACTS)},
    "2WikiMultihopQA on the hub": {"context": TWO_WIKI, "supporting_facts": FACTS},
    "FlashRAG": {"metadata": {"context": TWO_WIKI, "supporting_facts": {"title": ["Oslo"], "sent_id": [1]}}},
    "MuSiQue's files": {"paragraphs": MUSIQUE},
    "MuSiQue under metadata": {"metadata": {"paragraphs": MUSIQUE}},
    "metadata as text": {"metadata": json.dumps({"paragraphs": MUSIQUE})},
    "other letters": {"Context": json.dumps(CONTEXT), "SUPPORTING_FACTS ": FACTS},
}


def assert_read(path: str, dataset: str = "jsonl") -> None:
    """It holds both passages and knows which one supports."""
    found = [(passage.title, passage.text) for passage in load_corpus(None, dataset, path)]
    assert found == [("Oslo", "It is a city. It is in Norway."), ("Bern", "Another.")]
    assert load_examples(dataset, path, "all")[0].supporting == (("Oslo", ""),)


@pytest.mark.parametrize("form", FORMS)
def test_passages_beside_questions_are_read(tmp_path, form):
    assert_read(write_lines(tmp_path / "q.jsonl", [{"question": "Where?", "answer": "Norway"} | FORMS[form]]))


@pytest.mark.parametrize(
    ("dataset", "form"), [("musique", "MuSiQue's files"), ("2wikimultihopqa", "HotpotQA's files"), ("nq", "FlashRAG")]
)
def test_a_file_brings_its_passages_under_its_own_name(tmp_path, dataset, form):
    """What they have on the hub is another matter: no passages are read from there."""
    assert_read(write_lines(tmp_path / "q.jsonl", [{"question": "Where?", "answer": "Norway"} | FORMS[form]]), dataset)
    bare = write_lines(tmp_path / "bare.jsonl", [{"question": "Where?", "answer": "Norway"}])
    for path, told in ((bare, "line 1: .* name the passages with --corpus"), (None, "brings no passages")):
        with pytest.raises(UserError, match=told):
            load_corpus(None, dataset, path)


def test_columns_of_parquet_may_hold_lists_as_text(tmp_path):
    """As 2WikiMultihopQA's do."""
    row = {"question": "Where?", "answer": "Norway"} | FORMS["2WikiMultihopQA's parquet"]
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), tmp_path / "q.parquet")
    assert_read(str(tmp_path / "q.parquet"))


def test_a_paragraph_in_brackets_is_still_one_text(tmp_path):
    path = write_lines(
        tmp_path / "q.jsonl", [{"question": "Who?", "answer": "x", "context": "[Sic] it is in Norway [1]"}]
    )
    assert [passage.text for passage in load_corpus(None, "jsonl", path)] == ["[Sic] it is in Norway [1]"]


def test_of_two_names_the_one_in_lower_case_counts(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Where?", "Question": "What?", "ANSWER": "Norway"}])
    assert [(e.question, e.golden_answers) for e in load_examples("jsonl", path, "all")] == [("Where?", ("Norway",))]


def test_field_names_of_passages_may_be_in_any_case(tmp_path):
    path = write_lines(tmp_path / "c.jsonl", [{"ID": 1, "Title": "Oslo", "Text": "It is in Norway."}])
    assert [(p.id, p.title, p.text) for p in load_corpus(path, "jsonl", None)] == [("1", "Oslo", "It is in Norway.")]
