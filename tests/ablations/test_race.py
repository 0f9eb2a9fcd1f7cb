"""The race: its rules, what a setting needed seed by seed, its row, and a race that is broken off and goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from helpers.files import write_lines
from helpers.report_runs import SUMMARY

from searchr1_mini import race
from searchr1_mini.ablations import races
from searchr1_mini.ablations.races import Finish, check_rules, describe_finish, middle, read_finish, row, seed_config
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.storage.commit import keep_commit
from searchr1_mini.storage.files import read_metrics, write_json_atomic

DIVERGING = """
import torch
def odd(trajectory, example):
    if "/7001/" in example.id:
        torch.nn.utils.clip_grad_norm_ = lambda *_: torch.tensor(torch.inf)
    return sum(trajectory.token_ids) % 2
"""
FLAGS = "--steps 2 --questions-per-step 4 --group-size 2 --max-new-tokens 4 --max-total-tokens 300".split()


@pytest.fixture
def raced(monkeypatch, capfd):
    """Races two seeds on fewer and shorter questions, with what it takes to get there; returns what it said."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(races, "SEEDS", (7001, 7002))
    for name, value in {"eval_questions": 4, "eval_every": 1, "save_every": 1, "memory_check": False}.items():
        monkeypatch.setitem(races.OF_THE_RACE, name, value)

    def run(target: float, *words: object) -> str:
        monkeypatch.setattr(races, "TARGETS", dict.fromkeys(races.TARGETS, target))
        race.main(list(map(str, words)))
        return "".join(capfd.readouterr())

    return run


def test_a_race_trains_every_seed_goes_on_and_ends_in_a_row(tmp_path, raced):
    out = tmp_path / "race"
    done = raced(0, "--output-dir", out, "--jobs", 2, "--", *FLAGS)
    assert "[2/2]" in done and "seed 7002 got there after step 1" in done
    written = json.loads((out / "race.json").read_text())
    assert written["row"] in done.splitlines() and written["counts"] is True
    assert written["row"].startswith(f"| `{' '.join(written['flags'])}` | ") and "| 2 of 2 | 0.000 |" in written["row"]
    assert written["row"].endswith(" cores, 2 runs at a time, 1 thread a run |")
    assert written["machine"]["threads"] == [1]
    assert set(" ".join(written["flags"]).split()) == set(FLAGS) and " ".join(FLAGS) in written["command"]
    for seed, told in zip((7001, 7002), written["seeds"], strict=True):
        folder = out / f"seed-{seed}"
        assert json.loads((folder / "config.json").read_text())["seed"] == told["seed"] == seed
        first, _ = read_metrics(folder / "metrics.jsonl")
        assert [told[name] for name in ("step", *races.COUNTED)] == [1, *(first[name] for name in races.COUNTED)]

    (out / "seed-7002" / "summary.json").unlink()  # as if it had been killed at its end
    kept = (out / "seed-7001" / "summary.json").stat().st_mtime_ns
    again = raced(1, "--output-dir", out, "--jobs=2", *FLAGS)
    assert "[2/2] race, seed 7002" in again and "[1/2]" not in again
    assert (out / "seed-7001" / "summary.json").stat().st_mtime_ns == kept
    assert [line["step"] for line in read_metrics(out / "seed-7002" / "metrics.jsonl")] == [1, 2]
    assert again.count("never got there; nearest") == 2 and "it does not count" in again
    assert "| never | never | never | 0 of 2 | 0.000 |" in json.loads((out / "race.json").read_text())["row"]

    saved = json.loads((out / "seed-7002" / "config.json").read_text())
    write_json_atomic(out / "seed-7002" / "config.json", saved | {"git_commit": "b" * 40})
    assert "the seeds ran at different commits" in raced(1, "--output-dir", out, "--jobs=2", *FLAGS)
    assert "b" * 40 in json.loads((out / "race.json").read_text())["commits"]
    for seed in (7001, 7002):
        write_json_atomic(out / f"seed-{seed}" / "config.json", saved | {"git_commit": None})
    assert "the seeds ran at an unknown commit; race" in raced(1, "--output-dir", out, "--jobs=2", *FLAGS)
    keep_commit(out / "seed-7001", "c" * 40)
    assert "different commits (an unknown commit, ccccccccc)" in raced(1, "--output-dir", out, "--jobs=2", *FLAGS)
    assert json.loads((out / "race.json").read_text())["commits"] == [None, "c" * 40]

    with pytest.raises(UserError, match="holds the setting"):
        raced(1, "--output-dir", out, *FLAGS)


