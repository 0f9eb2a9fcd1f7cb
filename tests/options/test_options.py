"""Every option of every command has a range; values that are none are refused, and options that a run does not read."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from searchr1_mini.core.errors import UserError
from searchr1_mini.export import ExportConfig
from searchr1_mini.options.cli import parse, parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.needs import NEEDS, check_ranges, convert, split_union
from searchr1_mini.options.nested import (
    default_value,
    flat,
    get,
    make,
    options_of,
    sections_of,
    type_hints,
    with_options,
)
from searchr1_mini.options.option_files import MOST_BYTES
from searchr1_mini.options.resolve import resolve, saved_config
from searchr1_mini.options.retrieval_config import MetricsConfig, ServerConfig
from searchr1_mini.race import RaceConfig
from searchr1_mini.report import ReportConfig
from searchr1_mini.retrievers.names import ENGINES, PROBES
from searchr1_mini.run import imitation
from searchr1_mini.run.opening import compared
from searchr1_mini.run.training import train
from searchr1_mini.storage.checkpoint import prepare_run_dir
from searchr1_mini.storage.files import write_json_atomic

CONFIGS = (TrainConfig, EvalConfig, ServerConfig, MetricsConfig, ExportConfig, ReportConfig, RaceConfig)
NUMBERS = [
    (config, name, kind)
    for config in CONFIGS
    for name, hint in type_hints(config).items()
    if (kind := split_union(hint)[0]) in (int, float)
]
HUGE = ("18446744073709551615", "1e26", "1e308", "1e400", "9" * 5000, "-1e308", "1" + "0" * 400)
NO_NUMBERS = (
    "0x10",
    "\u0661\u0662",
    "\uff15",
    " 5 ",
    "5\n",
    "5,0",
    "1__0",
    "0b1",
    "\u00bd",
    "ten",
    "nan",
    "inf",
    "-inf",
    "\0",
)


@pytest.mark.parametrize(("config", "name", "kind"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_every_number_has_bounds_and_takes_only_numbers_in_them(config, name, kind):
    """What is far too large is refused in a short sentence that names the flag; what is at the bound passes."""
    option = options_of(config)[name]
    assert option.metadata["most"] is not None and None in (option.metadata["least"], option.metadata["above"])
    assert {option.metadata["least"], option.metadata["above"]} != {None}
    flag = "--" + name.replace("_", "-")
    for text in (*HUGE, *NO_NUMBERS):
        with pytest.raises(UserError) as told:
            check_ranges(make(config, **{name: convert(flag, text, kind)}))
        assert str(told.value).startswith(flag) and len(str(told.value)) < 200, text
    check_ranges(make(config, **{name: kind(option.metadata["most"])}))


@pytest.mark.parametrize("name", [name for config, name, _ in NUMBERS if config is TrainConfig])
def test_the_largest_value_of_each_option_resolves_or_is_refused(name):
    option = options_of(TrainConfig)[name]
    kind = split_union(type_hints(TrainConfig)[name])[0]
    for value in map(kind, (option.metadata["most"], option.metadata["least"] or (1e-300 if kind is float else 0))):
        try:
            config = resolve(make(TrainConfig, **{name: value}))
        except UserError as error:
            assert "\n" not in str(error) and "--" in str(error)
        else:
            assert get(config, name) == value


@pytest.mark.parametrize("text", ["5", "+5", "1_000", "0005"])
def test_numbers_as_python_writes_them_are_taken(text):
    assert parse(TrainConfig, "train.py", "", ["--steps", text]).optimization.steps == int(text)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("algorithm", "PPO", "PPO: it must be one of grpo, ppo, sft, rejection-sampling; did you mean ppo?"),
        ("overlong", "penalise", "penalise: it must be one of keep, drop, penalize; did you mean penalize?"),
        ("surrogate", "CISPO", "did you mean cispo?"),
        ("ratio", "seq", "seq: it must be one of token, sequence"),
        ("observation", "Paper", "did you mean paper?"),
        ("dtype", "bf16", "bf16: it must be one of auto, fast, float32"),
        ("baseline", "rloo", "rloo: it must be one of group, leave-one-out"),
        ("reward", "f2", "or a part of your own as FILE.py:NAME; did you mean f1?"),
        ("bug", "no-turn", "did you mean no-last-turn?"),
        ("steps", "4", "4: it must be a whole number"),
        ("steps", 4.0, "4.0: it must be a whole number"),
        ("group_size", True, "True: it must be a whole number"),
        ("learning_rate", "3e-3", "3e-3: it must be a number"),
        ("check", 1, "1: it must be True or False"),
        ("seed", None, "None: it must be a whole number"),
        ("model", Path("tiny"), "tiny: it must be text"),
    ],
)
def test_python_may_give_what_a_flag_may_and_no_more(name, value, told):
    with pytest.raises(UserError) as refused:
        resolve(make(TrainConfig, **{name: value}))
    assert str(refused.value).startswith("--" + name.replace("_", "-")) and told in str(refused.value)
    assert resolve(make(TrainConfig, learning_rate=1)).optimization.learning_rate == 1


def test_the_choices_of_a_retriever_are_those_of_one_list():
    choices = [get_args(split_union(type_hints(config)["retriever"])[0]) for config in (TrainConfig, ServerConfig)]
    assert choices == [(*ENGINES, *PROBES), tuple(name for name in ENGINES if name != "http")]


# yaml


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 20_000, "nested too deeply"),
        (b"a: " + b"{b: " * 10_000, "nested too deeply"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nsteps: *c\n", "alias"),
        (b"steps: &x 3\nseed: *x\n", "alias"),
        (b"x" * (MOST_BYTES + 1), "larger than"),
        (b"steps: 3\nsteps: 4\n", "steps stands there twice"),
        (b"learning-rate: 3\nlearning_rate: 4\n", "learning_rate stands there twice"),
        (b"\tsteps: 3\n", "cannot read"),
        (b"1: 2\n", "unknown option 1"),
        (b"null: 2\n", "unknown option"),
        (b"[steps]: 2\n", "a name is not text"),
        (b"steps: 2020-01-01\n", "steps 2020-01-01: it must be a whole number"),
        (b"steps: 0x10\n", "steps 0x10: it must be a whole number"),
        (b"steps: 1:30\n", "steps 1:30: it must be a whole number"),
        (b"learning_rate: .inf\n", "learning_rate .inf: it must be a number"),
        (b"steps: !!python/object/apply:os.system [x]\n", "cannot read"),
        (b"model: !!binary aGk=\nsteps: !!set {a}\n", "steps must be a single value"),
        (b"\xff\xfe\x00s", "cannot read"),
        (b"\x00\x01\x02", "cannot read"),
        (b"--- a\n--- b\n", "cannot read"),
    ],
)
def test_a_hostile_yaml_file_is_told_in_one_sentence(tmp_path, content, told):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        parse(TrainConfig, "train.py", "", ["--config", str(file)])
    assert told in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_text_in_yaml_is_text_as_it_is_written(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("\ufeffoutput_dir: 010\ncorpus: 2020-01-01\ndata_path: 1_000\nmodel: 1e3\nworld-hops: 1,2\n")
    config = parse(TrainConfig, "train.py", "", ["--config", str(file)])
    assert (config.run.output_dir, config.data.corpus, config.data.data_path) == ("010", "2020-01-01", "1_000")
    assert (config.run.model, config.data.world_hops) == ("1e3", "1,2")


def test_an_endless_file_or_a_pipe_does_not_hang(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, told in (
        ("/dev/zero", "larger than"),
        (str(pipe), "nothing comes from it"),
        (str(tmp_path), "directory"),
    ):
        with pytest.raises(UserError, match=told):
            parse(TrainConfig, "train.py", "", ["--config", str(path)])
    read, write = os.pipe()  # as `--config <(..)` gives it
    threading.Thread(target=lambda: os.write(write, b"steps: 7\n") and os.close(write)).start()
    assert parse(TrainConfig, "train.py", "", ["--config", f"/dev/fd/{read}"]).optimization.steps == 7
    os.close(read)


# what is asked for is read


READ: set[str] = set()
LOOKS_AT_ALL = {
    f"searchr1_mini.{name}"
    for name in (
        "run.memory",
        "run.shape",
        "run.preflight",
        "options.resolve",
        "options.checks",
        "options.needs",
        "options.nested",
    )
}


def recording(config: TrainConfig) -> TrainConfig:
    """The same config, which notes which options are read, but for those who walk through all of them."""

    def read(self, name):
        if sys._getframe(1).f_globals["__name__"] not in LOOKS_AT_ALL | {"dataclasses"}:
            READ.add(name)
        return object.__getattribute__(self, name)

    sections = {name: getattr(config, name) for name in sections_of(TrainConfig)}
    noting = {
        name: type(part.__class__.__name__, (type(part),), {"__getattribute__": read})
        for name, part in sections.items()
    }
    return replace(config, **{name: noting[name](**vars(part)) for name, part in sections.items()})


SMALL = {
    "steps": 1, "questions_per_step": 1, "mini_batches": 1, "eval_questions": 1, "max_new_tokens": 3,
    "max_total_tokens": 400, "memory_check": False, "eval_every": 1, "tensorboard": False,
}  # fmt: skip
# rewards are all 0 here: an update has something to do because of the weight decay
RL = {"group_size": 2, "drop_zero_variance": False, "reward": "f1", "weight_decay": 0.01}
SITUATIONS = {
    "grpo": RL | {"max_turns": 1},
    "ppo, no KL": RL | {"max_turns": 1, "algorithm": "ppo", "kl_coef": 0.0},
    "sft": {"algorithm": "sft"},
    "rejection sampling": {"algorithm": "rejection-sampling", "demonstration_questions": 1, "max_turns": 1},
    "r1, groups of one": {"method": "r1", "group_size": 1, "weight_decay": 0.01},
    "no engine, RLOO": RL | {"max_turns": 1, "retriever": "none", "baseline": "leave-one-out"},
    "empty, all weights": RL | {"max_turns": 1, "retriever": "empty", "lora_rank": 0},
    "whole text": {
        "max_turns": 1,
        "group_size": 2,
        "drop_zero_variance": False,
        "bug": "reward-from-whole-text",
        "weight_decay": 0.01,
    },
    "all tokens": RL | {"max_turns": 1, "bug": "masked-in-denominator"},
}


def other_values(name: str, value) -> list:
    """Values of the option's type that are neither this one nor the default."""
    kind = split_union(type_hints(TrainConfig)[name])[0]
    tried = [True, False] if kind is bool else [*get_args(kind)]
    if kind in (int, float):
        tried = [kind(3), kind(17)] if kind is int else [0.125, 0.75, 1.5]
    return [each for each in tried if each not in (value, default_value(TrainConfig, name))]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_option_that_a_run_does_not_read_is_refused(tmp_path, monkeypatch, situation):
    """Which are read is seen by running: whatever else is asked for is refused, whoever wrote the list of needs."""
    monkeypatch.setattr(imitation, "exact_match", lambda *_: 1.0)  # so that there is something to imitate
    asked = make(TrainConfig, **SMALL | SITUATIONS[situation] | {"output_dir": str(tmp_path / "run")})
    READ.clear()
    train(recording(resolve(asked)))
    accepted = []
    for name in set(options_of(TrainConfig)) - READ - {"memory_check"}:  # that is off to keep this test small
        for value in other_values(name, get(asked, name)):
            try:
                resolve(with_options(asked, **{name: value}))
                accepted.append((name, value))
            except UserError as error:
                assert "--" + name.replace("_", "-") in str(error), name
    assert {"seed", "max_total_tokens", "learning_rate"} < READ and accepted == []


