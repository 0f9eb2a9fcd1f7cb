"""`--checkpoint best` is chosen by some held-out questions and reported on others: of the world, files, the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.faults import sentence_of
from helpers.files import write_lines
from helpers.sessions import SMALL, session_of

from searchr1_mini.core.questions import Example
from searchr1_mini.data import datasets
from searchr1_mini.data.datasets import load_examples, question_key
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.run.held_out import HELD_OUT, TRAINED_ON, chosen_by, keep_trained_on, trained_on
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.task import load_task
from searchr1_mini.storage.files import read_jsonl

ROWS = [{"question": f"Where is T{n}?", "answer": f"x{n}"} for n in range(60)]
TINY_BASE = resolve_model("tiny")
PASSAGES = [{"id": str(n), "contents": f'"T{n}"\nT{n} is in x{n}.'} for n in range(60)]
SHORT = {"max_new_tokens": 12, "max_turns": 1}


def run_with_a_best(folder: Path, **settings) -> Path:
    """A checkpoint of an untrained run, with an evaluation of its step."""
    run = session_of(folder, **SHORT | settings)
    run.save(1)
    write_lines(folder / "metrics.jsonl", [{"step": 1, "eval/em": 0.5}])
    return folder


def asked(run: Path | None, out: Path, **options) -> list[dict]:
    """The questions that eval.py asked."""
    evaluate_command(EvalConfig(run=run and str(run), output_dir=str(out), **{"limit": 4} | options))
    (cell,) = (out / "cells").glob("*.jsonl")
    return read_jsonl(cell)


def fact(example) -> tuple:
    return example.supporting, example.golden_answers


@pytest.fixture(scope="module")
def of_the_world(tmp_path_factory) -> Path:
    return run_with_a_best(tmp_path_factory.mktemp("runs") / "world", eval_questions=300)


@pytest.fixture(scope="module")
def of_a_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    questions, corpus = write_lines(folder / "q.jsonl", ROWS), write_lines(folder / "c.jsonl", PASSAGES)
    return run_with_a_best(folder / "run", dataset="jsonl", data_path=questions, corpus=corpus, eval_questions=200)


def test_in_the_world_no_fact_that_chose_is_asked_in_any_words(of_the_world, tmp_path, capsys):
    chose = {fact(example) for example in chosen_by([of_the_world])}
    assert len(chose) == 300
    settings = resolve(make(TrainConfig, eval_questions=500))
    without = load_task(settings, "eval", without=chosen_by([of_the_world])).examples
    assert len({example.id for example in without}) == 500 and not chose & {fact(example) for example in without}
    assert chose & {fact(example) for example in load_task(settings, "eval").examples}
    best = asked(of_the_world, tmp_path / "best", checkpoint="best")
    assert [row["question"] for row in best] == [
        example.question
        for example in load_task(
            resolve(make(TrainConfig, eval_questions=4)), "eval", None, chosen_by([of_the_world])
        ).examples
    ]
    assert "chosen by 300 held-out questions of its run" in capsys.readouterr().out


def test_without_best_the_questions_are_those_of_ever(of_the_world, tmp_path):
    newest = asked(of_the_world, tmp_path / "newest")
    examples = load_task(resolve(make(TrainConfig, eval_questions=4)), "eval").examples
    assert [row["question"] for row in newest] == [example.question for example in examples]


def test_held_out_questions_either_choose_or_report(of_a_file, tmp_path):
    """Half of those of a file choose the best checkpoint; it is reported on the other half."""
    chose = {example.question for example in chosen_by([of_a_file])}
    best = {row["question"] for row in asked(of_a_file, tmp_path / "best", checkpoint="best")}
    newest = {row["question"] for row in asked(of_a_file, tmp_path / "newest", limit=500)}
    assert len(chose) == len(best) == 3 and not chose & best and newest == chose | best
    path = json.loads((of_a_file / "config.json").read_text())["data_path"]
    assert newest == {example.question for example in load_examples("jsonl", path, "eval")}


def test_a_copy_of_the_file_shows_no_question_that_chose(of_a_file, tmp_path):
    copy = write_lines(tmp_path / "other-name.jsonl", ROWS)
    flags = {"checkpoint": "best", "datasets": copy, "corpus": write_lines(tmp_path / "c.jsonl", PASSAGES)}
    best = {row["question"] for row in asked(of_a_file, tmp_path / "best", limit=99, **flags)}
    assert len(best) == 3 and not best & {example.question for example in chosen_by([of_a_file])}


def test_where_all_that_is_held_out_chose_it_is_told(tmp_path, capsys):
    """Ten questions hold one out."""
    questions, corpus = write_lines(tmp_path / "q.jsonl", ROWS[:10]), write_lines(tmp_path / "c.jsonl", PASSAGES)
    run = run_with_a_best(tmp_path / "run", dataset="jsonl", data_path=questions, corpus=corpus)
    config = EvalConfig(run=str(run), checkpoint="best", output_dir=str(tmp_path / "eval"))
    told = sentence_of(capsys, evaluate_command, config)
    assert f"every held-out question of {questions} helped to choose the checkpoint, or was" in told


def test_a_run_of_an_older_version_keeps_what_it_is_measured_on(of_a_file, tmp_path, capsys):
    """It wrote no file of them, and chose by all that is held out; resumed, it is measured on them still."""
    path = json.loads((of_a_file / "config.json").read_text())
    run = run_with_a_best(
        tmp_path / "run", dataset="jsonl", data_path=path["data_path"], corpus=path["corpus"], eval_questions=200
    )
    (run / HELD_OUT).unlink()
    saved = json.loads((run / "config.json").read_text())
    del saved["held_out_split"]
    (run / "config.json").write_text(json.dumps(saved))
    assert len(chosen_by([run])) == 6
    told = sentence_of(capsys, evaluate_command, EvalConfig(run=str(run), checkpoint="best", output_dir=str(tmp_path)))
    assert "every held-out question" in told
    values = {name: path[name] for name in ("dataset", "data_path", "corpus", "eval_questions")}
    resumed = open_run(resolve(make(TrainConfig, **SMALL | SHORT | values, output_dir=str(run), resume=True)))
    resumed.tracker.__exit__()
    assert len(resumed.held_out.examples) == 6 and not (run / HELD_OUT).exists()


def test_what_a_run_starts_from_was_trained_on_too(tmp_path):
    """Also where a checkpoint of it is named; once written the list stays, as when the other run is gone."""
    first, second = ([Example(f"q/{n}", f"Where is {n}?", ("x",), "q") for n in part] for part in ((1, 2), (2, 3)))
    old, run = tmp_path / "old", tmp_path / "run"
    for folder, examples, init in ((old, first, None), (run, second, str(old / "checkpoints" / "step-000005"))):
        (folder / "checkpoints" / "step-000005").mkdir(parents=True)
        keep_trained_on(folder, examples, init, "tiny")
    keep_trained_on(run, [])
    assert trained_on([run]) == {question_key(example) for example in first + second}
    assert trained_on([old]) == {question_key(example) for example in first} and trained_on([tmp_path]) == set()


def test_what_a_run_learned_is_not_asked_of_its_weights(of_a_file, tmp_path, capsys):
    """Within the run's folder, and as an export that was moved elsewhere; such a model is not called untrained."""
    path = json.loads((of_a_file / "config.json").read_text())
    data = {"datasets": path["data_path"], "corpus": path["corpus"], "limit": 99}
    data |= {"template": "short", "max_total_tokens": 600, "max_observation_tokens": 99, "load_in_4bit": False}
    model = Path(shutil.copytree(TINY_BASE, tmp_path / "model"))
    shutil.copy(of_a_file / TRAINED_ON, model)
    held_out = {example.question for example in load_examples("jsonl", path["data_path"], "eval")}
    adapter = of_a_file / "checkpoints" / "step-000001" / "model" / "policy"
    for n, flags in enumerate([{"model": "tiny", "adapter": str(adapter)}, {"model": str(model)}]):
        found = asked(None, tmp_path / str(n), **SHORT | data | flags)
        told = capsys.readouterr().out
        assert {row["question"] for row in found} == held_out and len(held_out) == 6
        assert "no row is asked a question that a run was trained on" in told and "untrained" not in told
    run = tmp_path / "run"
    run.mkdir()
    keep_trained_on(run, [], None, str(model))
    assert trained_on([run]) == trained_on([of_a_file])


