"""Questions as users have them: tables, lists, folders, answers of every form; read, or told in a sentence."""

from __future__ import annotations

import csv
import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.files import write_lines
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.data import rows
from searchr1_mini.data.datasets import load_corpus, load_examples, question_key
from searchr1_mini.data.rows import question_files
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import name_file

ROWS = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "Who, in 1905?", "answer": "A. Einstein"}]
LINES = "\n".join(map(json.dumps, ROWS))
TABLE = 'question,answer\nCapital of France?,Paris\n"Who, in 1905?",A. Einstein\n'
FILES = {  # name -> content
    "lines.json": LINES,
    "list.jsonl": json.dumps(ROWS),
    "list.json": "\ufeff \n" + json.dumps(ROWS, indent=2),
    "lines.ndjson": LINES,
    "LINES.JSONL": LINES,
    "list.json.gz": gzip.compress(json.dumps(ROWS).encode(), mtime=0),
    "table.csv": TABLE,
    "bom.csv": "\ufeff" + TABLE.replace("\n", "\r\n"),
    "semicolons.csv": "question;answer\nCapital of France?;Paris\nWho, in 1905?;A. Einstein\n\n;\n",
    "tabs.tsv": "id\tQuestion\tAnswer\n\tCapital of France?\tParis\n\tWho, in 1905?\tA. Einstein\n",
    "table.csv.gz": gzip.compress(TABLE.encode(), mtime=0),
    "of_lists.csv": "question,golden_answers\nCapital of France?,['Paris']\n" + '"Who, in 1905?","[""A. Einstein""]"\n',
}


def as_pairs(path) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.question, example.golden_answers) for example in load_examples("jsonl", str(path), "all")]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_form_is_read(tmp_path, name):
    content = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert as_pairs(tmp_path / name) == [(row["question"], (row["answer"],)) for row in ROWS]
    assert name_file(make(TrainConfig, dataset=str(tmp_path / name))).data.data_path == str(tmp_path / name)


ANSWERS = [
    ({"answer": 1998}, ("1998",)),
    ({"answer": 1998.0}, ("1998",)),
    ({"answer": 3.5}, ("3.5",)),
    ({"answer": True}, ("yes", "true")),
    ({"answer": [False]}, ("no", "false")),
    ({"golden_answers": "['Paris', 'paris']"}, ("Paris", "paris")),
    ({"golden_answers": '["Paris", 75]'}, ("Paris", "75")),
    ({"golden_answers": "['Paris' 'paris']"}, ("Paris", "paris")),  # as numpy prints it
    ({"golden_answers": "array(['Paris', 'paris'], dtype=object)"}, ("Paris", "paris")),
    ({"golden_answers": str(["O'Neill", '"O" Neill'])}, ("O'Neill", '"O" Neill')),
    ({"answer": "[sic] Paris"}, ("[sic] Paris",)),
    ({"answer": "[not a list, at all]"}, ("[not a list, at all]",)),
    ({"golden_answers": [], "answer": "Paris"}, ("Paris",)),
    ({"golden_answers": None, "answer": "Paris"}, ("Paris",)),
    ({"golden_answers": "[]", "answers": ["Paris"]}, ("Paris",)),
    ({"golden_answers": ["", None], "answer": "Paris"}, ("Paris",)),
    ({"golden_answers": ["Paris", None, "", " ", float("nan")]}, ("Paris",)),
    ({"golden_answers": [["Paris", "paris"], ["Lutetia"]]}, ("Paris", "paris", "Lutetia")),
    ({"answers": {"text": ["Paris"], "answer_start": [7]}}, ("Paris",)),
    ({"answer": {"value": "Paris", "aliases": ["Lutetia"]}}, ("Paris", "Lutetia")),
    ({"reward_model": {"style": "rule", "ground_truth": "Paris"}}, ("Paris",)),
    ({"reward_model": {"ground_truth": {"target": ["Paris"]}}}, ("Paris",)),
    ({"possible_answers": '["Paris"]', "metadata": "{}"}, ("Paris",)),
    ({"target": "Paris"}, ("Paris",)),
    ({"Answer": "Paris"}, ("Paris",)),
    ({"answer": "Paris", "answer_aliases": []}, ("Paris",)),
]


@pytest.mark.parametrize(("fields", "golden"), ANSWERS)
def test_answers_of_any_form_are_texts(tmp_path, fields, golden):
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Capital of France?"} | fields])
    assert as_pairs(path) == [("Capital of France?", golden)]


@pytest.mark.parametrize("name", ["question", "query", "input", "Question", " question "])
def test_a_question_by_any_name(tmp_path, name):
    assert as_pairs(write_lines(tmp_path / "q.jsonl", [{name: "Who?", "answer": "x"}])) == [("Who?", ("x",))]


