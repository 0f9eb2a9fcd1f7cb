"""The board of a class: who comes where, what each changed, and every reason why a run cannot be compared."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.files import write_lines
from helpers.handed_in import change, hand_in, measured
from helpers.junk import JUNK, changed, places
from helpers.paths import ROOT

from searchr1_mini import classroom
from searchr1_mini.core.errors import UserError
from searchr1_mini.pages import classroom as page
from searchr1_mini.pages.classroom import terminal, write_classroom
from searchr1_mini.pages.classroom_data import Entry, board, read_entry
from searchr1_mini.storage.commit import keep_commit


def said(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "searchr1_mini.classroom", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def handed_in(tmp_path) -> Path:
    """Five people: two sound runs, one with a bug, one whose summary is damaged, one that is not done."""
    folder = tmp_path / "handed-in"
    hand_in(folder / "anna", 0.88, 0.90)
    hand_in(folder / "bela" / "runs" / "try-2", 0.94, 0.91, "--learning-rate 0.002 --no-normalize-std")
    hand_in(folder / "carl", 1.0, 1.0, "--bug reward-from-whole-text")
    (hand_in(folder / "dora", 0.5, 0.5) / "summary.json").write_text('{"before"')
    emil = hand_in(folder / "emil", 0.5, 0.5, "--algorithm ppo")
    (emil / "summary.json").unlink()
    write_lines(emil / "metrics.jsonl", [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.1}])
    return folder


def test_the_board_lists_all_and_says_who_cannot_be_compared(handed_in):
    done = said(handed_in)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "5 runs, 2 of which can be compared"
    table = [re.split(r" {2,}", line.strip()) for line in lines if re.match(r" +(\d|-) ", line)]
    assert table[:3] == [
        ["-", "carl", "1.000", "1.000", "1.000", "0.000", "40", "122", "--bug reward-from-whole-text"],
        ["1", "bela/runs/try-2", "0.925", "0.940", "0.910", "0.000", "40", "122", "--learning-rate 0.002"],
        ["2", "anna", "0.890", "0.880", "0.900", "0.000", "40", "122", "nothing"],
    ]
    assert [row[1] for row in table[3:]] == ["dora", "emil"] and table[4][-1] == "--algorithm ppo"
    told = lines[lines.index("cannot be compared:") + 1 : -1]
    assert told[0] == "carl: --bug reward-from-whole-text: the method is broken on purpose"
    assert told[1].startswith("dora: ") and "summary.json is damaged" in told[1]
    assert told[2] == "emil: unfinished: 2 of 36 steps, and no summary.json"
    assert lines[-1] == f"written to {handed_in / 'classroom.html'}"
    assert "--no-normalize-std" in done.stdout


FAULTS = [
    ("--mystery 7", {}, "--mystery 7: a bug hunt"),
    ("--no-mask-observations", {}, "trained on what the engine wrote"),
    ("--preset laptop-llm", {"n": 400}, "--model SmolLM2-135M-Instruct: another base than the default run's tiny"),
    ("--seed 3", {}, "measured on the world of --seed 3, the default run's is 0"),
    ("--world-difficulty simple --world-noise 2", {}, "default run's: --world-difficulty simple, --world-noise 2"),
    ("--retriever oracle", {}, "handed the right passages"),
    ("--retriever random", {}, "--retriever random: it finds nothing, or anything"),
    ("--retriever none", {}, "--retriever none: it finds nothing, or anything"),
    ("--method r1", {}, "--method r1: another method than the default run's search-r1"),
    ("--eval-questions 40", {"n": 40}, "measured on 40 held-out questions, the default run on 200"),
    ("", {"emptied": 0.03}, "exact match 0.030 with the retriever emptied, above 0.02: it answers without searching"),
]


@pytest.mark.parametrize(("flags", "figures", "told"), FAULTS)
def test_what_cannot_be_compared_is_named_with_its_reason(tmp_path, flags, figures, told):
    (fault,) = read_entry(hand_in(tmp_path / "run", 0.9, 0.9, flags, **figures), "run").faults
    assert told in fault


@pytest.mark.parametrize(
    ("flags", "n"),
    [("--eval-questions 400", 400), ("--group-size 4 --lora-rank 0", 200), ("--preset 12gb", 200),
     ("--cold-start 20", 200)],
)  # fmt: skip
def test_whatever_else_a_run_does_can_be_compared(tmp_path, flags, n):
    entry = read_entry(hand_in(tmp_path / "run", 0.9, 0.9, flags, emptied=0.02, n=n), "run")
    assert entry.faults == [] and " ".join(entry.changed) == flags


def test_another_data_set_is_named(tmp_path):
    run = hand_in(tmp_path / "run", 0.9, 0.9)
    for name in ("summary.json", "config.json"):
        held = json.loads((run / name).read_text())
        held.get("settings", held)["dataset"] = "hotpotqa"
        (run / name).write_text(json.dumps(held))
    faults = read_entry(run, "run").faults
    assert faults[0] == "summary.json was measured on world-1hop, which its settings do not ask for"
    assert faults[1] == "measured on another data set than the default run: hotpotqa"


def test_a_base_or_a_part_in_a_home_is_named_without_it(tmp_path):
    """A copy of the tiny base is another base too: it may be one that was trained and exported."""
    run = hand_in(tmp_path / "run", 0.9, 0.9)
    own = {"model": "/home/ada/merged", "reward": "/home/ada/my_rewards.py:f", "retriever": "/home/ada/my_engine.py:E"}
    change(run / "config.json", **own)
    settings = json.loads((run / "summary.json").read_text())["settings"]
    change(run / "summary.json", settings=settings | own)
    entry = read_entry(run, "run")
    assert entry.faults == [
        "--model merged: another base than the default run's tiny",
        "--retriever my_engine.py:E: an engine of its own, of which nobody can tell what it hands over",
    ]
    assert "--reward my_rewards.py:f" in entry.changed
    assert "/home" not in terminal([entry], 100) + write_classroom([entry], tmp_path / "page.html").read_text()


def test_a_run_that_begins_with_another_ones_learning_is_named(tmp_path):
    run = hand_in(tmp_path / "run", 0.9, 0.9)
    for name in ("summary.json", "config.json"):
        held = json.loads((run / name).read_text())
        held.get("settings", held)["init"] = "runs/other"
        (run / name).write_text(json.dumps(held))
    entry = read_entry(run, "run")
    assert entry.faults == ["--init runs/other: it begins with what another run has learned"]
    assert entry.changed == ["--init runs/other"]


def test_a_summary_that_is_not_of_its_config_is_named(tmp_path):
    """Somebody else's summary, and a config.json from which a fault was taken out."""
    run = hand_in(tmp_path / "a", 0.9, 0.9)
    (run / "summary.json").write_bytes((hand_in(tmp_path / "b", 1, 1, "--kl-coef 0.1") / "summary.json").read_bytes())
    told = "summary.json and config.json are of different runs: "
    assert read_entry(run, "a").faults == [f"{told}--kl-coef 0.1 and --kl-coef 0.001"]
    broken = hand_in(tmp_path / "c", 0.9, 0.9, "--bug no-last-turn")
    change(broken / "config.json", bug=None)
    faults = read_entry(broken, "c").faults
    assert faults[0] == f"{told}--bug no-last-turn and no --bug" and "broken on purpose" in faults[1]