def needy(name: str) -> TrainConfig:
    """A config in which everything that an option needs is there."""
    values: dict = {"group_size": 4} if "group_size" in NEEDS[name] else {}
    for other, wanted in NEEDS[name].items():
        if isinstance(wanted, tuple) and default_value(TrainConfig, other) not in wanted:
            values[other] = wanted[0]
        elif isinstance(wanted, int) and default_value(TrainConfig, other) in (wanted, None) and other not in values:
            values[other] = wanted + 2
    if NEEDS[name].get("load_in_4bit"):
        values["model"] = "Qwen2.5-3B"
    return make(TrainConfig, **values)


@pytest.mark.parametrize("name", [name for name in NEEDS if name not in ("corpus", "check")])
def test_an_option_is_taken_where_its_needs_are_met(name):
    """And refused in one sentence that names it, where one of them is not."""
    config = needy(name)
    taken = refused = 0
    for value in other_values(name, get(resolve(config), name)) or ["1"]:
        try:
            resolve(with_options(config, **{name: value}))
            taken += 1
        except UserError as error:
            assert "does nothing" not in str(error), str(error)
    for other, wanted in NEEDS[name].items():
        kind = split_union(type_hints(TrainConfig)[other])[0]
        kinds = get_args(kind) or ((True, False) if kind is bool else (1, 0))
        unmet = [wanted] if isinstance(wanted, int) else [each for each in kinds if each not in wanted]
        for value in unmet if other != "dataset" else ["nq"]:
            asked = [{other: value, name: each} for each in other_values(name, None) or ["1"]]
            found = [told for told in (refusal(with_options(config, **changed)) for changed in asked) if told]
            assert found and all("--" in told and "\n" not in told for told in found), other
            refused += 1
    assert taken and refused