def nested(depth: int) -> str:
    return "[" * depth + '"x"' + "]" * depth


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("q.jsonl", '{"question": "Who?", "answer": {"who": "x"}}', "dict is no text; this one holds question, answer"),
        ("q.jsonl", '{"question": "Who?", "answer": ["x", "\\ud800"]}', "broken Unicode"),
        ("q.jsonl", '{"question": "Who?", "answer": ' + nested(50) + '}', "nested too deep"),
        ("q.jsonl", '{"question": "Who?", "answer": "' + nested(9000).replace('"', "") + '"}', None),
        ("q.jsonl", '{"question": "Who?", "answer": []}', 'no usable "answer"'),
        ("q.jsonl", '{"question": ["Who?"], "answer": "x"}', 'no usable "question"'),
        ("q.jsonl", '{"prompt": "Who?", "completion": "x"}', "this one holds prompt, completion"),
        ("q.json", '{"data": [{"question": "Who?", "answer": "x"}]}', "neither a JSON list of rows nor one object per"),
        ("q.json", '{\n "question": "Who?",\n "answer": "x"\n}', "neither a JSON list of rows nor one object per"),
        ("q.csv", "Who?,x\n", "first line must name the columns, as in question,answer"),
        ("q.csv", "question,answer\nWho, then?,x\n", "line 2: 3 cells under 2 columns"),
        ("q.csv", "question,answer,answer\nWho?,x,y\n", "two columns are called 'answer'"),
        ("q.csv", 'question,answer\n"Who?,x\n', "cannot be read"),
        ("q.csv", b"question,answer\nWho?,K\xf6ln\n", "save it as CSV in UTF-8"),
        ("q.csv", "", "first line must name the columns"),
        ("q.tsv", "question\tanswer\nWho?\n", 'line 2: no usable "answer"'),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_one_sentence(tmp_path, name, content, told):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if told is None:
        assert len(as_pairs(path)) == 1
        return
    with pytest.raises(UserError) as error:
        as_pairs(path)
    assert told in str(error.value) and name in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def parquet(path, columns: dict) -> str:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_folder_of_parquet_is_one_set_of_questions(tmp_path):
    folder = tmp_path / "set"
    for n in range(3):
        parquet(folder / f"train-0000{n}-of-00003.parquet", {"question": [f"{n}?"], "answer": [[str(n)]]})
    (folder / "dataset_infos.json").write_text("{}")
    (folder / ".cache.parquet").write_text("no parquet")
    assert as_pairs(folder) == [(f"{n}?", (str(n),)) for n in range(3)]
    assert name_file(make(TrainConfig, dataset=str(folder))).data.data_path == str(folder)
    parquet(folder / "test.parquet", {"question": ["t?"], "answer": ["t"]})
    with pytest.raises(UserError, match=r"set holds questions to train on \(train-00000.*\(test.parquet\); name one"):
        as_pairs(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none holds no file of questions; questions are read from \.jsonl"):
        as_pairs(tmp_path / "none")


def test_parquet_dates_beyond_pythons_are_left_alone_or_told(tmp_path):
    far = pa.array([2**60], pa.timestamp("us"))
    path = parquet(tmp_path / "a.parquet", {"question": ["Who?"], "answer": ["x"], "seen": far})
    assert as_pairs(path) == [("Who?", ("x",))]
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read"):
        as_pairs(parquet(tmp_path / "b.parquet", {"question": ["Who?"], "answer": far}))
    day = pa.array([datetime.date(1998, 7, 12)])
    dated = parquet(tmp_path / "c.parquet", {"question": ["When?"], "answer": day})
    assert as_pairs(dated) == [("When?", ("1998-07-12",))]
    with pytest.raises(UserError, match=r"d\.parquet: none of its columns \(a, b\)"):
        as_pairs(parquet(tmp_path / "d.parquet", {"a": [1], "b": [2]}))


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.json", "q.tsv"])
def test_a_line_of_3_gb_is_not_read_whole(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.write(b"[" if name == "q.json" else b"question,answer,question\tanswer")
        file.truncate(3 * 2**30)  # a hole: it takes no room on the disk
    with pytest.raises(UserError, match=r"longer than 64 MB|more than 1024 MB"):
        as_pairs(tmp_path / name)


@pytest.mark.parametrize("name", ["q.json", "q.jsonl", "q.json.gz", "squad.json"])
def test_a_line_that_is_the_file_may_be_longer_than_a_row(tmp_path, name, monkeypatch):
    """HotpotQA's training file is one line of 566 MB, as `json.dump` writes a list."""
    monkeypatch.setattr(rows, "MOST_ROW", 1000)
    pairs = [(f"Who is {number}?", (f"number {number}",)) for number in range(100)]
    listed = [{"id": question, "question": question, "answer": gold} for question, (gold,) in pairs]
    if name == "squad.json":
        asked = [{"id": q, "question": q, "answers": [{"text": gold, "answer_start": 0}]} for q, (gold,) in pairs]
        listed = {"data": [{"title": "T", "paragraphs": [{"context": "text", "qas": asked}]}]}
    text = json.dumps(listed).encode()
    assert b"\n" not in text and len(text) > 1000
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert as_pairs(tmp_path / name) == pairs


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.csv"])
def test_a_line_of_passages_that_is_too_long_is_told(tmp_path, name, monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROW", 1000)
    monkeypatch.setattr(rows, "MOST_LIST", 1000)
    (tmp_path / name).write_text("[" + "9," * 600 if name == "c.json" else "x" * 1001)
    with pytest.raises(UserError, match=rf"{name}(, line 1)?: (longer than|more than) 0 MB"):
        load_corpus(str(tmp_path / name), "jsonl", None)


def test_a_bomb_of_zeros_is_not_unpacked_whole(tmp_path):
    path = tmp_path / "q.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(70):
            file.write(bytes(2**20))
    with pytest.raises(UserError, match="line 1: longer than 64 MB"):
        as_pairs(path)


cell = st.text("ab[ ,;]\"'\n\tü", min_size=1)


@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=5))
def test_what_python_writes_as_csv_is_read_back(tmp_path_factory, pairs):
    pairs = [(f"q {question}", f"{answer} a") for question, answer in pairs]
    path = tmp_path_factory.mktemp("t") / "q.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *pairs])
    read = {row["question"]: row["answer"] for _, row in rows.table_rows(path)}
    assert read == {q.replace("\r\n", "\n"): a for q, a in pairs}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("p.tsv", "id\ttext\ttitle\n1\tOld.\tOslo\n", [("1", "Oslo", "Old.")]),
        ("p.jsonl", '{"_id": "1", "title": "", "text": "Old."}', [("1", "", "Old.")]),
        ("p.jsonl", '{"_id": "1", "wikipedia_title": "O", "text": ["A.\\n", "B."]}', [("1", "O", "A.\nB.")]),
        ("p.jsonl", '{"id": "1", "text": "Old."}', [("1", "", "Old.")]),
        ("p.json", '[{"id": "1", "contents": "Old."}]', [("1", "", "Old.")]),
    ],
)
def test_passages_of_other_collections_are_read(tmp_path, name, content, found):
    (tmp_path / name).write_text(content)
    assert [(p.id, p.title, p.text) for p in load_corpus(str(tmp_path / name), "jsonl", None)] == found


