"""The files of a run, changed at random or by hand: what is of another form is damage, told in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.junk import JUNK, changed, places
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchr1_mini.ablations import findings
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.evaluation.cells import cell_row, kept_lines
from searchr1_mini.evaluation.plan import plan_evaluation
from searchr1_mini.evaluation.tables import Results, write_tables
from searchr1_mini.export import ExportConfig, export_run
from searchr1_mini.models.identity import BASE_FILE, check_base
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make, options_of, with_options
from searchr1_mini.options.resolve import resolve, saved_config
from searchr1_mini.pages.model_card import model_card
from searchr1_mini.pages.report import write_report
from searchr1_mini.run.imitation import demonstrations
from searchr1_mini.run.log import truncate_metrics
from searchr1_mini.run.training import train
from searchr1_mini.run.watch import Watch
from searchr1_mini.storage import checkpoint
from searchr1_mini.storage.forms import METRICS, WARNING, misfit

CELL_NAME = "cell.jsonl"
SETTINGS = make(TrainConfig, 
    steps=2, questions_per_step=1, group_size=2, mini_batches=1, eval_questions=2, max_new_tokens=4, max_turns=1,
    eval_every=1, save_every=1, tensorboard=False, memory_check=False, drop_zero_variance=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> SimpleNamespace:
    """A finished run, its held-out questions, and a finished cell of an evaluation of it."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train(with_options(resolve(SETTINGS), output_dir=str(folder)))
    progress = json.loads((folder / "checkpoints/step-000002/progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(progress))
    shutil.copy(next(folder.glob(f"checkpoints/step-000002/**/{BASE_FILE}")), folder / BASE_FILE)
    shutil.rmtree(folder / "checkpoints")
    (folder / "warnings.jsonl").write_text('{"step": 1, "warning": "x"}\n{"step": 2, "warning": "y"}\n')
    samples = [Trajectory.from_json(row) for row in progress["samples_before"]]
    examples = [SimpleNamespace(id=t.example_id, question="q", golden_answers=("x",), source="s") for t in samples]
    for example in examples:
        example.supporting = ()
    rows = [cell_row(*pair) for pair in zip(samples, examples, strict=True)]
    (folder / CELL_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"sampled": 2, "right": [asdict(t) for t in samples]}
    (folder / "demonstrations.jsonl").write_text(json.dumps(row) + "\n")
    return SimpleNamespace(folder=folder, examples=examples, base=json.loads((folder / BASE_FILE).read_text()))


def use(run: Path, whole: SimpleNamespace) -> None:
    """Everything that reads a run's files, but for the loading of its weights."""
    saved = saved_config(run)
    resolve(make(TrainConfig, **{name: saved[name] for name in options_of(TrainConfig)}), unasked=saved)
    write_report(run)
    model_card(resolve(TrainConfig()), run, 2, is_adapter=False)
    checkpoint.best_checkpoint(run)
    findings.measures(run)
    Watch(truncate_metrics(run / "metrics.jsonl", 2, METRICS))
    truncate_metrics(run / "warnings.jsonl", 2, WARNING)
    progress = checkpoint.read_progress(run / "progress.json")
    if "samples_before" in progress:
        [Trajectory.from_json(row) for row in progress["samples_before"]]
    check_base(run, "somewhere", whole.base)
    config = with_options(resolve(SETTINGS), algorithm="rejection-sampling", demonstration_questions=1)
    if (run / "demonstrations.jsonl").read_bytes():  # else they are sampled anew
        demonstrations(SimpleNamespace(folder=run, config=config, train=SimpleNamespace(examples=whole.examples)))
    lines = kept_lines(run / CELL_NAME, SimpleNamespace(examples=whole.examples))
    if len(lines) == len(whole.examples):
        results = Results()
        plan = plan_evaluation(EvalConfig(model="tiny"))
        results.add(plan.rows[0], "world", plan.rows[0].settings, lines)
        write_tables(results, run / "tables", False, None, [])


FILES = (
    "config.json", "metrics.jsonl", "warnings.jsonl", "summary.json", "rollouts/step-000001.jsonl", "progress.json",
    BASE_FILE, CELL_NAME, "demonstrations.jsonl",
)  # fmt: skip


def test_a_whole_run_is_read(whole, tmp_path):
    shutil.copytree(whole.folder, run := tmp_path / "run")
    use(run, whole)
    assert (run / "tables" / "table.md").is_file()


def is_told_or_read(whole, run: Path) -> None:
    try:
        use(run, whole)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_was_changed_anywhere_is_read_or_told(whole, tmp_path, name, data):
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole.folder, run)
    text = (run / name).read_text()
    rows = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else [json.loads(text)]
    number = data.draw(st.integers(0, len(rows) - 1))
    path = data.draw(st.sampled_from(places(rows[number])))
    rows[number] = changed(rows[number], path, data.draw(st.sampled_from(JUNK)))
    (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    is_told_or_read(whole, run)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"[" * 100_000 + b"\n", b"\xff\xfe\n", b"{}\n", b"null\n", b"[]\n", b"1\n"])