def test_figures_that_do_not_fit_each_other_are_named(tmp_path):
    run = hand_in(tmp_path / "run", 0.9, 0.9)
    change(run / "summary.json", after=measured(0.9, 0.9) | {"em": 0.99})
    assert read_entry(run, "run").faults == ["its exact match is 0.990, but by hops it comes to 0.900"]
    change(run / "summary.json", after=measured(7.0, 7.0))
    assert read_entry(run, "run").faults == ["summary.json holds figures that no evaluation gives"]
    change(run / "summary.json", after=measured(0.9, 0.9, n=600), steps=20)
    faults = read_entry(run, "run").faults
    assert faults == [
        "summary.json is of 20 steps, and its settings of 40",
        "summary.json is of 600 held-out questions, and its settings of 200",
        "measured on 600 questions, and on 200 with the retriever emptied",
    ]
    change(run / "summary.json", after=measured(0.9, 0.9), steps=40, after_without_retriever=None)
    assert read_entry(run, "run").faults == ["never measured with the retriever emptied"]
    change(run / "summary.json", after_without_retriever=measured(0.0, 0.0) | {"n": 1})
    assert read_entry(run, "run").faults == [
        "with the retriever emptied, it counts 1 questions, but by hops 200",
        "measured on 200 questions, and on 1 with the retriever emptied",
    ]
    change(run / "summary.json", after_without_retriever=measured(0.5, 0.5) | {"em": 0.0})
    told = "with the retriever emptied, its exact match is 0.000, but by hops it comes to 0.500"
    assert read_entry(run, "run").faults == [told]


