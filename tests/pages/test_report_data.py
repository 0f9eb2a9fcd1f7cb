"""What a page holds of a run: whole groups by one rule within its bytes, and tokens that spell the text."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.guards import Tags
from helpers.paths import ROOT
from helpers.report_runs import row, write_run
from helpers.sessions import session_of, step_of, train_step
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.experience import all_logprobs
from searchr1_mini.options.nested import with_options
from searchr1_mini.pages import report_data
from searchr1_mini.pages.report import write_report
from searchr1_mini.pages.report_data import as_json, texts_of, thousandths
from searchr1_mini.report import main
from searchr1_mini.run.log import trajectory_row, write_rollouts
from searchr1_mini.run.token_values import rollout_lines, token_values
from searchr1_mini.storage.files import read_jsonl


def data_of(report: Path) -> dict:
    tags = Tags()
    tags.feed(report.read_text())
    return json.loads(tags.json)


def groups_of(report: Path) -> dict[int, list[str]]:
    """Step -> ids of the questions that the page holds."""
    return {step["step"]: [group["id"] for group in step["groups"]] for step in data_of(report)["runs"][0]["steps"]}


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, tokenizer) -> Path:
    """40 steps of four questions with two rollouts each."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "long", tokenizer)
    for step in range(1, 41):
        rows = [row(tokenizer, f"q{q} of {step}", "a", "b", 1.0, "answer", "a") for q in range(4) for _ in range(2)]
        write_rollouts(folder, step, rows)
    return folder


def test_a_question_that_a_step_draws_twice_is_two_groups(tmp_path, tokenizer):
    folder = write_run(tmp_path / "r", tokenizer)
    drawn = [("q", 0), ("q", 0), ("q", 1), ("q", 1), ("other", 2), ("q", 3)]
    rows = [row(tokenizer, name, "a", "b", 1.0, "answer", "a") | {"group": group} for name, group in drawn]
    write_rollouts(folder, 1, rows)
    groups = data_of(write_report(folder))["runs"][0]["steps"][0]["groups"]
    assert [(group["id"], len(group["rollouts"])) for group in groups] == [
        ("q", 2), ("q (2)", 2), ("other", 1), ("q (3)", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "steps", "n_groups"),
    [
        (10**7, range(1, 41), 4),
        (40_000, range(1, 41), 2),
        (11_000, [1, *range(2, 41, 2)], 1),
        (3000, [1, 10, 20, 30, 40], 1),
    ],
)
def test_the_report_keeps_as_many_groups_as_the_budget_allows(long_run, monkeypatch, tmp_path, budget, steps, n_groups):
    """The first ones of every step or, if even one a step is too much, of every so many steps."""
    monkeypatch.setattr(report_data, "BUDGET", budget)
    report = write_report(long_run, output=tmp_path / "report.html")
    assert groups_of(report) == {step: [f"q{q} of {step}" for q in range(n_groups)] for step in steps}
    assert all(
        len(group["rollouts"]) == 2 for run in data_of(report)["runs"] for s in run["steps"] for group in s["groups"]
    )
    held = sum(len(as_json(step["groups"])) for step in data_of(report)["runs"][0]["steps"])
    assert held <= budget + 200


@given(st.lists(st.text(max_size=8)), st.data())
def test_tokens_spell_the_text_wherever_its_bytes_are_cut(parts, data):
    whole = "".join(parts).encode("utf-8", "ignore")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    texts = list(texts_of(pieces))
    assert len(texts) == len(pieces)
    safe = report_data.plain(whole.decode()).replace("\\x0d\n", "\n")
    assert "".join(texts).replace("\\x0d\n", "\n") == safe


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_in_a_page_ends_where_it_should(value):
    text = as_json(value)
    assert "<" not in text and json.loads(text) == value