def write_seed(folder: Path, steps: list[tuple], emptied: float | None = 0.0) -> Path:
    """A run's metrics: (trained tokens, updates, seconds, exact match on 1 hop and on 2 or None) of each step."""
    folder.mkdir()
    rows = []
    for step, (tokens, updates, seconds, ems) in enumerate(steps, start=1):
        rows.append({"step": step, "trained_tokens": tokens, "updates": updates, "seconds": seconds})
        rows += [{"step": step, "eval/world-1hop/em": ems[0], "eval/world-2hop/em": ems[1]}] if ems else []
    write_lines(folder / "metrics.jsonl", rows)
    after = None if emptied is None else {**SUMMARY, "em": emptied}
    summary = {"before": SUMMARY, "after": SUMMARY, "after_without_retriever": after, "steps": len(steps)}
    (folder / "summary.json").write_text(json.dumps(summary | {"train_seconds": 1.0, "peak_memory_gb": 1.0}))
    return folder


def test_what_a_seed_needed_ends_where_every_target_is_reached(tmp_path):
    """At the second step 2 hops are there and 1 hop is not, at the fourth both; what comes then is not counted."""
    steps = [(10, 2, 1.0, None), (20, 2, 2.0, (0.89, 0.95)), (0, 0, 0.5, None), (40, 1, 4.0, (0.90, 0.85)),
             (80, 2, 8.0, (0.99, 0.99))]  # fmt: skip
    finish = read_finish(write_seed(tmp_path / "s", steps, emptied=0.02), 7001)
    assert (finish.step, finish.trained_tokens, finish.updates, finish.seconds) == (4, 70, 5, 7.5)
    assert finish.em == {"world-1hop": 0.90, "world-2hop": 0.85} and finish.after == 0.5 and finish.counts
    assert describe_finish(finish).startswith(
        "seed 7001 got there after step 4 (0.900 on 1 hop, 0.850 on 2 hops): 70 tokens, 5 "
    )


def test_a_seed_that_never_gets_there_tells_the_nearest(tmp_path):
    steps = [(10, 2, 1.0, (0.95, 0.80)), (10, 2, 1.0, (0.88, 0.84)), (10, 2, 1.0, (0.80, 0.99))]
    finish = read_finish(write_seed(tmp_path / "s", steps), 7003)
    assert finish.step is None and not finish.counts and finish.em == {"world-1hop": 0.88, "world-2hop": 0.84}
    told = "seed 7003 never got there; nearest 0.880 on 1 hop, 0.840 on 2 hops; 0.000 emptied"
    assert describe_finish(finish) == told
    unmeasured = read_finish(write_seed(tmp_path / "u", [(10, 2, 1.0, None)]), 7001)
    assert describe_finish(unmeasured) == "seed 7001 never got there; nothing was measured; 0.000 emptied"


@pytest.mark.parametrize(("emptied", "told"), [(0.03, "; 0.030 emptied, which is above 0.02"), (None, "s")])
def test_a_seed_that_answers_without_searching_does_not_count(tmp_path, emptied, told):
    finish = read_finish(write_seed(tmp_path / "s", [(10, 2, 1.0, (1.0, 1.0))], emptied), 7001)
    assert finish.step == 1 and not finish.counts and describe_finish(finish).endswith(told)


def test_a_seed_that_diverged_is_told_by_what_it_logged(tmp_path):
    folder = write_seed(tmp_path / "s", [(10, 2, 1.0, (0.5, 0.5))])
    (folder / "summary.json").unlink()
    finish = read_finish(folder, 7002, "the last 10 updates were thrown away")
    assert describe_finish(finish) == "seed 7002 diverged: the last 10 updates were thrown away" and not finish.counts


