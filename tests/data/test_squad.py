"""SQuAD: its nested files and its rows on the hub give questions, a corpus of paragraphs, and a split by article."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers.files import write_lines

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.scores import score
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.data import datasets as sets
from searchr1_mini.data.datasets import load_corpus, load_examples
from searchr1_mini.data.scripts import supported_hops
from searchr1_mini.retrieval_metrics import support_ranks
from searchr1_mini.retrievers.bm25 import RankBM25
from searchr1_mini.retrievers.probes import OracleRetriever


def article(number: int, n_paragraphs: int = 3) -> dict:
    paragraphs = []
    for k in range(n_paragraphs):
        context = f"Paragraph {k} of city{number}. The mayor of city{number} in year{k} was Mayor{number}x{k}."
        asked = {"id": f"{number}-{k}", "question": f"Who was mayor of city{number} in year{k}?"}
        answers = [{"text": f"Mayor{number}x{k}", "answer_start": 0}, {"text": f"Mayor{number}x{k}", "answer_start": 0}]
        lost = {"id": f"{number}-{k}-no", "question": "Why?", "answers": [], "is_impossible": True}
        paragraphs.append({"context": context, "qas": [asked | {"answers": answers}, lost]})
    return {"title": f"Old_City{number}", "paragraphs": paragraphs}


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [article(number) for number in range(20)]}))
    return str(path)


@pytest.mark.parametrize("dataset", ["squad", "jsonl"])
def test_a_nested_file_gives_questions_answers_and_paragraphs(file, dataset):
    examples = load_examples(dataset, file, "all")
    assert len(examples) == 60 and examples[0].golden_answers == ("Mayor0x0",)
    passages = load_corpus(None, dataset, file)
    assert len(passages) == 60 and passages[0].title == "Old City0"
    oracle = OracleRetriever(passages, examples)
    (hits,) = oracle.search_for([examples[4].id], 3)
    assert [hit.passage.text for hit in hits] == [passages[4].text]


@pytest.mark.parametrize("has_flag", [True, False])
def test_questions_without_an_answer_are_counted(tmp_path, capsys, has_flag):
    """Marked as impossible, or with no more than an empty list of answers; their paragraphs are searched too."""
    made = article(0)
    for paragraph in made["paragraphs"]:
        if not has_flag:
            paragraph["qas"][1].pop("is_impossible")
    made["paragraphs"].append({"context": "Nobody asks well of this.", "qas": [made["paragraphs"][0]["qas"][1]]})
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": [made]}))
    assert len(load_examples("squad", str(path), "all")) == 3 and len(load_corpus(None, "squad", str(path))) == 4
    assert "4 questions without an answer are left out" in capsys.readouterr().err


def test_one_article_cannot_be_held_out(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": [article(0)]}))
    with pytest.raises(UserError, match=r"is one article, .* take --dataset jsonl"):
        load_examples("squad", str(path), "train")
    assert load_examples("jsonl", str(path), "train") and load_examples("squad", str(path), "eval")


def test_questions_of_a_nested_file_need_no_id(tmp_path):
    made = [article(0), article(1)]
    for asked in (asked for part in made for paragraph in part["paragraphs"] for asked in paragraph["qas"]):
        del asked["id"]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": made}))
    assert len({example.id for example in load_examples("squad", str(path), "all")}) == 6


def test_whole_articles_are_held_out(file):
    train, held_out = load_examples("squad", file, "train"), load_examples("squad", file, "eval")
    titles = [{example.supporting[0][0] for example in part} for part in (train, held_out)]
    assert not titles[0] & titles[1] and len(train) + len(held_out) == 60 and 3 <= len(held_out) <= 9
    assert any(set(p.supporting) & set(q.supporting) == set() for p in train for q in held_out)


@pytest.mark.parametrize("field", ["passage_id", "title"])
def test_questions_without_paragraphs_are_held_out_by_article(file, tmp_path, field):
    """Their passages are a file of its own; the rows say which article they are about. The same ones are held out."""
    rows = []
    for number in range(20):
        for k, paragraph in enumerate(article(number)["paragraphs"]):
            asked = {"question": paragraph["qas"][0]["question"], "golden_answers": [f"Mayor{number}x{k}"]}
            rows.append(asked | {field: f"Old_City{number}" + f"/{k}" * (field == "passage_id")})
    path = write_lines(tmp_path / "rows.jsonl", rows)
    for split in ("train", "eval"):
        asked, beside = ([e.question for e in load_examples("squad", name, split)] for name in (path, file))
        assert asked == beside


def test_questions_that_name_no_article_are_refused(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"question": f"{n}?", "answer": "x"} for n in range(20)])
    for split in ("train", "eval", "selection"):
        with pytest.raises(UserError, match=r"20 of its questions name no article, .* take --dataset jsonl"):
            load_examples("squad", path, split)
    assert len(load_examples("squad", path, "all")) == 20


@pytest.mark.skipif("SEARCHR1_SHARED" not in os.environ, reason="needs SEARCHR1_SHARED, the English part of XQuAD")
def test_no_article_of_xquad_is_in_both_splits():
    path = str(Path(os.environ["SEARCHR1_SHARED"]) / "data" / "xquad_en_questions.jsonl")
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    article_of = {f"squad/{row['id']}": row["passage_id"].split("/")[0] for row in rows}
    train, held_out = ({article_of[e.id] for e in load_examples("squad", path, split)} for split in ("train", "eval"))
    assert train | held_out == set(article_of.values()) and not train & held_out


@pytest.mark.parametrize("title", ["Old_City0", None])
def test_support_is_the_paragraph_and_not_its_article(tmp_path, title):
    """Every paragraph has the title, or none has one, as in a table of question, context and answer."""
    rows = [{"question": f"Who was mayor in year{k}?", "answer": f"Mayor{k}", "context": f"In year{k}: Mayor{k}."}
            for k in range(30)]  # fmt: skip
    path = write_lines(tmp_path / "rows.jsonl", [row | ({"title": title} if title else {}) for row in rows])
    asked, passages = load_examples("squad", str(path), "all")[0], load_corpus(None, "squad", str(path))
    assert support_ranks(asked, passages[1:3]) == [float("inf")] and support_ranks(asked, passages[2::-1]) == [3]
    for passage, found in ((passages[1], 0), (passages[0], 1)):
        made = Trajectory(asked.id, [], queries=["q"], retrieved=[passage.text], titles=[[passage.title]])
        figures = score(asked, made)
        assert figures["support_retrieved"] == figures["all_support_retrieved"] == found
    held_out = load_examples("squad", str(path), "eval")
    assert len(held_out) == (30 if title else 3), "a tenth, but of one article"


def test_a_script_finds_the_paragraph_that_the_question_is_about(file):
    engine = RankBM25(load_corpus(None, "squad", file))
    for example in load_examples("squad", file, "all")[:9]:
        (hop,) = supported_hops(example, lambda query: [hit.passage for hit in engine.search([query], 3)[0]])
        assert example.golden_answers[0] in hop.said


def test_a_title_that_paragraphs_share_is_not_the_query(tmp_path):
    """A question that names its article would find any paragraph of it."""
    rows = [
        {"question": f"When did Oslo open its {what}?", "answer": f"18{n}0", "title": "Oslo",
         "context": f"Oslo has a {what}. Oslo opened it in 18{n}0."}
        for n, what in enumerate(["harbour", "tram", "theatre", "museum", "prison", "market"])
    ]  # fmt: skip
    path = str(write_lines(tmp_path / "rows.jsonl", rows))
    engine = RankBM25(load_corpus(None, "squad", path))
    for example in load_examples("squad", path, "all"):
        (hop,) = supported_hops(example, lambda query: [hit.passage for hit in engine.search([query], 2)[0]])
        assert example.golden_answers[0] in hop.said and hop.query != "Oslo"


def test_rows_of_the_hub_are_read_alike(tmp_path, monkeypatch):
    """Read offline from parquet files laid out as there."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "squad"
    folder.mkdir()
    monkeypatch.setitem(sets.REVISIONS, str(folder), sets.REVISIONS[sets.SQUAD_ID])
    monkeypatch.setattr(sets, "SQUAD_ID", str(folder))
    for split in ("train", "validation"):
        answers = {"text": ["1889", "1889"], "answer_start": [9, 9]}
        row = {
            "id": split,
            "title": "The_Tower",
            "context": f"Built in 1889 for {split}.",
            "question": f"When, {split}?",
        }
        datasets.Dataset.from_list([row | {"answers": answers}]).to_parquet(str(folder / f"{split}.parquet"))
    (example,) = load_examples("squad", None, "eval")
    assert (example.question, example.golden_answers) == ("When, validation?", ("1889",))
    for _ in range(2):  # built, then from the cache
        passages = load_corpus(None, "squad", None)
        assert [(p.title, p.text) for p in passages] == [
            ("The Tower", "Built in 1889 for train."), ("The Tower", "Built in 1889 for validation.")
        ]  # fmt: skip


