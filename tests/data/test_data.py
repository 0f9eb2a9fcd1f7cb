"""Questions and passages from files, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip

import pytest
from helpers.files import write_lines
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.datasets import ROW_DATASETS, _unique, load_corpus, load_examples, own_split, subset


def both_splits(dataset, path) -> list[Example]:
    return load_examples(dataset, path, "train") + load_examples(dataset, path, "eval")


def test_jsonl_rows_of_every_known_form(tmp_path):
    rows = [
        {"id": "a", "question": "Who?", "answer": "Ada"},
        {"id": "b", "question": "Where?", "golden_answers": ["Oslo", "Kristiania"]},
        {"id": "c", "question": "When?", "data_source": "nq", "reward_model": {"ground_truth": {"target": ["1905"]}}},
        {"question": "Why?", "answer": "because"},
    ]
    examples = {e.question: e for e in both_splits("jsonl", write_lines(tmp_path / "q.jsonl", rows))}
    assert examples["Who?"] == Example("q/a", "Who?", ("Ada",), "q")
    assert examples["Where?"].golden_answers == ("Oslo", "Kristiania")
    assert examples["When?"] == Example("nq/c", "When?", ("1905",), "nq")
    assert len({e.id for e in examples.values()}) == 4


@pytest.mark.parametrize(
    ("fields", "golden_answers"),
    [
        ({"golden_answers": None, "answer": "Ada"}, ("Ada",)),
        ({"possible_answers": '["Ada", "A. L."]'}, ("Ada", "A. L.")),
        ({"possible_answers": "Ada"}, ("Ada",)),
        ({"answer": '["Ada"]'}, ("Ada",)),
        ({"answer": "Ada", "answer_aliases": ["A. L."]}, ("Ada", "A. L.")),
    ],
)
def test_gold_answers_of_the_original_popqa_and_musique(tmp_path, fields, golden_answers):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Who?"} | fields])
    assert load_examples("jsonl", path, "eval")[0].golden_answers == golden_answers


def test_an_id_of_zero_is_kept(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [{"id": 0, "question": "Who?", "answer": "Ada"}])
    assert [e.id for e in load_examples("jsonl", path, "eval")] == ["q/0"]


def test_the_papers_parquet(tmp_path):
    import datasets

    path = tmp_path / "train.parquet"
    row = {"id": "t1", "question": "Who?", "golden_answers": ["Ada"], "data_source": "nq", "extra_info": {"index": 0}}
    datasets.Dataset.from_list([row, row | {"id": "t2", "question": "Where?"}]).to_parquet(str(path))
    assert {e.id for e in both_splits("nq_hotpotqa", str(path))} == {"nq/t1", "nq/t2"}


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60))
def test_the_held_out_tenth_is_disjoint_and_ignores_the_order(numbers):
    examples = _unique([Example(str(n), f"question {n}?", ("x",), "s") for n in numbers])
    train, held_out = own_split(examples, "train"), own_split(examples, "eval")
    assert sorted(e.id for e in train + held_out) == sorted(e.id for e in examples)
    assert not {e.question for e in train} & {e.question for e in held_out}
    again = own_split(list(reversed(examples)), "eval")
    assert {e.question for e in again} == {e.question for e in held_out}


def test_a_tenth_is_held_out_but_never_more_than_500():
    for n, n_held_out in ((2, 1), (19, 1), (20, 2), (4_999, 499), (8_000, 500)):
        examples = [Example(str(i), f"{i}?", ("x",), "s") for i in range(n)]
        assert len(own_split(examples, "eval")) == n_held_out
        assert len(own_split(examples, "train")) == n - n_held_out


@given(numbers=st.permutations(list(range(30))), limit=st.integers(1, 29))
def test_a_limit_takes_always_the_same_questions(numbers, limit):
    """Whatever their order in the file; a higher limit only adds to them, and their order stays that of the file."""
    examples = [Example(f"q/{n}", f"{n}?", ("x",), "q") for n in numbers]
    taken = subset(examples, limit)
    assert len(taken) == limit and taken == [example for example in examples if example in taken]
    assert set(taken) == set(subset(sorted(examples, key=lambda example: example.id), limit))
    assert set(taken) < set(subset(examples, limit + 1))


def test_the_whole_of_a_file_is_a_split_too(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [{"question": f"{n}?", "answer": "x"} for n in range(40)])
    assert [example.question for example in load_examples("jsonl", path, "all")] == [f"{n}?" for n in range(40)]


SUPPORTING = [
    {"supporting_facts": [["Oslo", 0], ["Bern", 2], ["Oslo", 1]]},
    {"supporting_facts": {"title": ["Oslo", "Bern", "Oslo"], "sent_id": [0, 2, 1]}},
    {"metadata": {"supporting_facts": {"title": ["Oslo", "Bern"], "sent_id": [0, 2]}}},
    {"paragraphs": [{"title": name, "is_supporting": name != "Rome"} for name in ("Oslo", "Rome", "Bern")]},
]


@pytest.mark.parametrize("fields", SUPPORTING)
def test_supporting_titles_of_hotpotqa_flashrag_and_musique(tmp_path, fields):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Who?", "answer": "x"} | fields])
    assert load_examples("jsonl", path, "all")[0].supporting == (("Oslo", ""), ("Bern", ""))


@pytest.mark.parametrize("facts", [["Oslo"], [[1, 0]], {"titles": []}, 7, {"title": [None]}])
def test_malformed_supporting_facts_are_named(tmp_path, facts):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Who?", "answer": "x", "supporting_facts": facts}])
    with pytest.raises(UserError, match='line 1: "supporting_facts"'):
        load_examples("jsonl", path, "all")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{broken\n", "line 2"),
        ("[1]\n", "line 2: not a JSON object"),
        ({"answer": "x"}, 'line 2: no usable "question"'),
        ({"question": "  ", "answer": "x"}, 'line 2: no usable "question"'),
        ({"question": "Who \ud800?", "answer": "x"}, 'line 2: no usable "question"'),
        ({"question": "Who?", "answer": "\udfff"}, 'line 2: no usable "answer"'),
        ("[" * 100_000 + "\n", "line 2: cannot be read"),
        ({"question": "Who?"}, 'line 2: no usable "answer"'),
        ({"question": "Who?", "golden_answers": []}, "golden_answers"),
        ({"question": "Who?", "golden_answers": [{"a": 3}]}, "golden_answers"),
        ({"question": "Who?", "reward_model": {"style": "x"}}, 'line 2: no usable "answer"'),
        ({"question": "Who?", "answer": "x", "data_source": ["nq"]}, 'line 2: "data_source"'),
        ('\n \n{"question": ""}\n', 'line 4: no usable "question"'),
    ],
)
def test_a_malformed_question_is_named(tmp_path, row, told):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Ok?", "answer": "x"}, row])
    with pytest.raises(UserError) as error:
        load_examples("jsonl", path, "train")
    assert told in str(error.value) and "q.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("q.jsonl", b'{"question": "A?", "answer": "x"}\n\xff\xfe\n', "line 2: cannot be read: 'utf-8'"),
        ("q.json", b"5", "neither a JSON list"),
        ("q.json", b'{"data": []}', "neither a JSON list"),
        ("q.json", b"[[]]", "row 1: not a JSON object"),
        ("q.parquet", b"PAR1", "cannot be read"),
        ("q.jsonl.gz", b"no gzip", "cannot be read"),
        ("q.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "cannot be read"),
        ("q.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_examples("jsonl", str(tmp_path / name), "train")
    assert told in str(error.value) and str(tmp_path / name) in str(error.value)


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(
        b'\xef\xbb\xbf{"question": "A?", "answer": "x"}\n{"question": "B?", "answer": "y"}\n'
    )
    assert {e.question for e in both_splits("jsonl", str(tmp_path / "q.jsonl"))} == {"A?", "B?"}


@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "a#2#2"]), max_size=9))
def test_ids_are_unique_whatever_the_file_calls_its_rows(ids):
    new = [example.id for example in _unique([Example(id_, "?", ("x",), "s") for id_ in ids])]
    assert len(set(new)) == len(ids)
    assert set(ids) <= set(new)


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_a_corpus_of_either_form_without_repeats(tmp_path, name):
    rows = [
        {"id": "0", "contents": '"Oslo"\nCapital of Norway.'},
        {"id": 1, "title": "Bern", "text": "In Switzerland."},
        {"id": "2", "contents": '"Oslo"\nCapital of Norway.'},
    ]
    passages = load_corpus(write_lines(tmp_path / name, rows), "jsonl", None)
    assert passages == [Passage("0", "Oslo", "Capital of Norway."), Passage("1", "Bern", "In Switzerland.")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"contents": "x"}, 'no "id"'),
        ({"id": "1"}, 'no "contents"'),
        ({"id": "1", "contents": 3}, 'no "contents"'),
        ({"id": "1", "contents": " \n "}, '"contents" is blank'),
        ({"id": "1", "title": "x", "text": "\ud800"}, '"contents" is blank or broken Unicode'),
    ],
)
def test_a_malformed_passage_is_named(tmp_path, row, told):
    path = write_lines(tmp_path / "passages.jsonl", [{"id": "0", "contents": "x"}, row])
    with pytest.raises(UserError) as error:
        load_corpus(path, "jsonl", None)
    assert f"passages.jsonl, line 2: {told}" in str(error.value)


def test_a_folder_of_corpus_files_is_read_by_name(tmp_path):
    write_lines(tmp_path / "b.jsonl.gz", [{"id": "2", "contents": "Bern\nx"}])
    write_lines(tmp_path / "a.jsonl", [{"id": "1", "contents": "Oslo\nx"}, {"id": "3", "contents": "Bern\nx"}])
    (tmp_path / "README.md").write_text("no passages")
    assert [p.id for p in load_corpus(str(tmp_path), "nq", None)] == ["1", "3"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no \*\.jsonl"):
        load_corpus(str(tmp_path / "empty"), "nq", None)


@pytest.mark.parametrize(
    "context", [None, 5, [["Oslo"]], [["Oslo", [3]]], {"title": ["a"], "sentences": []}, [["", []]]]
)
def test_a_malformed_context_is_named(tmp_path, context):
    path = write_lines(tmp_path / "h.jsonl", [{"question": "A?", "answer": "x", "context": context}])
    with pytest.raises(UserError, match=r'h\.jsonl, line 1: "context"'):
        load_corpus(None, "hotpotqa", path)


@pytest.mark.parametrize(("name", "meant"), [("hotpot-qa", "hotpotqa"), ("NQ", None), ("trivia_qa", "triviaqa")])
def test_an_unknown_data_set_is_told_with_what_was_meant(name, meant):
    for call in (lambda: load_examples(name, "any.jsonl", "eval"), lambda: load_corpus(None, name, None)):
        with pytest.raises(UserError) as error:
            call()
        assert repr(name) in str(error.value) and all(known in str(error.value) for known in ROW_DATASETS)
        assert meant is None or f"did you mean {meant}?" in str(error.value)


def test_one_question_is_held_out_and_leaves_none_to_train_on(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "A?", "answer": "x"}])
    assert len(load_examples("jsonl", path, "eval")) == 1
    with pytest.raises(UserError, match="no questions for the train split"):
        load_examples("jsonl", path, "train")


def test_empty_and_missing_files_are_named(tmp_path):
    empty = write_lines(tmp_path / "empty.jsonl", [])
    for call in (
        lambda: load_examples("jsonl", empty, "train"),
        lambda: load_corpus(empty, "jsonl", None),
        lambda: load_examples("jsonl", str(tmp_path / "none.jsonl"), "train"),
        lambda: load_corpus(None, "nq", None),
        lambda: load_examples("jsonl", None, "train"),
    ):
        with pytest.raises(UserError):
            call()


def test_the_hotpotqa_sample(shared):
    path = str(shared / "data" / "hotpotqa_distractor_100.json")
    train, held_out = load_examples("hotpotqa", path, "train"), load_examples("hotpotqa", path, "eval")
    assert (len(train), len(held_out)) == (90, 10)
    assert all(e.source == "hotpotqa" and e.id.startswith("hotpotqa/") for e in train)