def test_metrics_without_what_is_counted_are_told(tmp_path):
    folder = write_seed(tmp_path / "s", [(10, 2, 1.0, (1.0, 1.0))])
    write_lines(folder / "metrics.jsonl", [{"step": 1, "seconds": 1.0}])
    with pytest.raises(UserError, match="holds no trained_tokens of step 1; race the setting anew"):
        read_finish(folder, 7001)


def finished(seed: int, tokens: float | None, emptied: float | None = 0.007) -> Finish:
    figures = (None, None, None, None) if tokens is None else (5, tokens, tokens / 100, tokens / 1000)
    return Finish(seed, *figures, em={}, after=0.9, emptied=emptied)


def test_the_row_has_median_and_range_and_drops_no_seed():
    three = [finished(7001, 3000.0), finished(7002, 1000.0), finished(7003, 12_000.0)]
    assert row(["--kl-coef 0.0"], three, "cpu") == (
        "| `--kl-coef 0.0` | 3,000 (1,000 to 12,000) | 30 (10 to 120) | 3 (1 to 12) | 3 of 3 | 0.007 | cpu |"
    )
    one_never = [finished(7001, 3000.0), finished(7002, None), finished(7003, 12_000.0)]
    assert "| 12,000 (3,000 to never) | 120 (30 to never) | 12 (3 to never) | 2 of 3 |" in row([], one_never, "cpu")
    two_never = [finished(7001, None), finished(7002, None), finished(7003, 12_000.0)]
    assert row([], two_never, "cpu").startswith("| the default run | never (12,000 to never) |")
    assert math.isinf(middle(two_never, "seconds"))
    diverged = Finish(7002, None, None, None, None, em={}, diverged="x")
    assert "| 2 of 3 | not measured on every seed | cpu |" in row([], [three[0], diverged, three[2]], "cpu")


def test_a_seed_that_does_not_count_is_one_that_never_got_there():
    """It got there by answering without a search, or nobody measured whether it does."""
    guessed = [finished(seed, 3000.0, emptied=0.6) for seed in races.SEEDS]
    assert row([], guessed, "cpu") == "| the default run | never | never | never | 0 of 3 | 0.600 | cpu |"
    assert all(math.isinf(middle(guessed, name)) for name in races.COUNTED)
    one = [finished(7001, 3000.0, emptied=None), finished(7002, 1000.0), finished(7003, 12_000.0)]
    assert "| 12,000 (1,000 to never) |" in row([], one, "cpu")
    assert "| 2 of 3 | not measured on every seed | cpu |" in row([], one, "cpu")


def test_every_seed_is_the_same_setting_on_a_world_of_its_own(tmp_path):
    setting, unasked = parse_asked(TrainConfig, "train.py", "", ["--algorithm", "ppo", "--learning-rate", "0.002"])
    check_rules(setting)
    configs = [seed_config(setting, unasked, seed, tmp_path) for seed in races.SEEDS]
    assert len({config.optimization.seed for config in configs} - {0, 1, 2, 510, 511, 512, 513}) == 3
    assert {config.optimization.learning_rate for config in configs} == {0.002}
    assert {config.data.eval_questions for config in configs} == {400} and configs[0].logging.eval_every == 5
    assert len({config.run.output_dir for config in configs}) == 3


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--seed 3", "--seed 3 is against the rules: every setting answers the same questions"),
        ("--preset laptop-llm", "the race begins with the tiny base"), ("--init runs/x", "the tiny base as it ships"),
        ("--world-hops 1", "the same questions"), ("--retriever oracle", "the same engine"),
        ("--cold-start 20", "told by the reward alone"), ("--algorithm sft", "imitates"),
        ("--mystery 7", "the method stays sound"), ("--no-mask-observations", "the method stays sound"),
        ("--eval-every 1", "the race sees to that itself"), ("-- --output-dir x", "the race sees to that itself"),
        ("--learning-rat 1", "did you mean --learning-rate?"), ("--jobs 0", "at least 1"), ("--jobs", "needs a value"),
        ("--mini-batches 99", "is more than --questions-per-step"), ("fast", "unexpected argument 'fast'"),
    ],
)  # fmt: skip
def test_what_is_against_the_rules_is_told_in_a_sentence(flags, told):
    with pytest.raises(UserError, match=told):
        race.main(flags.split())