def test_a_file_of_anything_else_is_read_or_told(whole, tmp_path, name, content):
    shutil.copytree(whole.folder, run := tmp_path / "run")
    (run / name).write_bytes(content)
    is_told_or_read(whole, run)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("config.json", {"seed": "x"}, "config.json is damaged: seed is 'x', and must be a whole number"),
        ("config.json", {"method": "evil"}, "config.json is damaged: method is 'evil', and must be one of search-r1"),
        ("progress.json", {"updates": "x"}, "progress.json is damaged (updates is 'x', and must be a whole number)"),
        ("progress.json", {"before": [1]}, "progress.json is damaged (before is [1], and must be an object)"),
        ("summary.json", {"after": None}, "summary.json is damaged (after is None, and must be an object)"),
        ("summary.json", {"steps": 10**400}, "summary.json is damaged (steps is 1000"),
    ],
)
def test_the_sentence_names_file_option_and_value(whole, tmp_path, name, change, told):
    shutil.copytree(whole.folder, run := tmp_path / "run")
    (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | change))
    with pytest.raises(UserError) as error:
        use(run, whole)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        ("metrics.jsonl", {}, "line 1 of {} is damaged (it has no step)"),
        ("metrics.jsonl", {"step": "1"}, "line 1 of {} is damaged (step is '1', and must be a whole number)"),
        ("metrics.jsonl", {"step": 1, "kl": "x"}, "line 1 of {} is damaged (kl is 'x', and must be a finite number)"),
        ("warnings.jsonl", {"step": 1}, "line 1 of {} is damaged (it has no warning)"),
        ("rollouts/step-000001.jsonl", {"example_id": 1}, "line 1 of {} is damaged (it has no question)"),
        ("demonstrations.jsonl", {"sampled": 1}, "line 1 of {} is damaged (it has no right)"),
    ],
)
def test_a_line_of_another_form_is_named(whole, tmp_path, name, line, told):
    shutil.copytree(whole.folder, run := tmp_path / "run")
    (run / name).write_text(json.dumps(line) + "\n" + (run / name).read_text())
    with pytest.raises(UserError) as error:
        use(run, whole)
    assert told.format(run / name) in str(error.value)


@pytest.mark.parametrize("command", ["resume", "eval", "export", "chat"])
def test_every_command_checks_what_a_run_saved(whole, tmp_path, command):
    """`"method": "evil"` is no more accepted from config.json than from a flag."""
    shutil.copytree(whole.folder, run := tmp_path / "run")
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(saved | {"method": "evil"}))
    commands = {
        "resume": lambda: saved_config(run),
        "eval": lambda: plan_evaluation(EvalConfig(run=str(run))),
        "export": lambda: export_run(ExportConfig(run=str(run), what="questions")),
        "chat": lambda: plan_evaluation(EvalConfig(run=str(run), chat=True)),
    }
    with pytest.raises(UserError, match=r"config\.json is damaged: method is 'evil'"):
        commands[command]()


@pytest.mark.parametrize(
    ("value", "form", "told"),
    [
        (True, int, "it is True, and must be a whole number"), (1, float, None), (float("nan"), float, "finite"),
        ({"a": 1, "b": 2}, {"a": int}, None), ({"a": None}, {"a": (int, None)}, None), ({}, {"?a": int}, None),
        ({"a": "x", "b": 1}, {"a": str, str: int}, None), ({"b": "x"}, {str: int}, "b is 'x'"),
        ([{"k": "c"}], [{"k": ("a", "b")}], r"\[0\].k is 'c', and must be 'a'"),
    ],
)  # fmt: skip
def test_forms(value, form, told):
    found = misfit(value, form)
    assert found is None if told is None else re.search(told, found)
