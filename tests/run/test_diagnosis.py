"""The diagnosis at a run's start: it speaks of a model that writes no tag, and is silent on one that does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from helpers.sessions import session_of, train_step

from searchr1_mini.chat.terminal import verdict
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.models.names import is_instructed
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.pages.report import write_report
from searchr1_mini.run.diagnosis import DIAGNOSIS, diagnose, tell, tell_again, what_to_try
from searchr1_mini.run.watch import WINDOW, Watch

CONFIG = resolve(TrainConfig())
WITHOUT_TAGS = {
    "dataset": "world", "template": "short", "load_in_4bit": False, "gradient_checkpointing": False,
    "max_new_tokens": 8, "max_total_tokens": 400, "max_observation_tokens": 99,
}  # fmt: skip


def rollout_of(text: str, answer: str | None = None, queries: int = 0, invalid: int = 1) -> Trajectory:
    segments = [Segment("prompt", [1], text="Question: Who?\n"), Segment("policy", [2], [0.0], text)]
    return Trajectory("q", segments, "answer" if answer else "turns", answer, ["q"] * queries, invalid_actions=invalid)


FORMLESS = rollout_of("It is Paris.")
RIGHT_FORM = rollout_of("<answer> Paris </answer>", "Paris", invalid=0)


def test_a_diagnosis_shows_a_rollout_and_what_to_try():
    told = diagnose([FORMLESS] * 20, CONFIG, is_instructed=False)
    assert "0% of 20 turns" in told and "It is Paris." in told and "no answer (turns)" in told
    order = [told.index(word) for word in ("--cold-start 200", "-Instruct", "--reward format", "--group-size 16")]
    assert order == sorted(order)


def test_what_the_run_does_already_is_not_advised():
    config = with_options(CONFIG, reward="format", cold_start=300)
    told = diagnose([FORMLESS] * 20, config, is_instructed=True)
    assert "-Instruct" not in told and "--reward format" not in told and "--cold-start 600" in told
    assert "--cold-start" not in diagnose([FORMLESS] * 20, with_options(CONFIG, method="r1"), is_instructed=True)


def test_equal_rewards_of_valid_turns_are_told_otherwise():
    told = diagnose([RIGHT_FORM] * 20, CONFIG, True, [0.0] * 20)
    assert "all 20 rewards are equal (0)" in told and "--reward f1" in told and "--reward format" not in told


@pytest.mark.parametrize("rewards", [None, [1.0] * 20, [0.0] * 19 + [1.0], [0.0] * 4])
def test_a_model_that_writes_tags_and_learns_is_not_told(rewards):
    assert diagnose([RIGHT_FORM] * 20, CONFIG, True, rewards) is None


def cut(text: str, n_tokens: int) -> Trajectory:
    trajectory = rollout_of(text)
    trajectory.segments[1].token_ids = [2] * n_tokens
    return trajectory


@pytest.mark.parametrize(
    ("text", "n_tokens", "is_told"),
    [
        ("<think> I know this. </think> <answer> Rosa Yates </answer", 16, True),
        ("<think> I know this. </think> <answer> Rosa", 9, True),  # the context was full
        ("It is Paris, which is", 16, True),
        ("It is Paris.", 9, False),
        ("<answer> </answer>", 9, False),
    ],
)
def test_turns_that_were_cut_are_told_before_the_form(text, n_tokens, is_told):
    config = with_options(CONFIG, max_new_tokens=16)
    told = diagnose([cut(text, n_tokens)] * 20, config, False)
    assert ("20 were cut at --max-new-tokens 16" in told) == ("1. --max-new-tokens 100" in told) == is_told
    few = diagnose([cut(text, n_tokens)] * 9 + [FORMLESS] * 11, config, False)
    assert "--max-new-tokens" not in few
    valid = replace(cut("<answer> Paris </answer>", 16), answer="Paris", invalid_actions=0)
    assert "--max-new-tokens" not in diagnose([valid] * 20, config, False, [0.0] * 20)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Qwen/Qwen2.5-3B", False),
        ("Qwen/Qwen2.5-3B-Instruct", True),
        ("SmolLM2-135M-Instruct.Q4_1-0a1b", True),
        ("meta-llama/Llama-2-7b-chat-hf", True),
        ("google/gemma-3-1b-it", True),
        ("Qwen/Qwen3-4B", True),
        ("Qwen/Qwen3-4B-Base", False),
        ("chat/merged", False),
        ("tiny_base", False),
    ],
)
def test_a_models_name_tells_whether_it_is_instructed(name, is_one):
    """Qwen2.5's bases have a chat template too."""
    assert is_instructed(name) == is_one