def test_of_the_hub_others_take_the_places_of_those_that_chose(monkeypatch):
    rows = [({"id": f"{n}", "question": f"q{n}", "golden_answers": ["x"]}, f"row {n}") for n in range(20)]
    monkeypatch.setattr(datasets, "_hub_rows", lambda dataset, split: rows)
    chose = {question_key(example) for example in load_examples("nq", None, "selection", 8)}
    plain = {question_key(example) for example in load_examples("nq", None, "eval", 8)}
    others = {question_key(example) for example in load_examples("nq", None, "eval", 8, chose)}
    assert chose == plain and len(others) == 8 and not others & chose


@pytest.mark.parametrize("named", ["data_path", "demonstrations", "init"])
def test_of_the_hub_nothing_is_asked_that_a_file_taught(of_a_file, tmp_path, monkeypatch, capsys, named):
    """A file may be a copy of a published test set, and be what another run, or a demonstration, was made of."""
    run = Path(shutil.copytree(of_a_file, tmp_path / "run"))
    saved = json.loads((run / "config.json").read_text())
    others = {"data_path": None, "dataset": "nq", named: saved["data_path"]}
    (run / "config.json").write_text(json.dumps(saved | (others if named != "data_path" else {})))
    rows = [(row | {"id": str(n), "golden_answers": [row["answer"]]}, f"row {n}") for n, row in enumerate(ROWS)]
    monkeypatch.setattr(datasets, "_hub_rows", lambda dataset, split: rows)
    learned = trained_on([of_a_file])
    corpus = write_lines(tmp_path / "c.jsonl", PASSAGES)
    found = {row["question"] for row in asked(run, tmp_path / "eval", datasets="nq", corpus=corpus, limit=99)}
    assert found == {
        row["question"] for row in ROWS if question_key(Example("", row["question"], (), "")) not in learned
    }
    assert len(found) == 6 and "Of nq no row is asked a question that a run was trained on" in capsys.readouterr().out