@given(st.floats())
def test_numbers_are_whole_thousandths_or_nothing(value):
    assert thousandths(value) == (round(1000 * max(min(value, 1e6), -1e6)) if math.isfinite(value) else None)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_rows_hold_what_the_update_made_of_each_token(tmp_path, algorithm):
    """Ratios against log-probs before and after, by hand; PPO's advantages; nothing for what is masked."""
    run = session_of(tmp_path, algorithm=algorithm, learning_rate=0.01)
    rollouts, experience = step_of(run)
    train_step(run, 1)
    after = all_logprobs(run.policy, experience.batch, run.config.rollout.temperature, run.optimizer.micro_batches)
    run.config = with_options(run.config, eval_every=1)
    values = token_values(run, experience)
    run.config = with_options(run.config, eval_every=2)
    without_ratios = token_values(run, experience)
    is_ours = experience.batch.loss_mask
    by_hand = torch.exp(after - experience.batch.old_logprobs)
    assert (by_hand[is_ours] - 1).abs().max() > 1e-3
    assert ("advantages" in values[0]) == (algorithm == "ppo")
    assert without_ratios[0].keys() == values[0].keys() - {"ratios"}
    assert [line["in_update"] for line in rollout_lines(rollouts, {1: values[1]})][:3] == [False, True, False]
    assert [line["group"] for line in rollout_lines(rollouts, {})] == rollouts.group_ids
    for n, (trajectory, example) in enumerate(zip(rollouts.trajectories, rollouts.examples, strict=True)):
        segments = trajectory_row(trajectory, example, 0.0, None, values[n])["segments"]
        for name, expected in (("ratios", by_hand), ("advantages", experience.advantages)):
            ours = [value for segment in segments for value in segment.get(name, ())]
            if name in values[n]:
                assert ours == pytest.approx(expected[n][is_ours[n]].tolist(), abs=1e-4)
                lengths = [len(segment.get(name, ())) for segment in segments]
                assert lengths == [len(s.token_ids) * (s.kind == "policy") for s in trajectory.segments]


def test_a_folder_is_no_file_to_write_to(tmp_path, tokenizer):
    run = write_run(tmp_path / "r", tokenizer)
    with pytest.raises(UserError, match="is a folder; name a file"):
        main([str(run), "--output", str(tmp_path)])


def test_the_command_writes_one_run_or_several(tmp_path, tokenizer, capsys):
    runs = [str(write_run(tmp_path / name, tokenizer)) for name in ("a", "b")]
    done = subprocess.run(
        [sys.executable, "-m", "searchr1_mini.report", *runs], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"written to {runs[0]}/report-a-b.html\n"
    assert [run["name"] for run in data_of(tmp_path / "a" / "report-a-b.html")["runs"]] == ["a", "b"]
    main([runs[1], "--output", str(tmp_path / "c.html")])
    assert len(data_of(tmp_path / "c.html")["runs"]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name the run"),
        (["nowhere"], "nowhere is not the folder of a run"),
        (["RUN", "--output", "nowhere/x.html"], "there is no folder nowhere"),
        (["RUN"] * 27, "26 at most"),
    ],
)
def test_what_cannot_be_shown_is_said(long_run, words, told):
    with pytest.raises(UserError, match=told):
        main([str(long_run) if word == "RUN" else word for word in words])


def test_a_segment_is_cut_and_says_so(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(report_data, "MOST_TOKENS", 3)
    held = data_of(write_report(write_run(tmp_path / "run", tokenizer)))
    kind, tokens, logprobs, _ = held["runs"][0]["steps"][0]["groups"][0]["rollouts"][0]["segments"][0]
    texts = [held["vocabulary"]["texts"][number] for number in tokens]
    assert (kind, "".join(texts), len(logprobs)) == (1, "<think> Ste [..]", 3)


def test_a_tokenizer_that_is_gone_or_damaged_leaves_the_text(tmp_path, tokenizer):
    run = write_run(tmp_path / "run", tokenizer)
    (run / "checkpoints" / "step-000003" / "model" / "tokenizer.json").write_text("{}")
    held = data_of(write_report(run))
    assert held["vocabulary"]["texts"] == []
    segments = held["runs"][0]["steps"][2]["groups"][0]["rollouts"][1]["segments"]
    assert segments[0] == [1, "<think> Step 3, rollout 1. </think>\n<search> founder of town 0 </search>"]


def test_a_page_without_tokens_keeps_to_its_bytes_too(long_run, monkeypatch, tmp_path):
    monkeypatch.setattr(report_data, "BUDGET", 3000)
    line = read_jsonl(long_run / "rollouts" / "step-000040.jsonl")[0]
    line["segments"][1]["text"] = "word " * 10**6
    write_rollouts(tmp_path, 1, [line] * 2)
    write_rollouts(tmp_path, 2, [line, line | {"example_id": "other"}])
    held = as_json(data_of(write_report(tmp_path))["runs"][0]["steps"])
    assert len(held) < 3 * (report_data.MOST_CHARACTERS + 1000) and "word  [..]" in held
