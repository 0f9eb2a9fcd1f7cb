"""A reward, an engine and a method of the user's own, from Python and from the shell, and what does not fit."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers.files import write_lines
from helpers.paths import ROOT
from helpers.sessions import SMALL

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.optimizer import change_metrics
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.evaluate import main as evaluate
from searchr1_mini.evaluation.plan import plan_evaluation
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import get, make
from searchr1_mini.options.own_parts import own_engine, own_method, own_part
from searchr1_mini.options.resolve import resolve, saved_config
from searchr1_mini.retrieval_metrics import main as retrieval_metrics
from searchr1_mini.run.memory import longest_context
from searchr1_mini.run.opening import files_of_ones_own
from searchr1_mini.run.training import configured_reward, paid_by, train
from searchr1_mini.server import main as serve
from searchr1_mini.storage.files import read_jsonl, read_metrics
from searchr1_mini.train import main

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

def asks_more(question, max_turns, depth):
    yield Prompt(question)

def by_place(question, topk, /):
    yield Prompt(question)

def needs_all(question, max_turns, *, max_new_tokens, topk=1):
    yield Prompt(f"{question} {max_turns} {max_new_tokens} {topk}")

def hands_on(question, topk=7, /, max_turns=3):
    return needs_all(question, max_turns, max_new_tokens=9, topk=topk)

def silent(question):
    yield Prompt(question)
    yield Finish("42", "answer")

class Called:
    def __call__(self, question):
        yield Prompt(question + "!")

called = Called()

async def later(trajectory, example):
    return 1.0

class Fails(Last):
    def __init__(self, passages):
        raise RuntimeError("no index")
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


def pays(trajectory, example):
    return 0.5


def test_a_run_paid_from_python_goes_on_there_alone(tmp_path):
    values = SHORT | {"output_dir": str(tmp_path / "run")}
    run = train(resolve(make(TrainConfig, **values)), reward=pays)
    assert saved_config(run)["reward"] == "python:pays"
    with pytest.raises(UserError, match=r"the reward pays was given to train\(\) in Python"):
        main(["--resume", "--output-dir", str(run), "--steps", "2"])
    config = resolve(make(TrainConfig, **values | {"resume": True, "steps": 2}))
    with pytest.raises(UserError, match="has reward python:pays, not format"):
        train(config)
    with pytest.raises(UserError, match="the contents of python:pays are not those that the run in"):
        train(config, reward=other_pays())
    assert [row["reward"] for row in read_metrics(train(config, reward=pays) / "metrics.jsonl")] == [0.5, 0.5]


def pays_nothing(trajectory, example):
    return None


def test_without_a_folder_a_run_gets_the_one_of_train_py(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(resolve(make(TrainConfig, **SHORT)), reward=pays)
    assert re.fullmatch(r"runs/\d{8}-\d{6}-tiny-grpo", run.as_posix()) and saved_config(run)["output_dir"] == str(run)
    with pytest.raises(UserError, match="the reward pays_nothing returned None; it must return a finite number"):
        train(resolve(make(TrainConfig, **SHORT, output_dir="second")), reward=pays_nothing)


def other_pays():
    def pays(trajectory, example):
        return 0.25

    return pays


@pytest.mark.parametrize(
    ("reward", "options", "told"),
    [
        (lambda trajectory: 1.0, {}, "the reward lambda does not fit; it must be a function of a trajectory and"),
        (3, {}, "the reward int does not fit"),
        (pays, {"retrieval_bonus": 0.1}, "--retrieval-bonus does nothing with a --reward of your own"),
        (pays, {"bug": "reward-from-whole-text"}, "--reward does nothing with --bug reward-from-whole-text"),
        (pays, {"algorithm": "sft"}, "--reward does nothing with --algorithm sft"),
    ],
)
def test_a_reward_from_python_is_refused_where_a_file_is(reward, options, told):
    values = {name: value for name, value in SMALL.items() if name != "reward"} | options
    if options.get("algorithm") == "sft":
        values["group_size"] = 1
    with pytest.raises(UserError, match=re.escape(told)):
        train(resolve(make(TrainConfig, **values)), reward=reward)


def test_a_reward_from_python_pays_within_the_options():
    config = resolve(make(TrainConfig, overlong="penalize", overlong_buffer=100))
    most = config.rollout.max_total_tokens
    long = Trajectory("1", [Segment("policy", [0] * most, [0.0] * most)])
    assert configured_reward(paid_by(config, pays), pays)(long, None) == -0.5


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (KeyError("mine"), ["step-000002"]),
        (ConnectionError("the judge is gone"), ["step-000002"]),
        (TimeoutError(errno.ETIMEDOUT, "the judge is slow"), ["step-000002"]),
        (URLError(OSError(errno.ECONNREFUSED, "no judge")), ["step-000002"]),
        (OSError(errno.ENOSPC, "the disk is full"), []),
        (OSError(errno.EROFS, "the disk is read-only"), []),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_reward_that_breaks_costs_no_finished_step(tmp_path, capsys, error, kept):
    """Unless it tells that the disk fails, which would fail the checkpoint too."""

    def breaks(trajectory, example):
        if (tmp_path / "run" / "rollouts" / "step-000002.jsonl").exists():
            raise error
        return 1.0

    values = SHORT | {"steps": 4, "save_every": 100, "eval_every": 100, "output_dir": str(tmp_path / "run")}
    with pytest.raises(type(error)) as raised:
        train(resolve(make(TrainConfig, **values)), reward=breaks)
    assert raised.value is error
    remedy = "step 2 is saved; continue with: train(config, reward=breaks) in Python, with resume=True"
    assert (remedy in capsys.readouterr().err) == bool(kept)
    assert [path.name for path in (tmp_path / "run").glob("checkpoints/*")] == kept


def test_a_run_does_not_go_on_with_a_reward_that_was_edited(parts, tmp_path):
    run = trained(tmp_path / "run", reward=f"{parts}:brevity")
    values = SHORT | {"steps": 2, "reward": f"{parts}:brevity", "output_dir": str(run), "resume": True}
    config = resolve(make(TrainConfig, **values))
    parts.write_text(PARTS.replace("return 1 / (1 + trajectory.n_policy_tokens)", "return 0.0"))
    with pytest.raises(UserError, match=r"the contents of parts\.py are not those that the run in"):
        train(config)
    parts.write_text(PARTS)
    assert [row["step"] for row in read_metrics(train(config) / "metrics.jsonl")] == [1, 2]


def test_demonstrations_are_a_file_of_ones_own_too(parts, tmp_path):
    shown = tmp_path / "shown.jsonl"
    found = []
    for text in ("one", "another"):
        shown.write_text(text)
        values = {"reward": f"{parts}:brevity", "cold_start": 4, "demonstrations": str(shown)}
        found.append(files_of_ones_own(resolve(make(TrainConfig, **SHORT | values))))
    assert [*found[0]] == ["parts.py", str(shown)] and found[0]["parts.py"] == found[1]["parts.py"]
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
    with pytest.raises(UserError, match=r"--max-turns does nothing with parts\.py:calculator, without a parameter"):
        evaluate_command(EvalConfig(run=str(run), limit=2, max_turns=9, output_dir=str(tmp_path / "eval")))


@pytest.fixture
def notes(tmp_path) -> list[str]:
    """A corpus whose last passage holds the answer, as flags of a command, and questions beside it."""
    (tmp_path / "notes").mkdir()
    for name, river in (("Oslo", "Alna"), ("Bern", "Aare"), ("Zug", "Lorze")):
        (tmp_path / "notes" / f"{name}.md").write_text(f"{name} is a town. Its river is the {river}.")
    write_lines(tmp_path / "q.jsonl", [{"question": f"Which river is in {n}?", "answer": "Lorze"} for n in range(9)])
    return ["--corpus", str(tmp_path / "notes")]


def test_an_evaluation_compares_ones_own_engine_with_others(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"model": "tiny", "limit": 2, "retriever": "bm25,parts.py:Last", "methods": "rag", "output_dir": "eval"}
    evaluate_command(EvalConfig(**options))
    read = {}
    for cell in Path("eval", "cells").glob("*.jsonl"):
        texts = [segment["text"] for row in read_jsonl(cell) for segment in row["segments"]]
        read["Last" in cell.name] = {text for text in texts if "Doc 1(" in text}
    assert len(read[True]) == 1 and len(read[False]) == 2
    table = Path("eval", "table.md").read_text()
    assert "rag, parts.py:Last" in table and "Retrievers: bm25, 3 passages per search" in table
    assert "parts.py:Last, 3 passages per search" in table and str(tmp_path) not in table


def test_the_metrics_measure_ones_own_engine(parts, notes, tmp_path, capsys):
    flags = ["--dataset", str(tmp_path / "q.jsonl"), "--topk", "1"]
    retrieval_metrics(["--retriever", f"{parts}:Last,bm25", *notes, *flags])
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    assert "1.000" in next(row for name, row in rows.items() if name == "parts.py:Last")


def test_a_run_with_ones_own_engine_on_documents_can_be_asked(parts, notes, tmp_path, capsys):
    run = trained(tmp_path / "run", retriever=f"{parts}:Last", dataset=str(tmp_path / "q.jsonl"), corpus=notes[1])
    evaluate_command(EvalConfig(run=str(run), ask="Which river is in Oslo?"))
    assert "\nanswer: " in capsys.readouterr().out


def test_engines_of_one_name_in_two_folders_are_told_apart(parts, notes, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = shutil.copy(parts, tmp_path / "other")
    engines = f"{parts}:Last,{other}:Last"
    labels = [row.label for row in plan_evaluation(EvalConfig(model="tiny", methods="rag", retriever=engines)).rows]
    assert labels == [f"rag, {parts}:Last", f"rag, {other}:Last"]
    retrieval_metrics(["--retriever", engines, *notes, "--dataset", str(tmp_path / "q.jsonl"), "--topk", "1"])
    assert capsys.readouterr().out.count("1.000") == 2 * 2


@pytest.mark.parametrize("command", [evaluate, retrieval_metrics, serve])
def test_every_command_refuses_an_engine_that_does_not_fit(parts, notes, command):
    with pytest.raises(UserError, match="of_one does not fit; it must be a class made from a list of passages"):
        command(["--retriever", f"{parts}:of_one", *notes])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_step_in_which_nobody_writes_teaches_nothing(parts, tmp_path, algorithm):
    values = {"algorithm": algorithm, "group_size": 2 if algorithm == "grpo" else 1, "entropy_coef": 0.01}
    run = trained(tmp_path / "run", method=f"{parts}:silent", **values)
    (row,) = read_metrics(run / "metrics.jsonl")
    assert (row["updates"], row["trained_on"]) == (0, 0)
    assert change_metrics(torch.tensor([]), True) == change_metrics(torch.tensor([]), False) == {}


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("reward", "of_one", "of_one does not fit; it must be a function of a trajectory and its example"),
        ("reward", "brevty", "has no brevty; did you mean brevity?"),
        ("reward", "broken", "does not fit"),
        ("retriever", "Empty", "does not fit; it must be a class made from a list of passages, with search"),
        ("retriever", "brevity", "does not fit"),
        ("reward", "later", "does not fit"),
        ("method", "asks_more", "does not fit; it must be a generator function of a question"),
        ("method", "by_place", "does not fit"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(parts, option, name, told):
    with pytest.raises(UserError, match="--" + option) as caught:
        resolve(*parse_asked(TrainConfig, "train.py", "", [f"--{option}", f"{parts}:{name}"]))
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--{option} parts.py:{name}: ")  # as docs/recipes.md has it


def test_a_file_that_is_not_there_or_broken_is_told(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        own_part("reward", f"{tmp_path}/none.py:x")
    (tmp_path / "bad.py").write_text("def x(:\n")
    with pytest.raises(UserError, match=r"cannot be imported .*SyntaxError"):
        own_part("reward", f"{tmp_path}/bad.py:x")
    with pytest.raises(UserError, match=r"cannot be imported .*ModuleNotFoundError"):
        own_part("reward", "no.such.module:x")


def test_a_part_that_leaves_or_cannot_be_made_is_told(parts, tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)")
    with pytest.raises(UserError, match="leaves the program when it is imported; put what runs it as a script under"):
        own_part("reward", f"{tmp_path}/script.py:x")
    with pytest.raises(UserError, match=r"parts.py:Fails cannot be made from the passages \(RuntimeError: no index\)"):
        own_engine(f"{parts}:Fails", [])


def test_a_method_is_called_with_what_it_has_a_place_for(parts):
    def prompt(name):
        return own_method(f"{parts}:{name}", max_turns=2, max_new_tokens=3, topk=4)("Who?").send(None).text

    assert [prompt("needs_all"), prompt("hands_on"), prompt("called")] == ["Who? 2 3 4", "Who? 2 9 7", "Who?!"]
    with pytest.raises(UserError, match=r"no_generator returned 'Who\?'; it must be a generator function"):
        prompt("no_generator")


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("silent", "max_turns", 9),
        ("silent", "max_new_tokens", 99),
        ("silent", "topk", 7),
        ("calculator", "max_turns", 9),
        ("hands_on", "topk", 7),  # which it takes by place alone
        ("called", "topk", 7),
    ],
)
def test_a_flag_that_a_method_has_no_parameter_for_is_refused(parts, method, name, value):
    flag, own = f"--{name.replace('_', '-')}", f"{parts}:{method}"
    told = f"{flag} does nothing with --method parts.py:{method}, which has no parameter {name}; give it one"
    with pytest.raises(UserError, match=re.escape(told)):
        resolve(*parse_asked(TrainConfig, "train.py", "", ["--method", own, flag, str(value)]))
    resolve(make(TrainConfig, method=own, **{name: value}), unasked={name})
    default = get(resolve(make(TrainConfig, method=own)), name)
    resolve(make(TrainConfig, method=own, **{name: default}))


def test_a_flag_that_a_method_has_a_parameter_for_is_taken(parts):
    """Or that is read elsewhere: by a cold start, and by the bound on a whole trajectory."""
    for method, values in (
        ("needs_all", {"max_turns": 9, "max_new_tokens": 99, "topk": 7}),
        ("hands_on", {"max_turns": 9}),
        ("calculator", {"cold_start": 4, "topk": 7}),
        ("silent", {"max_total_tokens": 48, "max_new_tokens": 40, "max_observation_tokens": 32}),
    ):
        config = resolve(make(TrainConfig, method=f"{parts}:{method}", **values))
        assert {name: get(config, name) for name in values} == values


def test_memory_is_predicted_for_turns_that_only_a_method_knows(parts):
    contexts = {
        name: longest_context(resolve(make(TrainConfig, method=f"{parts}:{name}", max_total_tokens=9000)), prompt=100)
        for name in ("needs_all", "silent", "calculator", "hands_on")
    }
    assert contexts == {"needs_all": 1444, "silent": 9000, "calculator": 9000, "hands_on": 9000}


def test_a_part_edited_between_two_runs_is_not_the_old_one(parts, tmp_path):
    paid, hashes = [], []
    for name in ("first", "second"):
        run = trained(tmp_path / name, reward=f"{parts}:brevity")
        paid.append({row["reward"] for row in read_jsonl(run / "rollouts" / "step-000001.jsonl")})
        hashes.append(saved_config(run)["data_hashes"]["contents of parts.py"])
        parts.write_text(PARTS.replace("1 / (1 + trajectory.n_policy_tokens)", "0.25"))
    assert 0.25 not in paid[0] and paid[1] == {0.25} and hashes[0] != hashes[1]


def test_a_file_that_two_options_name_is_executed_once(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = own_part("retriever", "parts.py:Last")
    assert own_part("reward", f"{parts}:brevity").__globals__["Last"] is engine
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "parts.py").write_text(PARTS)
    other = own_part("retriever", "other/parts.py:Last")
    assert sys.modules[engine.__module__].Last is engine and sys.modules[other.__module__].Last is other


def test_a_run_finds_its_parts_from_any_folder(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", reward="parts.py:brevity")
    assert saved_config(run)["reward"] == f"{parts}:brevity"
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path / "moved")
    parts.rename("parts.py")
    values = SHORT | {"steps": 2, "output_dir": str(run), "resume": True}
    config = resolve(make(TrainConfig, **values | {"reward": "parts.py:brevity"}))
    assert [row["step"] for row in read_metrics(train(config) / "metrics.jsonl")] == [1, 2]


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
def test_what_built_in_methods_alone_read_is_refused_with_own(parts, flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))}"):
        resolve(make(TrainConfig, method=f"{parts}:calculator", **flags))
