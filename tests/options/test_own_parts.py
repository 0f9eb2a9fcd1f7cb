"""A reward, an engine and a method of the user's own, from Python and from the shell, and what does not fit."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.sessions import SMALL

from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.own_parts import load_module, own_part
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.opening import files_of_ones_own
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_jsonl, read_metrics

PARTS = '''
from searchr1_mini.core.methods import Finish, Generate, Observe, Prompt
from searchr1_mini.core.retrieval import Hit

def brevity(trajectory, example):
    return 1 / (1 + trajectory.n_policy_tokens)

class Last:
    """Finds the last passages of the corpus, whatever it is asked."""
    def __init__(self, passages):
        self.passages = list(passages)
    def search(self, queries, topk):
        return [[Hit(passage, 1.0) for passage in self.passages[-topk:]] for _ in queries]

def calculator(question, max_new_tokens=32):
    yield Prompt(question)
    yield Generate(("</answer>",), max_new_tokens)
    yield Observe(" 42 ")
    yield Finish("42", "answer")

def of_one(trajectory):
    return 1.0

class Empty:
    def __init__(self, passages):
        pass

def no_generator(question):
    return question
broken = 1
'''
SHORT = SMALL | {"steps": 1, "questions_per_step": 2, "group_size": 2, "eval_every": 1, "save_every": 1}


@pytest.fixture
def parts(tmp_path) -> Path:
    path = tmp_path / "parts.py"
    path.write_text(PARTS)
    return path


def trained(folder: Path, **settings) -> Path:
    return train(resolve(make(TrainConfig, **SHORT | settings, output_dir=str(folder))))


def test_a_reward_of_ones_own_pays(parts, tmp_path):
    run = trained(tmp_path / "run", reward=f"{parts}:brevity")
    rows = read_jsonl(run / "rollouts" / "step-000001.jsonl")
    n_tokens = [sum(len(s["token_ids"]) for s in row["segments"] if s["kind"] == "policy") for row in rows]
    assert [row["reward"] for row in rows] == [1 / (1 + n) for n in n_tokens]


def test_a_reward_from_python_is_that_of_the_shell(parts, tmp_path):
    config = resolve(make(TrainConfig, **SHORT, output_dir=str(tmp_path / "python")))
    train(config, reward=lambda trajectory, example: 1 / (1 + trajectory.n_policy_tokens))
    shell = trained(tmp_path / "shell", reward=f"{parts}:brevity")
    rewards = [[row.get("reward") for row in read_metrics(f / "metrics.jsonl")] for f in (tmp_path / "python", shell)]
    assert rewards[0] == rewards[1]


def test_a_reward_that_breaks_costs_no_finished_step(tmp_path, capsys):
    def breaks(trajectory, example):
        if (tmp_path / "run" / "rollouts" / "step-000002.jsonl").exists():
            raise KeyError("mine")
        return 1.0

    values = SHORT | {"steps": 4, "save_every": 100, "eval_every": 100, "output_dir": str(tmp_path / "run")}
    with pytest.raises(KeyError, match="mine"):
        train(resolve(make(TrainConfig, **values)), reward=breaks)
    assert "step 2 is saved; continue with: python train.py --resume" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_a_run_does_not_go_on_with_a_reward_that_was_edited(parts, tmp_path):
    run = trained(tmp_path / "run", reward=f"{parts}:brevity")
    values = SHORT | {"steps": 2, "reward": f"{parts}:brevity", "output_dir": str(run), "resume": True}
    config = resolve(make(TrainConfig, **values))
    load_module.cache_clear()
    parts.write_text(PARTS.replace("return 1 / (1 + trajectory.n_policy_tokens)", "return 0.0"))
    with pytest.raises(UserError, match=f"the contents of {re.escape(str(parts))} are not those that the run in"):
        train(config)
    load_module.cache_clear()
    parts.write_text(PARTS)
    assert [row["step"] for row in read_metrics(train(config) / "metrics.jsonl")] == [1, 2]


def test_demonstrations_are_a_file_of_ones_own_too(parts, tmp_path):
    shown = tmp_path / "shown.jsonl"
    found = []
    for text in ("one", "another"):
        shown.write_text(text)
        values = {"reward": f"{parts}:brevity", "cold_start": 4, "demonstrations": str(shown)}
        found.append(files_of_ones_own(resolve(make(TrainConfig, **SHORT | values))))
    assert [*found[0]] == [str(parts), str(shown)] and found[0][str(parts)] == found[1][str(parts)]
    assert found[0][str(shown)] != found[1][str(shown)]


def test_runs_and_evaluations_use_a_custom_engine_and_method(parts, tmp_path):
    run = trained(tmp_path / "engine", retriever=f"{parts}:Last")
    rows = read_jsonl(run / "rollouts" / "step-000001.jsonl")
    read = [s["text"] for row in rows for s in row["segments"] if s["kind"] == "observation"]
    assert len({text for text in read if text.startswith("\n\n<information>")}) <= 1
    run = trained(tmp_path / "method", method=f"{parts}:calculator")
    rows = read_jsonl(run / "rollouts" / "step-000001.jsonl")
    assert {row["answer"] for row in rows} == {"42"}
    assert [s["text"] for s in rows[0]["segments"]][-1] == " 42 "
    evaluate_command(EvalConfig(run=str(run), limit=2, output_dir=str(tmp_path / "eval")))
    (cell,) = (tmp_path / "eval" / "cells").glob("*.jsonl")
    assert {row["answer"] for row in read_jsonl(cell)} == {"42"}


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("reward", "of_one", "of_one does not fit; it must be a function of a trajectory and its example"),
        ("reward", "brevty", "has no brevty; did you mean brevity?"),
        ("reward", "broken", "does not fit"),
        ("retriever", "Empty", "does not fit; it must be a class made from a list of passages, with search"),
        ("retriever", "brevity", "does not fit"),
        ("method", "no_generator", "does not fit; it must be a generator function of a question"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(parts, option, name, told):
    with pytest.raises(UserError, match="--" + option) as caught:
        resolve(*parse_asked(TrainConfig, "train.py", "", [f"--{option}", f"{parts}:{name}"]))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_broken_is_told(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        own_part("reward", f"{tmp_path}/none.py:x")
    (tmp_path / "bad.py").write_text("def x(:\n")
    with pytest.raises(UserError, match=r"cannot be imported .*SyntaxError"):
        own_part("reward", f"{tmp_path}/bad.py:x")
    with pytest.raises(UserError, match=r"cannot be imported .*ModuleNotFoundError"):
        own_part("reward", "no.such.module:x")


@pytest.mark.parametrize("value", ["http://127.0.0.1:8000", "http://search", "C:/engines", "my.py", "my.py:"])
def test_an_address_or_a_path_alone_is_told_how_to_name_a_part(value):
    with pytest.raises(UserError, match=r"must be one of auto, bm25, .*FILE\.py:NAME"):
        resolve(*parse_asked(TrainConfig, "train.py", "", ["--retriever", value]))


def test_a_module_that_is_installed_is_taken_too():
    assert own_part("reward", "searchr1_mini.run.rewards:format_reward")


def test_a_bonus_beside_a_reward_of_ones_own_is_refused(parts):
    with pytest.raises(UserError, match="--retrieval-bonus does nothing"):
        resolve(make(TrainConfig, reward=f"{parts}:brevity", retrieval_bonus=0.1))
    with pytest.raises(UserError, match="--search-cost does nothing"):
        resolve(make(TrainConfig, reward=f"{parts}:brevity", search_cost=0.1))


def test_the_examples_of_the_recipes_train(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text()
    for name, code in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(code)
    parts = {
        "reward": "my_rewards.py:brevity",
        "retriever": "my_engine.py:Engine",
        "method": "my_methods.py:calculator",
    }
    run = trained(
        tmp_path / "run", questions_per_step=8, **{option: f"{tmp_path}/{part}" for option, part in parts.items()}
    )
    rows = read_jsonl(run / "rollouts" / "step-000001.jsonl")
    assert any(row["queries"] for row in rows) and all(0 <= row["reward"] <= 1 for row in rows)


def test_the_recipes_train_with_a_function_from_python(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "recipes.md").read_text()
    (reward,) = re.findall(r"```python\n# my_rewards\.py\n(.*?)```", page, re.DOTALL)
    (script,) = re.findall(r"```python\n(from my_rewards import brevity.*?)```", page, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(reward)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "steps=10)" in script
    exec(script.replace("steps=10)", "**SHORT)"), {"SHORT": SHORT | {"world_hops": "1", "questions_per_step": 8}})
    del sys.modules["my_rewards"]
    rows = read_jsonl(tmp_path / "runs" / "brief" / "rollouts" / "step-000001.jsonl")
    n_tokens = [sum(len(s["token_ids"]) for s in row["segments"] if s["kind"] == "policy") for row in rows]
    earned = [(row["reward"], 50 / (50 + n)) for row, n in zip(rows, n_tokens, strict=True)]
    assert all(reward in (0, full) for reward, full in earned) and any(reward for reward, _ in earned)


def test_the_calculator_of_the_recipes_computes(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text()
    (code,) = re.findall(r"```python\n# my_methods\.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_methods.py").write_text(code)
    method = own_part("method", f"{tmp_path}/my_methods.py:calculator")("How much?")
    method.send(None)
    method.send(None)
    observed = method.send("<search> 12 * 7 </search>")
    assert observed.text == "\n\n<information>84</information>\n\n"


@pytest.mark.parametrize("flags", [{"bug": "no-last-turn"}, {"mystery": 3}, {"template": "paper"}])
def test_what_the_built_in_methods_alone_read_is_refused_with_ones_own(parts, flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))}"):
        resolve(make(TrainConfig, method=f"{parts}:calculator", **flags))