def test_hostile_text_in_a_diagnosis_is_made_safe():
    told = diagnose([rollout_of("a\x1b[31m\nb")] * 8, CONFIG, True)
    assert "\x1b" not in told and "wrote: a\\x1b[31m b" in told


def test_the_tiny_base_gets_no_diagnosis(tmp_path, capsys):
    run = session_of(tmp_path / "run", eval_questions=20, reward="em")
    run.evaluations.measure_before(run)
    train_step(run, 1)
    assert "diagnosis" not in capsys.readouterr().out and not (run.folder / DIAGNOSIS).exists()


def test_a_random_model_is_diagnosed_at_once_and_in_the_report(tmp_path, random_qwen2, capsys):
    run = session_of(tmp_path / "run", **WITHOUT_TAGS, model=str(random_qwen2), reward="em", steps=1)
    run.policy.tokenizer.chat_template = "{{ messages[0].content }}"  # which does not make it an instructed model
    for measure in (run.evaluations.measure_before, lambda run: train_step(run, 1)):
        measure(run)
        told = capsys.readouterr().out
        assert "diagnosis: only 0%" in told and "an -Instruct model" in told
    assert "what to try" in write_report(run.folder).read_text()


def test_a_cold_start_is_not_advised_while_it_is_still_to_come(tmp_path, random_qwen2, capsys):
    run = session_of(tmp_path / "run", **WITHOUT_TAGS, model=str(random_qwen2), cold_start=8)
    run.evaluations.measure_before(run)
    assert "diagnosis" not in capsys.readouterr().out


def test_a_diagnosis_is_repeated_at_the_end_only_while_it_holds(tmp_path, capsys):
    tell(tmp_path, "diagnosis: so")
    tell_again(tmp_path, {"em": 0.0, "valid_actions": 0.0})
    assert capsys.readouterr().out.count("diagnosis: so") == 2
    tell_again(tmp_path, {"em": 0.5, "valid_actions": 0.9})
    assert capsys.readouterr().out == "" and not (tmp_path / DIAGNOSIS).exists()
    tell_again(tmp_path, {"em": 0.0, "valid_actions": 0.0})


@pytest.mark.parametrize(
    ("trajectory", "rewards", "after", "holds"),
    [
        (FORMLESS, None, {"em": 0.0, "valid_actions": 0.05}, True),
        (FORMLESS, None, {"em": 0.0, "valid_actions": 0.95}, False),  # it learned the form, and no answer
        (RIGHT_FORM, [0.0] * 20, {"em": 0.0, "valid_actions": 0.95}, True),
        (RIGHT_FORM, [0.0] * 20, {"em": 0.1, "valid_actions": 0.05}, False),
    ],
)
def test_each_kind_of_diagnosis_holds_by_its_own_figure(tmp_path, capsys, trajectory, rewards, after, holds):
    tell(tmp_path, diagnose([trajectory] * 20, CONFIG, True, rewards))
    capsys.readouterr()
    tell_again(tmp_path, after)
    assert ("diagnosis: " in capsys.readouterr().out) == (tmp_path / DIAGNOSIS).exists() == holds


