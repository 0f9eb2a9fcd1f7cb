"""Lists and objects in the cells of a table, as pandas, numpy and `datasets` write them."""

from __future__ import annotations

import csv

import pytest

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.datasets import load_corpus, load_examples


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("{'text': array(['Saint Bernadette'], dtype=object), 'answer_start': array([515])}", ["Saint Bernadette"]),
        ('{"text": ["Paris"], "answer_start": [5]}', ["Paris"]),
        ("[{'text': 'Paris', 'answer_start': 5}]", ["Paris"]),
        ("['Paris', nan]", ["Paris"]),
        ("['a' 'b']", ["a", "b"]),
        ("array(['Foo [bar]', 'x'], dtype=object)", ["Foo [bar]", "x"]),
        ("{'text': array(['in [Paris]'], dtype=object)}", ["in [Paris]"]),
        ('["np.array([1, 2])"]', ["np.array([1, 2])"]),
        ("{x}", ["{x}"]),
        ("{{1, 2}}", ["{{1, 2}}"]),
        ("{[1]: 2}", ["{[1]: 2}"]),
    ],
)
def test_answers_printed_from_objects_are_read_from_a_table(tmp_path, cell, answers):
    """As pandas and `datasets` write SQuAD's into a CSV."""
    path = tmp_path / "q.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answers"], ["Who?", cell]])
    (example,) = load_examples("jsonl", str(path), "all")
    assert list(example.golden_answers) == answers


def test_an_answers_object_that_is_cut_is_told(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("question,answer\nWho?,\"{'text': ['Par\"\n")
    with pytest.raises(UserError, match=r"line 2.*cut short"):
        load_examples("jsonl", str(path), "all")


def test_hotpotqas_paragraphs_are_read_from_a_table(tmp_path):
    """A cell of `context` spells its list."""
    context = [["Oslo", ["It is a city.", " It is in Norway."]], ["Bern", ["Another."]]]
    path = tmp_path / "q.csv"
    rows = [["question", "answer", "context", "supporting_facts"], ["Where?", "Norway", context, [["Oslo", 1]]]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = load_corpus(None, "jsonl", str(path))
    assert [(passage.title, passage.text) for passage in found] == [
        ("Oslo", "It is a city. It is in Norway."), ("Bern", "Another.")
    ]  # fmt: skip
    assert load_examples("jsonl", str(path), "all")[0].supporting == (("Oslo", ""),)
