"""The command line at the real boundary, and what each combination of options resolves to."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.cli import parse
from searchr1_mini.config import (
    PRESETS,
    REAL,
    TINY,
    EvalConfig,
    TrainConfig,
    resolve,
    resolve_model,
    world_hops_list,
)
from searchr1_mini.errors import UserError

ROOT = Path(__file__).parent.parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=ROOT)


def parsed(*arguments: str) -> TrainConfig:
    return parse(TrainConfig, "train.py", "", arguments)


@pytest.mark.parametrize(("script", "config"), [("train.py", TrainConfig), ("eval.py", EvalConfig)])
def test_help_names_every_option_in_groups_and_loads_no_torch(script, config):
    shown = run(script, "--help")
    assert shown.returncode == 0
    for option in fields(config):
        assert "--" + option.name.replace("_", "-") in shown.stdout
        assert f"{option.metadata['group']} options" in shown.stdout
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True, cwd=ROOT
    ).stderr
    assert "tyro" in imported
    for heavy in ("torch", "transformers", "numpy", "datasets"):
        assert f"| {heavy}\n" not in imported


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--learnig-rate", "1"], "did you mean --learning-rate?"),
        (["--model", "Qwen2.5-3"], "did you mean Qwen2.5-3B?"),
        (["--model", "./nowhere"], "there is no folder"),
        (["--dataset", "hotpot"], "did you mean hotpotqa?"),
        (["--preset", "12g"], "did you mean 12gb?"),
        (["--steps", "0"], "--steps 0: it must be at least 1"),
        (["--temperature", "0"], "--temperature 0.0: it must be above 0"),
        (["--resume"], "--output-dir"),
        (["--retriever", "http"], "--retriever-url"),
        (["--retriever-url", "http://x"], "--retriever http"),
        (["--corpus", "x.jsonl"], "--corpus does not go with --dataset world"),
        (["--data-path", "x.jsonl"], "--data-path does not go with --dataset world"),
        (["--model", "Qwen2.5-3B", "--world-hops", "1"], "need --dataset world"),
        (["--world-hops", "1,5"], "numbers from 1 to 3"),
        (["--world-hops", "1,1"], "numbers from 1 to 3"),
        (["--load-in-4bit", "--lora-rank", "0"], "--lora-rank"),
        (["--max-new-tokens", "700"], "--max-total-tokens 640"),
        (["--mini-batches", "17"], "--questions-per-step 16"),
        (["--clip-eps", "0.3", "--clip-eps-high", "0.2"], "--clip-eps-high"),
        (["--method", "r1", "--retriever", "bm25"], "without a search engine"),
        (["--config", "nowhere.yaml"], "cannot read --config nowhere.yaml"),
        (["--preset"], "--preset needs a value"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(arguments, told):
    result = run("train.py", *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_a_value_that_is_no_number_exits_with_2():
    result = run("train.py", "--steps", "many")
    assert result.returncode == 2 and "--steps" in result.stderr and "Traceback" not in result.stderr


def test_no_gpu_is_told():
    result = run("train.py", "--device", "mps" if sys.platform != "darwin" else "cuda")
    assert result.returncode == 2 and "--device auto" in result.stderr and "Traceback" not in result.stderr


def test_underscores_are_accepted():
    assert parsed("--learning_rate", "0.5", "--no_mask_observations") == parsed(
        "--learning-rate", "0.5", "--no-mask-observations"
    )


def test_switches_that_are_open_by_default_take_three_forms():
    assert parsed("--load-in-4bit").load_in_4bit is True
    assert parsed("--no-load_in_4bit").load_in_4bit is False
    assert parsed("--load-in-4bit", "False").load_in_4bit is False
    assert parsed().load_in_4bit is None


def test_flags_go_over_yaml_over_presets(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lora-rank: 7\nrollout_batch_size: 3\n")
    config = parsed("--preset", "12gb", "--config", str(file), "--rollout-batch-size", "5")
    assert (config.lora_rank, config.rollout_batch_size) == (7, 5)
    assert config.tokens_per_micro_batch == PRESETS["12gb"]["tokens_per_micro_batch"]
    file.write_text("lora_rnk: 7\n")
    with pytest.raises(UserError, match="did you mean lora_rank"):
        parsed("--config", str(file))


def test_open_values_are_resolved_per_model():
    tiny, real = resolve(TrainConfig()), resolve(TrainConfig(model="Qwen2.5-3B"))
    assert all(getattr(tiny, name) == value for name, value in TINY.items())
    assert all(getattr(real, name) == value for name, value in REAL.items())
    assert real.learning_rate == 2e-5 and real.lora_alpha == 64 and real.clip_eps_high == 0.2
    full = resolve(TrainConfig(model="Qwen2.5-3B", lora_rank=0))
    assert full.learning_rate == 1e-6 and full.load_in_4bit is False
    assert tiny.world_hops == "1,2" and world_hops_list(tiny) == [1, 2]
    assert None not in [getattr(tiny, f.name) for f in fields(tiny) if f.name not in UNSET]


UNSET = {"output_dir", "data_path", "corpus", "retriever_url"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_together(preset):
    resolve(parsed("--model", "Qwen2.5-3B", "--preset", preset))


def test_models_by_every_name(tmp_path):
    assert resolve_model("Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"
    assert resolve_model("someone/some-model") == "someone/some-model"
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert (Path(resolve_model("tiny")) / "config.json").is_file()


@given(st.integers(1, 99), st.floats(1e-6, 1), st.booleans(), st.sampled_from(["token", "sequence"]))
def test_a_resolved_config_survives_json_and_resolving_again(steps, learning_rate, flag, aggregation):
    config = resolve(
        TrainConfig(steps=steps, learning_rate=learning_rate, normalize_std=flag, loss_aggregation=aggregation)
    )
    again = TrainConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config == resolve(again)
    assert replace(config, steps=steps) == config


@pytest.mark.parametrize("config", [TrainConfig, EvalConfig])
def test_every_option_is_documented(config):
    for option in fields(config):
        assert len(option.metadata["help"]) > 5, option.name