def refusal(config: TrainConfig) -> str | None:
    try:
        resolve(config)
    except UserError as error:
        return str(error)
    return None


def test_a_preset_may_set_idle_options_but_the_user_may_not(tmp_path):
    flags = ["--model", "Qwen2.5-3B", "--preset", "paper-ppo", "--algorithm", "grpo"]
    assert resolve(*parse_asked(TrainConfig, "train.py", "", flags)).ppo.critic_warmup_steps == 8
    for asked in (["--critic-warmup-steps", "9"], ["--critic_warmup_steps=9"]):
        with pytest.raises(UserError, match="--critic-warmup-steps does nothing with --algorithm grpo"):
            resolve(*parse_asked(TrainConfig, "train.py", "", [*flags, *asked]))
    file = tmp_path / "c.yaml"
    file.write_text("critic-warmup-steps: 9\n")
    with pytest.raises(UserError, match="--critic-warmup-steps does nothing"):
        resolve(*parse_asked(TrainConfig, "train.py", "", [*flags, "--config", str(file)]))


@pytest.mark.parametrize("config", CONFIGS)
def test_presets_belong_to_training_and_evaluation(config, tmp_path, capsys):
    has_presets = config in (TrainConfig, EvalConfig)
    with pytest.raises(SystemExit):
        parse(config, "some.py", "What it does.", ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--config FILE.yaml" in told and ("--preset laptop-llm|" in told) == has_presets
    if has_presets:
        assert parse(config, "some.py", "", ["--preset", "laptop-llm"]) != config()
        return
    with pytest.raises(UserError, match=r"--preset sets options of train\.py, eval\.py or preflight; leave it out"):
        parse(config, "some.py", "", ["--preset", "laptop-llm"])
    with pytest.raises(UserError, match="unknown option --prest") as told:
        parse(config, "some.py", "", ["--prest", "laptop-llm"])
    assert "--preset" not in str(told.value)


def test_a_run_of_an_older_version_may_keep_idle_options(tmp_path):
    began = flat(resolve(TrainConfig())) | {"overlong_buffer": 32, "kl_coef": 0.0, "kl_estimator": "k1"}
    write_json_atomic(tmp_path / "config.json", began)
    words = ["--resume", "--output-dir", str(tmp_path)]
    config, unasked = parse_asked(TrainConfig, "train.py", "", words, base=saved_config(tmp_path))
    assert resolve(config, unasked).reward.overlong_buffer == 32
    config, unasked = parse_asked(TrainConfig, "train.py", "", [*words, "--overlong-buffer", "16"], base=began)
    with pytest.raises(UserError, match="--overlong-buffer does nothing with --overlong keep"):
        resolve(config, unasked)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("overlong", "penalise", "penalize"), ("rollout_weights", "dequantised", "dequantized")],
)
def test_a_choice_that_an_older_version_spelled_is_todays(tmp_path, name, old, new):
    write_json_atomic(tmp_path / "config.json", flat(resolve(TrainConfig())) | {name: old})
    assert saved_config(tmp_path)[name] == new
    prepare_run_dir(tmp_path, True, {name: new}, [name], compared)
    with pytest.raises(UserError, match=f"{name} {old}, not another"):
        prepare_run_dir(tmp_path, True, {name: "another"}, [name], compared)