def test_a_summary_that_the_log_contradicts_is_named(tmp_path):
    run = hand_in(tmp_path / "run", 0.98, 0.98)
    rows = [{"step": 20, "eval/em": 0.98}, {"step": 40, "seconds": 1.0}, {"step": 40, "eval/em": 0.41}]
    write_lines(run / "metrics.jsonl", rows)
    told = "its exact match is 0.980 in summary.json, but 0.410 at the end of metrics.jsonl"
    assert read_entry(run, "run").faults == [told]
    write_lines(run / "metrics.jsonl", [*rows[:2], {"step": 40, "eval/em": 0.98}])
    assert read_entry(run, "run").faults == []
    (run / "metrics.jsonl").write_text("7\n")
    assert "metrics.jsonl is damaged" in read_entry(run, "run").faults[0]


def test_another_commit_is_named_and_changed_code_has_no_place(tmp_path):
    commits = {"anna": "a" * 40, "bela": "a" * 40, "carl": "b" * 40, "dora": "a" * 40 + "-dirty", "emil": None}
    for who, commit in commits.items():
        change(hand_in(tmp_path / who, 0.9, 0.9) / "config.json", git_commit=commit)
    keep_commit(tmp_path / "bela", "c" * 40)
    entries = {entry.who: entry for entry in board([tmp_path])}
    changed = {who: entry.changed for who, entry in entries.items()}
    assert changed == {"anna": [], "bela": ["commit ccccccccc"], "carl": ["commit bbbbbbbbb"], "dora": [],
                       "emil": ["an unknown commit"]}  # fmt: skip
    (fault,) = entries.pop("dora").faults
    assert fault == "commit aaaaaaaaa-dirty: its code was changed since, and nobody can tell how"
    assert not any(entry.faults for entry in entries.values())
    two = {entry.who: entry.changed for entry in board([tmp_path / "anna", tmp_path / "carl"])}
    assert two == {"anna": ["commit aaaaaaaaa"], "carl": ["commit bbbbbbbbb"]}  # no commit is the usual one
    (tmp_path / "bela" / "resumed_at.json").write_text("{}")
    assert "resumed_at.json is damaged" in read_entry(tmp_path / "bela", "bela").faults[0]


def test_a_run_that_was_resumed_for_more_steps_is_one_run(tmp_path):
    """config.json stays as the run began."""
    run = hand_in(tmp_path / "run", 0.9, 0.9, "--steps 60 --decay-steps 20")
    change(run / "config.json", steps=40)
    entry = read_entry(run, "run")
    assert entry.faults == [] and entry.changed == ["--steps 60"] and entry.steps == 60


def test_a_summary_of_an_older_version_is_read_by_its_config(tmp_path):
    """It held no settings; an older config.json has fewer options."""
    run = hand_in(tmp_path / "run", 0.9, 0.9, "--kl-coef 0.01")
    change(run / "summary.json", settings=..., cold_start_seconds=...)
    change(run / "config.json", search_cost=..., stratify=...)
    entry = read_entry(run, "run")
    assert entry.faults == [] and entry.changed == ["--kl-coef 0.01"] and entry.seconds == 120.4
    change(run / "config.json", steps=20)  # it was resumed for more
    assert read_entry(run, "run").faults == [] and read_entry(run, "run").steps == 40
    change(run / "config.json", steps=60)
    assert read_entry(run, "run").faults == ["summary.json is of 40 steps, and its settings of 60"]
    change(run / "config.json", steps=40, method="evil")
    assert "config.json is damaged: method is 'evil'" in read_entry(run, "run").faults[0]
    (run / "config.json").unlink()
    entry = read_entry(run, "run")
    assert entry.em == 0.9 and entry.changed is None and "nobody can tell how it was trained" in entry.faults[0]


def test_a_summary_alone_tells_its_settings(tmp_path):
    run = hand_in(tmp_path / "run", 0.9, 0.9, "--kl-coef 0.01")
    (run / "config.json").unlink()
    assert read_entry(run, "run").changed == ["--kl-coef 0.01"] and read_entry(run, "run").faults == []