@pytest.mark.parametrize("article", [{"paragraphs": 3}, {"paragraphs": [3]}, {"paragraphs": [{"qas": 3}]}])
def test_what_is_of_another_form_is_told_in_one_sentence(tmp_path, article):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": [article]}))
    with pytest.raises(UserError, match="not in SQuAD's form"):
        load_examples("squad", str(path), "all")


@pytest.mark.parametrize("titles", [("Oslo Ferry", "Oslo_Ferry"), ("Oslo_Ferry", "Oslo Ferry")])
def test_a_title_with_underscores_is_the_one_with_blanks(titles):
    """As where the questions are of SQuAD's form and the passages are others; a script, the oracle and figures do."""
    asked = Example("x", "When does the Oslo Ferry sail?", ("noon",), "own", ((titles[0], ""),))
    passage = Passage("0", titles[1], "The ship sails at noon.")
    (hop,) = supported_hops(asked, lambda query: [passage] if query == "Oslo Ferry" else [])
    assert hop.said == passage.text
    assert support_ranks(asked, [passage]) == [1]
    assert OracleRetriever([passage], [asked]).search_for(["x"], 1)[0][0].passage == passage
    made = Trajectory("x", [], queries=["q"], retrieved=[passage.text], titles=[[passage.title]])
    assert score(asked, made)["support_retrieved"] == 1