def test_sentences_without_blanks_of_their_own_are_parted(tmp_path):
    """2WikiMultihopQA's; HotpotQA's bring theirs."""
    rows = [
        {"question": "r?", "answer": "a", "context": [["V", "北京。"]]},
        {"question": "q?", "answer": "a", "context": [["T", ["Teutberga married Lothair II.", "She was a queen."]]]},
        {"question": "p?", "answer": "a", "context": [["U", ["He lived.", " He died.", '" Quoted.']]]},
    ]
    path = write_lines(tmp_path / "q.jsonl", rows)
    texts = [passage.text for passage in load_corpus(None, "jsonl", path)]
    assert texts == ["北京。", "Teutberga married Lothair II. She was a queen.", 'He lived. He died." Quoted.']


@pytest.mark.parametrize(
    ("files", "is_refused"),
    [
        (["train/0.jsonl", "test/0.jsonl"], True),
        (["a/train.jsonl", "a/dev-v2.0.jsonl"], True),
        (["retrieval_train.jsonl"], False),
        (["train_latest.jsonl"], False),
        (["contest.jsonl", "train.jsonl"], False),
        (["val.jsonl", "trainset.jsonl"], True),
        (["traindata.jsonl", "testdata.jsonl"], True),
        (["nqtrain.jsonl", "nqtest.jsonl"], True),
        (["trainingset.jsonl", "tests/q.jsonl"], True),
        (["trainqa.jsonl", "devdata.jsonl"], True),
        (["q.jsonl", "q.rejected.jsonl"], False),
    ],
)
def test_splits_of_a_folder_are_told_by_words_of_paths(tmp_path, files, is_refused):
    for n, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / name, [{"question": f"q{n}?", "answer": "a"}])
    if is_refused:
        with pytest.raises(UserError, match="name one of the files"):
            question_files(tmp_path)
    else:
        found = question_files(tmp_path)
        assert len(found) == len([name for name in files if "rejected" not in name])


def test_questions_that_the_data_leaves_unanswered_are_left_out(tmp_path, capsys):
    rows = [
        {"question": "q?", "answer": "a", "answerable": True},
        {"question": "q?", "answer": "a", "answerable": False},
        {"question": "p?", "answers": {"text": [], "answer_start": []}},
        {"question": "p?", "answers": "{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}"},
        {"question": "p?", "answers": []},
        {"question": "p?", "answer": "a", "is_impossible": "True"},
        {"question": "r?", "answer": "a", "answers": []},
    ]
    path = write_lines(tmp_path / "q.jsonl", rows)
    for split in ("train", "eval"):
        load_examples("jsonl", path, split)
    assert [example.question for example in load_examples("jsonl", path, "all")] == ["q?", "r?"]
    assert capsys.readouterr().err.count("5 questions without an answer are left out") == 1, "once, not for each split"


def test_the_same_question_in_other_letters_is_on_one_side(tmp_path):
    rows = [
        {"question": text.format(n), "answer": "a"} for n in range(50) for text in ("who wrote {}", "Who wrote {}?")
    ]
    path = write_lines(tmp_path / "q.jsonl", rows)
    sides = [{question_key(e) for e in load_examples("jsonl", path, split)} for split in ("train", "eval")]
    assert all(sides) and not sides[0] & sides[1]
