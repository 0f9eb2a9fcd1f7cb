"""Data sets on the hub, read offline from files laid out as there: splits, revisions, HotpotQA's corpus."""

from __future__ import annotations

import pytest
from helpers.files import write_lines

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data import datasets as sets
from searchr1_mini.data.datasets import load_corpus, load_examples


@pytest.mark.parametrize("dataset", ["hotpotqa", "nq_hotpotqa", "musique"])
def test_without_a_network_the_remedy_is_told(dataset, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--data-path"):
        load_examples(dataset, None, "train")


HOTPOTQA_CARD = """---
configs:
- config_name: distractor
  data_files:
  - {split: train, path: distractor/train-*}
  - {split: validation, path: distractor/validation-*}
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The three hub data sets as folders laid out like them: `datasets` reads a folder as it reads the hub."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    for constant in ("HOTPOTQA_ID", "NQ_HOTPOTQA_ID", "FLASHRAG_ID"):
        folder = str(tmp_path / constant)
        monkeypatch.setitem(sets.REVISIONS, folder, sets.REVISIONS[getattr(sets, constant)])
        monkeypatch.setattr(sets, constant, folder)
    (tmp_path / "HOTPOTQA_ID" / "distractor").mkdir(parents=True)
    (tmp_path / "HOTPOTQA_ID" / "README.md").write_text(HOTPOTQA_CARD)
    for split, city in (("train", "Bern"), ("validation", "Rome")):
        context = {"title": ["Oslo", city], "sentences": [["Capital", " of Norway."], [f"{city} is a city."]]}
        row = {"id": split, "question": f"Where is {city}?", "answer": "there", "context": context}
        path = tmp_path / "HOTPOTQA_ID" / "distractor" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list([row]).to_parquet(str(path))
    for split in ("train", "test"):
        row = {"id": f"{split}_0", "question": f"{split}?", "golden_answers": ["x"], "data_source": "nq"}
        (tmp_path / "NQ_HOTPOTQA_ID").mkdir(exist_ok=True)
        datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / "NQ_HOTPOTQA_ID" / f"{split}.parquet"))
    for name, files in sets.FLASHRAG.items():
        (tmp_path / "FLASHRAG_ID" / name).mkdir(parents=True)
        for file in filter(None, files):
            row = {"id": f"{file}_0", "question": f"{name} {file}?", "golden_answers": ["x", "y"], "metadata": {}}
            write_lines(tmp_path / "FLASHRAG_ID" / name / f"{file}.jsonl", [row])
    return tmp_path


def test_every_hub_data_set_gives_the_split_that_was_asked_for(hub):
    assert [e.id for e in load_examples("hotpotqa", None, "train")] == ["hotpotqa/train"]
    assert [e.id for e in load_examples("hotpotqa", None, "eval")] == ["hotpotqa/validation"]
    assert [e.id for e in load_examples("nq_hotpotqa", None, "train")] == ["nq/train_0"]
    assert [e.id for e in load_examples("nq_hotpotqa", None, "eval")] == ["nq/test_0"]
    for name, (train, held_out) in sets.FLASHRAG.items():
        for split, file in (("train", train), ("eval", held_out)):
            if file:
                answers = ("x", "y")
                assert load_examples(name, None, split) == [
                    Example(f"{name}/{file}_0", f"{name} {file}?", answers, name)
                ]


def test_the_hotpotqa_corpus_joins_both_splits_and_is_cached(hub, monkeypatch):
    passages = load_corpus(None, "hotpotqa", None)
    assert passages == [
        Passage("0", "Oslo", "Capital of Norway."),
        Passage("1", "Bern", "Bern is a city."),
        Passage("2", "Rome", "Rome is a city."),
    ]
    (kept,) = (hub / "cache" / "corpora").iterdir()
    for path in (hub / "HOTPOTQA_ID" / "distractor").iterdir():
        path.unlink()
    assert load_corpus(None, "hotpotqa", None) == passages
    monkeypatch.setitem(sets.REVISIONS, sets.HOTPOTQA_ID, "another revision")
    with pytest.raises(UserError, match="another revision"):
        load_corpus(None, "hotpotqa", None)
    assert list(kept.parent.iterdir()) == [kept]


def test_bamboogle_is_refused_for_training():
    with pytest.raises(UserError, match="evaluation only"):
        load_examples("bamboogle", None, "train")


def test_all_of_a_hub_data_set_is_its_evaluation_split(hub):
    """Where nothing is trained, as by the retrieval figures; a split for evaluation is there in every set."""
    for name, (_, held_out) in sets.FLASHRAG.items():
        assert [e.id for e in load_examples(name, None, "all")] == [f"{name}/{held_out}_0"]
