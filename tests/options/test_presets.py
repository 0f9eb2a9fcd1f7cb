"""What a preset sets: of a run all that can do something there, of an evaluation what belongs to it."""

from __future__ import annotations

import re

import pytest
from helpers.paths import ROOT

from searchr1_mini.chat.live import plan_live
from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluation.plan import Plan, plan_evaluation
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import LAPTOP_LLM, PRESETS
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import flat, get
from searchr1_mini.options.resolve import resolve
from searchr1_mini.storage import checkpoint
from searchr1_mini.storage.files import write_json_atomic
from searchr1_mini.train import banner

TRAINING = ("--preset", "laptop-llm")


def trained(*words: str) -> TrainConfig:
    return resolve(*parse_asked(TrainConfig, "train.py", "", words))


def asked(*words: str, preset: str = "laptop-llm") -> tuple[EvalConfig, set[str]]:
    return parse_asked(EvalConfig, "eval.py", "", ["--preset", preset, *words])


def planned(*words: str) -> Plan:
    return plan_evaluation(*asked(*words))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_gets_a_preset_as_it_is(preset):
    config = trained("--model", "Qwen2.5-3B", "--preset", preset)
    expected = PRESETS[preset] | {"model": "Qwen2.5-3B"}
    assert {name: get(config, name) for name in expected} == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_an_evaluation_never_samples_as_a_preset_does(preset):
    config, _ = asked(preset=preset)
    assert config.temperature == 0 and config.seed == EvalConfig.seed
    assert asked("--temperature", "0.6", preset=preset)[0].temperature == 0.6


def test_an_evaluation_takes_the_presets_model_and_data():
    plan = planned("--methods", "direct,rag,search-r1", "--shots", "2")
    (column,) = plan.columns
    assert (column.name, column.data["dataset"], column.data["corpus"]) == ("world", "world", None)
    assert {row.settings.run.model for row in plan.rows} == {LAPTOP_LLM["model"]}
    settings = plan.rows[-1].settings
    for name in ("template", "observation", "topk", "max_turns", "max_new_tokens", "load_in_4bit"):
        assert get(settings, name) == LAPTOP_LLM[name], name
    assert [column.name for column in planned("--datasets", "nq").columns] == ["nq"]
    assert [row.settings.run.model for row in planned("--model", "tiny").rows] == ["tiny"]


@pytest.fixture
def run(tmp_path) -> str:
    write_json_atomic(tmp_path / "config.json", flat(trained("--world-hops", "2", "--topk", "5", "--max-turns", "2")))
    checkpoint.save_checkpoint(tmp_path, 5, lambda path: (path / "model").write_text("weights"))
    return str(tmp_path)


@pytest.mark.parametrize("preset", ["laptop-llm", "12gb", "paper"])
def test_a_run_brings_its_own_beside_a_preset(run, preset):
    config, unasked = asked("--run", run, preset=preset)
    plan = plan_evaluation(config, unasked)
    (row,), (column,) = plan.rows, plan.columns
    assert (row.settings.run.model, column.data["world_hops"]) == ("tiny", "2")
    assert (row.settings.data.template, row.settings.retrieval.topk, row.settings.rollout.max_turns) == ("short", 5, 2)
    assert row.settings.rollout.max_total_tokens == PRESETS[preset]["max_total_tokens"]  # what the memory allows
    with pytest.raises(UserError, match="--run brings its own model"):
        plan_evaluation(*asked("--run", run, "--model", "tiny", preset=preset))


@pytest.mark.parametrize("own", [["--corpus", "c"], ["--retriever", "http", "--retriever-url", "http://x:1"]])
def test_passages_of_ones_own_are_asked_despite_a_preset(own):
    config, unasked = asked("--chat", *own)
    _, column = plan_live(config, "--chat", unasked)
    assert (column.data["dataset"], column.data["corpus"]) == ("jsonl", config.corpus)
    assert asked("--data-path", "q.jsonl")[0].datasets is None
    assert asked("--retriever", "bm25")[0].datasets == "world"


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (["--methods", "direct,cot"], "--max-turns"), (["--retriever", "none"], "--topk"),
        (["--methods", "rag", "--retriever", "empty"], "--topk"), (["--chat", "--methods", "direct"], "--topk"),
    ],
)  # fmt: skip
def test_what_a_preset_sets_may_be_idle_in_an_evaluation(words, idle):
    def plans(*more: str) -> None:
        config, unasked = asked(*words, *more)
        if config.chat:
            plan_live(config, "--chat", unasked)
        else:
            plan_evaluation(config, unasked)

    plans()
    with pytest.raises(UserError, match=idle):
        plans(idle, "4")


WITHOUT_SCRIPTS = [
    ["--method", "r1"], ["--method", "direct"], ["--algorithm", "sft"], *(
        ["--retriever", name] for name in ("none", "empty", "random", "oracle")
    ),
]  # fmt: skip


@pytest.mark.parametrize("flags", WITHOUT_SCRIPTS, ids=" ".join)
def test_a_presets_cold_start_is_left_out_where_idle(flags):
    config = trained(*TRAINING, *flags)
    assert config.imitation.cold_start == 0 and "cold start" not in banner(config)
    with pytest.raises(UserError, match="--cold-start does nothing with"):
        trained(*TRAINING, *flags, "--cold-start", "20")


@pytest.mark.parametrize("flags", [[], ["--algorithm", "ppo"], ["--algorithm", "rejection-sampling"]], ids=str)
def test_a_presets_cold_start_is_made_where_it_can_be(flags):
    config = trained(*TRAINING, *flags)
    assert config.imitation.cold_start == 176 and "cold start on 176 episodes" in banner(config)


@pytest.mark.parametrize(("steps", "decay"), [("10", 5), ("9", 5), ("1", 1), ("27", 14), ("70", 14)])
def test_a_presets_decay_fits_the_steps_that_are_asked_for(steps, decay):
    assert trained(*TRAINING, "--steps", steps).optimization.decay_steps == decay
    assert trained(*TRAINING, "--steps", steps, "--decay-steps", "9").optimization.decay_steps == 9
    assert trained("--steps", steps, "--decay-steps", "9").optimization.decay_steps == 9


def test_a_resumed_run_keeps_what_its_preset_gave(tmp_path):
    began = flat(trained(*TRAINING)) | {"method": "r1"}  # as an older version left it
    write_json_atomic(tmp_path / "config.json", began)
    words = ["--resume", "--output-dir", str(tmp_path), "--steps", "20"]
    config = resolve(*parse_asked(TrainConfig, "train.py", "", words, base=began))
    assert (config.imitation.cold_start, config.optimization.decay_steps) == (176, 14)


def test_the_manual_tells_what_an_evaluation_takes():
    manual = (ROOT / "docs" / "cli.md").read_text()
    told = manual.split("beside it a preset sets only")[1].split(". Beside")[0]
    flags = {name.removeprefix("--").replace("-", "_") for name in re.findall(r"--[a-z-]+", told)}
    config, _ = asked("--run", "x")
    taken = {name for name, value in flat(config).items() if value != flat(EvalConfig())[name]} - {"run"}
    assert flags == taken