def test_the_chat_says_why_there_is_no_answer():
    assert "--cold-start" in verdict(FORMLESS)
    assert verdict(RIGHT_FORM) == "Paris"
    assert verdict(rollout_of("<search> q </search>", queries=1, invalid=0)) == "no answer: no turn was left"


def test_the_chat_says_so_of_methods_that_search_by_themselves():
    """Their queries are none of the model's actions; what it is advised depends on what it is."""
    told = verdict(rollout_of("It is Paris.", queries=1), is_instructed=False)
    assert "does not know the form; take an -Instruct model, or one that was trained with --cold-start 200" in told
    told = verdict(rollout_of("It is Paris.", queries=1), is_instructed=True)
    assert "does not know the form; take one that was trained with --cold-start 200" in told and "Instruct" not in told


def test_the_watch_sees_invalid_actions_from_the_start():
    def warned(*values):
        watch = Watch()
        return {name for step, value in enumerate(values, 1) for name in watch.see(step, {"valid_actions": value})}

    assert "invalid actions" in warned(*[0.0] * WINDOW)
    assert "invalid actions" in warned(*[0.9] * WINDOW, *[0.3] * WINDOW)
    assert not warned(*[0.9] * 20) and not warned(*[0.6] * 20)


def test_remedies_are_flags_that_the_run_can_take():
    assert "--dynamic-sampling" in diagnose([FORMLESS] * 20, CONFIG, False)
    assert "--dynamic-sampling" not in diagnose([FORMLESS] * 20, resolve(make(TrainConfig, algorithm="ppo")), False)


@pytest.mark.parametrize(
    ("flags", "not_told"),
    [
        *(([f"--retriever {name}"], ["--cold-start"]) for name in ("none", "empty", "random", "oracle")),
        (["--baseline none"], ["--dynamic-sampling"]),
        (["--baseline batch"], ["--dynamic-sampling"]),
        (["--turn-coef 1"], ["--dynamic-sampling"]),
        (["--algorithm ppo"], ["--dynamic-sampling"]),
        (["--group-size 10000", "--questions-per-step 100"], ["--group-size", "--dynamic-sampling"]),
        (["--algorithm rejection-sampling"], ["--reward", "--dynamic-sampling"]),
        (["--bug reward-from-whole-text"], ["--reward"]),
        (["--method r1"], ["--cold-start"]),
        (["--dynamic-sampling 4", "--reward f1"], ["--dynamic-sampling", "--reward f1"]),
        (["--preset laptop-llm", "--method r1"], ["--cold-start"]),
        ([], []),
    ],
    ids=str,
)
def test_every_remedy_is_one_that_the_run_accepts(flags, not_told):
    given, unasked = parse_asked(TrainConfig, "train.py", "", " ".join(flags).split())
    config = resolve(given, unasked)
    for is_formless in (True, False):
        told = "\n".join(what_to_try(config, is_formless, is_instructed=True))
        assert [flag for flag in not_told if flag in told] == []
        remedies = re.findall(r"--([a-z-]+) (\w+)", told)
        assert remedies
        for flag, value in remedies:
            name = flag.replace("-", "_")
            resolve(with_options(given, **{name: int(value) if value.isdecimal() else value}), unasked - {name})


def test_asking_what_a_run_accepts_leaves_its_start_alone():
    config = with_options(CONFIG, init="gone", resume=True, output_dir="gone")
    assert what_to_try(config, True, True) == what_to_try(CONFIG, True, True)


def test_a_run_that_imitates_is_not_told_of_formless_turns(tmp_path, random_qwen2):
    flags = WITHOUT_TAGS | {"model": str(random_qwen2), "eval_questions": 8}
    for algorithm, is_told in [("sft", False), ("rejection-sampling", True), ("grpo", True)]:
        run = session_of(tmp_path / algorithm, **flags)
        run.config = with_options(run.config, algorithm=algorithm)
        run.evaluations.measure_before(run)
        assert (tmp_path / algorithm / DIAGNOSIS).is_file() == is_told