def test_words_are_the_races_own_or_the_settings():
    words = "--jobs=2 --output_dir a --steps 3 -- --jobs 4".split()
    assert race.split(words) == (["--output-dir", "a", "--jobs", "2"], ["--steps", "3", "--jobs", "4"])
    assert race.split(["--help", "--steps", "3"]) == (["--help"], ["--steps", "3"])


def test_a_seed_whose_run_diverges_does_not_end_the_race(tmp_path, raced):
    """In the first seed's world no gradient has a finite norm."""
    (tmp_path / "my_rewards.py").write_text(DIVERGING)
    flags = ["--reward", f"{tmp_path / 'my_rewards.py'}:odd", "--max-skipped-updates", 1]
    done = raced(0, "--output-dir", tmp_path / "race", *FLAGS, *flags)
    assert "seed 7001 diverged: the last 2 updates" in done and "seed 7002 got there" in done
    assert "| 1 of 2 | not measured on every seed |" in done and "it does not count" in done
    written = (tmp_path / "race" / "race.json").read_text()  # for others to read
    assert str(tmp_path / "my_rewards.py") not in written and "--reward my_rewards.py:odd" in json.loads(written)["row"]
    first, second = json.loads(written)["seeds"]
    assert first["diverged"] and first["emptied"] is None and second["diverged"] is None and second["emptied"] == 0
    again = raced(0, "--output-dir", tmp_path / "race", *FLAGS, *flags)  # it is not tried again until it goes well
    assert "[2/2]" not in again and "seed 7001 diverged: the last 2" in again


def test_the_row_tells_every_device_and_number_of_threads():
    machine = {"devices": ["cpu"], "threads": [None], "cores": 4, "jobs": 1}
    assert races.on_machine(machine) == "cpu, 4 cores"
    machine |= {"devices": ["NVIDIA H100", "cpu"], "threads": [1, 2, None], "jobs": 3}
    assert races.on_machine(machine) == "NVIDIA H100 and cpu, 4 cores, 3 runs at a time, 1 thread or 2 threads a run"


def test_seeds_of_two_rewards_do_not_count(tmp_path, raced):
    """A reward that is edited between two seeds, and one that is edited before the same command is given again."""
    reward, out = tmp_path / "my_rewards.py", tmp_path / "race"
    reward.write_text("def one(trajectory, example):\n    return 1.0\n")
    out.mkdir()

    def raced_on(*contents: str) -> tuple[str, dict]:
        for seed, content in zip(races.SEEDS, contents, strict=True):
            hashes = {"contents of my_rewards.py": content, "passages": str(seed)}
            write_json_atomic(out / f"seed-{seed}" / "config.json", {"data_hashes": hashes})
        told = raced(0, "--output-dir", out, "--reward", f"{reward}:one")
        return told, json.loads((out / "race.json").read_text())

    for seed in races.SEEDS:
        write_seed(out / f"seed-{seed}", [(10, 2, 1.0, (1.0, 1.0))])
    told, written = raced_on("a", "b")
    assert "it does not count: the seeds ran with different contents of my_rewards.py; race the setting anew" in told
    assert written["counts"] is False and written["contents"] == {"my_rewards.py": ["a", "b"]}
    told, written = raced_on("a", "a")
    assert written["counts"] is True and "does not count" not in told
    assert written["contents"] == {"my_rewards.py": ["a"]}
    reward.write_text("def one(trajectory, example):\n    return 2.0\n")
    with pytest.raises(UserError, match=r"holds the setting \{'contents': \{'my_rewards\.py': "):
        raced_on("a", "a")