# what a run saved


WRONG = [
    ("seed", "x"), ("seed", True), ("seed", 1.5), ("seed", -1), ("seed", 2**64), ("seed", None), ("seed", []),
   ("seed", {}),     ("method", "evil"), ("method", 3), ("algorithm", "dpo"), ("learning_rate", "3e-3"),
    ("learning_rate", float("nan")),
    ("learning_rate", float("inf")), ("learning_rate", 1e308), ("learning_rate", 10**400), ("max_total_tokens", None),
    ("max_turns", None),
    ("max_turns", 1e26), ("model", 7), ("model", None), ("model", "a\0b"), ("model", "\udcff"), ("tensorboard", 1),
    ("retriever", "google"), ("data_hashes", [1]), ("versions", "x"), ("lora_rank", -1), ("reward", ["em"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_saved_option_that_no_flag_could_set_means_damage(tmp_path, name, value):
    write_json_atomic(tmp_path / "config.json", flat(resolve(TrainConfig())) | {name: value})
    with pytest.raises(UserError, match=rf"config.json is damaged: .*{name}") as told:
        saved_config(tmp_path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_paths_at_home_are_spelled_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(TrainConfig, "train.py", "", ["--output-dir=~/run"]).run.output_dir == str(tmp_path / "run")
    assert parse(EvalConfig, "eval.py", "", ["--ask=~/why"]).ask == "~/why"
    assert Path(parse(ExportConfig, "export", "", ["--run", "a~b"]).run) == Path("a~b")