def test_runs_are_found_once_and_called_by_their_folders(tmp_path):
    for who in ("a/run", "b/run", "b/deep/er/run"):
        hand_in(tmp_path / who, 0.9, 0.9)
    (tmp_path / "a" / "run" / "evaluation").mkdir()
    (tmp_path / "a" / "run" / "evaluation" / "summary.json").write_text("{}")  # inside of a run nothing is looked for
    os.symlink(tmp_path, tmp_path / "a" / "round")
    assert sorted(e.who for e in board([tmp_path])) == ["a/run", "b/deep/er/run", "b/run"]
    one_each = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a"]
    assert sorted(e.who for e in board(one_each)) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    assert [e.who for e in board([tmp_path / "a" / "run"])] == ["run"]


def test_a_copied_run_is_named_on_both_lines(tmp_path):
    """The same settings and figures are no fault: the default run is the same on many machines, but not its seconds."""
    for who in ("anna", "bela", "carl", "dora"):
        run = hand_in(tmp_path / who, 0.9, 0.9)
        write_lines(run / "metrics.jsonl", [{"step": 1, "seconds": 2.5 if who < "c" else len(who) + ord(who[0]) / 7}])
    faults = {entry.who: entry.faults for entry in board([tmp_path])}
    assert faults["carl"] == faults["dora"] == []
    assert "the same run as bela" in faults["anna"][0] and "the same run as anna" in faults["bela"][0]
    again = tmp_path / "dora" / "metrics.jsonl"
    again.write_text('\n{"seconds": 2.50, "step": 1}\n\n')  # the same numbers in other bytes
    assert "the same run as anna, bela, to the last digit" in {e.who: e.faults for e in board([tmp_path])}["dora"][0]


def test_on_eighty_columns_what_was_changed_stands_beneath():
    flags = ["--model Qwen2.5-3B", "--no-normalize-std", "--learning-rate 0.0001"]
    hops = {hop: 0.5 for hop in page.HOPS}
    entries = [Entry(who, em=0.5, hops=hops, emptied=0.1, steps=500, seconds=12345.0, changed=changed)
               for who, changed in (("a-student-of-a-long-name", flags), ("b", []))]  # fmt: skip
    table, beneath = terminal(entries, 80).split("\n\nchanged:\n")
    assert max(map(len, table.splitlines())) <= 80 and table.count("12345") == 2 and table.count("0.500") == 8
    assert beneath == f"a-student-of-a-long-name: {' '.join(flags)}"


def test_equals_share_a_place_and_the_others_have_none():
    ems = [(0.9, []), (0.9, ["x"]), (0.9, []), (0.8, []), (None, ["x"])]
    assert page.places([Entry(str(n), em=em, faults=faults) for n, (em, faults) in enumerate(ems)]) == [
        "1",
        "-",
        "1",
        "3",
        "-",
    ]


def test_foreign_text_stays_on_its_line_and_sends_no_codes():
    entry = Entry("a\x1b[2J\nb", em=0.5, changed=["--reward [red]x[/red]\n.py:y"], faults=["c\rd\u202e"])
    shown = terminal([entry], 200)
    assert "\x1b" not in shown and "a\\x1b[2J b" in shown and "[red]x[/red] .py:y" in shown and "\\u202e" in shown
    assert len(shown.splitlines()) == 6


@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_a_changed_file_leaves_its_line_on_the_board(tmp_path, name):
    """A part of it becomes something else, each part in turn; the others are listed as ever."""
    run, others = hand_in(tmp_path / "class" / "anna", 0.9, 0.9), hand_in(tmp_path / "class" / "bela", 0.8, 0.8)
    sound = json.loads((run / name).read_text())
    junk = random.Random(0)
    for place in places(sound):
        (run / name).write_text(json.dumps(changed(sound, place, junk.choice(JUNK))))
        entries = {entry.who: entry for entry in board([tmp_path / "class"])}
        assert entries.keys() == {"anna", others.name} and entries["bela"].em == 0.8
        assert len(terminal(list(entries.values()), 100).splitlines()) >= 4
        assert all("\n" not in fault and len(fault) < 600 for fault in entries["anna"].faults)


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "name the folder"), (["nowhere"], "there is no folder nowhere"), (["{}"], "there is no run below"),
     (["{}", "--output", "{}"], "is a folder; name a file"), (["{}", "--output", "{}/no/x.html"], "there is no folder"),
     (["{}", "--outptu", "x"], "did you mean --output?")],
)  # fmt: skip
def test_bad_arguments_are_told_in_a_sentence(tmp_path, words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        classroom.main([word.format(tmp_path) for word in words])


def test_a_list_of_no_folders_is_told():
    with pytest.raises(UserError, match="name the folder"):
        classroom.main([","])
