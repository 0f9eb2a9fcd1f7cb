"""The bug hunt: a hidden fault does what the named one does, nothing gives it away, and a guess is graded."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.files import write_lines

from searchr1_mini import mystery
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import BUGS, RunConfig, TrainConfig
from searchr1_mini.options.nested import flat, make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.pages.report import write_report
from searchr1_mini.run.museum import active_bug
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_jsonl, write_json_atomic

SMALL = {"steps": 2, "questions_per_step": 4, "group_size": 4, "eval_questions": 4, "mini_batches": 1,
         "tensorboard": False, "max_new_tokens": 24, "memory_check": False, "temperature": 1.3}  # fmt: skip


def number_of(bug: str) -> int:
    return next(n for n in range(1000) if active_bug(RunConfig(mystery=n)) == bug)


def test_every_fault_has_a_number_and_a_number_hides_one():
    assert {active_bug(RunConfig(mystery=n)) for n in range(60)} == set(BUGS)
    assert active_bug(RunConfig(mystery=7)) == active_bug(RunConfig(mystery=7))
    assert active_bug(RunConfig()) is None and active_bug(RunConfig(bug="no-last-turn")) == "no-last-turn"


@pytest.mark.parametrize("bug", BUGS)
def test_a_hidden_fault_trains_as_the_named_one_unnamed(bug, tmp_path, capsys):
    logs = []
    for name, how in (("named", {"bug": bug, "max_turns": 2}), ("hidden", {"mystery": number_of(bug)})):
        run = train(resolve(make(TrainConfig, output_dir=str(tmp_path / name), **SMALL, **how)), write_report)
        rows = read_jsonl(run / "metrics.jsonl")
        logs.append([{k: v for k, v in row.items() if "second" not in k} for row in rows])
    hints = {"logprob_diff_max", "logprob_diff_mean"}
    assert [{k: v for k, v in row.items() if k not in hints} for row in logs[0]] == logs[1]
    assert hints < {key for row in logs[0] for key in row} and not any(
        '"ratios"' in path.read_text() for path in run.rglob("step-*.jsonl")
    )
    said = capsys.readouterr().out.split(str(tmp_path / "hidden"))[-1]
    files = [path for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".html")]
    files = [path for path in files if path.name != "tokenizer.json"]  # it speaks of pretokenizers
    assert bug not in said and [path.name for path in files if bug in path.read_text()] == []
    for guess in BUGS:
        if guess == bug:
            mystery.main(["check", str(run), guess])
            assert capsys.readouterr().out.startswith("right: ")
        else:
            with pytest.raises(SystemExit, match="3"):
                mystery.main(["check", str(run), guess])
            assert capsys.readouterr().out.startswith("no: ")
    with pytest.raises(UserError, match="is no bug hunt"):
        mystery.main([str(tmp_path / "named"), bug])


def first_numbers(folder: Path, **how) -> list[tuple]:
    """What the first step of a run logs that a student compares."""
    options = {"steps": 1, "eval_every": 1, "eval_questions": 2, "tensorboard": False, "memory_check": False}
    run = train(resolve(make(TrainConfig, output_dir=str(folder), **options, **how)))
    row = read_jsonl(run / "metrics.jsonl")[0]
    return [row["reward"], row["answered"], row.get("policy_loss"), row.get("entropy"), row.get("grad_norm")]


@pytest.fixture(scope="module")
def sound_numbers(tmp_path_factory) -> list[tuple]:
    return first_numbers(tmp_path_factory.mktemp("sound"), max_turns=2)


@pytest.mark.parametrize("bug", BUGS)
def test_a_hunt_of_the_documented_command_is_not_the_sound_run(bug, sound_numbers, tmp_path):
    """Already in its first step, though a base of this size answers at once mostly."""
    assert first_numbers(tmp_path, mystery=number_of(bug)) != sound_numbers


def test_a_hunt_has_few_turns_so_that_every_fault_acts(tmp_path):
    assert resolve(make(TrainConfig, mystery=6)).rollout.max_turns == 2
    assert resolve(make(TrainConfig, mystery=6, max_turns=1)).rollout.max_turns == 1
    assert resolve(TrainConfig()).rollout.max_turns == 4
    for flags in (["--max-turns", "4"], ["--preset", "laptop-llm"]):
        with pytest.raises(UserError, match=r"--max-turns [34]: with more than 2 a --mystery may not show"):
            resolve(parse(TrainConfig, "train.py", "", ["--mystery", "3", *flags]))
    older = flat(resolve(TrainConfig())) | {"mystery": 6, "resume": True, "output_dir": str(tmp_path)}
    assert resolve(make(TrainConfig, **older)).rollout.max_turns == 4


def test_what_is_left_out_of_a_guess_is_told(tmp_path, capsys):
    for words in ([], ["check"], ["check", "runs/a"], ["runs/a"], ["check", "--guess", "no-last-turn"]):
        with pytest.raises(UserError, match=r"name the run and your guess: .* check runs/NAME no-last-turn"):
            mystery.main(words)
    with pytest.raises(UserError, match="unexpected argument 'more'"):
        mystery.main(["check", "runs/a", "no-last-turn", "more"])
    config = flat(resolve(make(TrainConfig, mystery=number_of("no-last-turn"))))
    write_json_atomic(tmp_path / "config.json", config)
    for words in ([str(tmp_path), "no-last-turn"], [str(tmp_path), "--guess", "no-last-turn"]):
        mystery.main(["check", *words])
        assert capsys.readouterr().out.startswith("right: ")
    with pytest.raises(SystemExit, match="0"):
        mystery.main(["--help"])
    assert "check RUN GUESS" in capsys.readouterr().out


@pytest.mark.parametrize("how", [{"bug": "colliding-groups"}, {"mystery": number_of("no-last-turn")}])
def test_groups_of_one_source_cannot_collide(how, tmp_path):
    rows = [{"question": f"Where is {n}?", "answer": "x", "context": [["Oslo", ["Oslo is x."]]]} for n in range(9)]
    file, out = write_lines(tmp_path / "q.jsonl", rows), tmp_path / "run"
    with pytest.raises(UserError, match='two sources, and all of these are of q; give each row its "data_source"'):
        train(resolve(make(TrainConfig, dataset=file, output_dir=str(out), **SMALL, **how)))
    assert not out.exists()


@pytest.mark.parametrize(
    "flags",
    [["--bug", "no-last-turn"], ["--check"], ["--reward", "f1"], ["--algorithm", "ppo"], ["--method", "r1"],
     ["--loss-aggregation", "sequence"], ["--baseline", "none"], ["--baseline", "batch"]],
)  # fmt: skip
def test_what_a_fault_could_make_idle_is_refused_beside_it(flags):
    with pytest.raises(UserError, match="mystery"):
        resolve(parse(TrainConfig, "train.py", "", ["--mystery", "3", *flags]))
