"""What each combination of options resolves to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.changes import changes
from searchr1_mini.options.checks import world_hops_list
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS, REAL, TINY
from searchr1_mini.options.nested import flat, get, make
from searchr1_mini.options.resolve import resolve, resolve_model


def resolved(*flags: str) -> TrainConfig:
    """What flags of train.py resolve to for Qwen2.5-3B."""
    return resolve(parse(TrainConfig, "train.py", "", ["--model", "Qwen2.5-3B", *flags]))


def test_open_values_are_resolved_per_model():
    tiny, real = resolve(TrainConfig()), resolve(make(TrainConfig, model="Qwen2.5-3B"))
    assert all(get(tiny, name) == value for name, value in TINY.items())
    assert all(get(real, name) == value for name, value in REAL.items())
    assert real.optimization.learning_rate == 2e-5 and real.weights.lora_alpha == 64
    assert real.objective.clip_eps_high == 0.2
    full = resolve(make(TrainConfig, model="Qwen2.5-3B", lora_rank=0))
    assert full.optimization.learning_rate == 1e-6 and full.weights.load_in_4bit is False
    ppo = resolve(make(TrainConfig, algorithm="ppo"))
    assert (ppo.optimization.group_size, ppo.objective.kl_estimator, tiny.objective.kl_estimator) == (1, "k1", "k3")
    assert ppo.ppo.critic_learning_rate > 0
    assert tiny.data.world_hops == "1,2" and world_hops_list(tiny) == [1, 2]
    assert None not in [value for name, value in flat(tiny).items() if name not in UNSET]


UNSET = {
    "bug",
    "mystery",
    "output_dir",
    "date",
    "data_path",
    "corpus",
    "retriever_url",
    "importance_cap",
    "critic_learning_rate",
} | {
    "memory_limit",
    "demonstration_questions",
    "reranker",
    "demonstrations",
    "cold_start_learning_rate",
    "cold_start_multi_hop",
    "init",
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_together(preset):
    resolved("--preset", preset)


def test_the_ppo_preset_differs_from_grpo_as_in_the_paper():
    grpo, ppo = (resolved("--preset", name) for name in ("paper", "paper-ppo"))
    assert (grpo.run.algorithm, grpo.optimization.group_size) == ("grpo", 5)
    assert (ppo.run.algorithm, ppo.optimization.group_size) == ("ppo", 1)
    assert ppo.optimization.learning_rate == 1e-6
    assert (ppo.ppo.critic_learning_rate, ppo.ppo.critic_warmup_steps) == (1e-5, 8)
    assert ppo.optimization.questions_per_step == grpo.optimization.questions_per_step == 512


@pytest.mark.parametrize(("flags", "rate"), [([], 1e-4), (["--lora-rank", "0"], 1e-5)])
def test_the_critics_rate_follows_what_is_trained(flags, rate):
    assert resolved("--algorithm", "ppo", *flags).ppo.critic_learning_rate == rate


def test_models_by_every_name(tmp_path):
    assert resolve_model("Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"
    others = {
        "SmolLM2-135M-Instruct": "HuggingFaceTB", "SmolLM2-1.7B": "HuggingFaceTB", "Qwen3-0.6B": "Qwen",
        "Qwen3-4B-Base": "Qwen", "Llama-3.2-1B": "meta-llama", "Llama-3.2-3B-Instruct": "meta-llama",
    }  # fmt: skip
    assert all(resolve_model(name) == f"{owner}/{name}" for name, owner in others.items())
    assert resolve_model("someone/some-model") == "someone/some-model"
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    with pytest.raises(UserError, match="there is no folder some/where/else"):
        resolve_model("some/where/else")
    assert (Path(resolve_model("tiny")) / "config.json").is_file()


@given(
    model=st.sampled_from(["tiny", "Qwen2.5-3B"]),
    method=st.sampled_from(["search-r1", "r1"]),
    lora_rank=st.none() | st.integers(0, 64),
    steps=st.integers(1, 99),
    learning_rate=st.none() | st.floats(1e-6, 1),
    clip_eps=st.floats(0.01, 0.99),
    normalize_std=st.booleans(),
    loss_aggregation=st.sampled_from(["token", "sequence"]),
)
def test_a_resolved_config_survives_json_and_resolving_again(**given_values):
    assert_settled(given_values)


@given(
    model=st.sampled_from(["tiny", "Qwen2.5-3B"]),
    algorithm=st.sampled_from(["ppo", "sft", "rejection-sampling"]),
    lora_rank=st.none() | st.integers(0, 64),
    demonstration_questions=st.none() | st.integers(1, 99),
)
def test_so_does_one_of_every_algorithm(demonstration_questions, **given_values):
    only_of_imitation = (
        {} if given_values["algorithm"] == "ppo" else {"demonstration_questions": demonstration_questions}
    )
    assert_settled(given_values | only_of_imitation)


def assert_settled(given_values):
    config = resolve(make(TrainConfig, **given_values))
    again = make(TrainConfig, **json.loads(json.dumps(flat(config))))
    assert again == config == resolve(again)
    kept = {name: value for name, value in given_values.items() if value is not None}
    assert {name: get(config, name) for name in kept} == kept


@pytest.mark.parametrize("model", ["tiny", "Qwen2.5-3B"])
def test_dynamic_sampling_tells_that_equal_groups_are_left_out(model):
    """Whatever the model's default is."""
    config = resolve(make(TrainConfig, model=model, dynamic_sampling=3))
    assert config.objective.drop_zero_variance is True


@pytest.mark.parametrize(
    "options", [{"dynamic_sampling": 3, "llds_coef": 0.1, "drop_zero_variance": True},
                {"dynamic_sampling": 3, "drop_zero_variance": False},
                {"turn_coef": 1.0, "llds_coef": 0.1}, {"turn_coef": 1.0, "sapo_coef": 0.1}],
)  # fmt: skip
def test_what_an_older_version_took_together_goes_on(options, tmp_path):
    with pytest.raises(UserError, match="leave one out"):
        resolve(make(TrainConfig, **options))
    config = resolve(make(TrainConfig, **options, resume=True, output_dir=str(tmp_path)))
    assert {name: get(config, name) for name in options} == options


@pytest.mark.parametrize("reader", [{"turn_coef": 1.0}, {"tree_branches": 3}])
def test_advantages_beside_rloo_may_leave_out_the_std(reader):
    """It is theirs: leave-one-out divides by none."""
    options = {"baseline": "leave-one-out", "normalize_std": False}
    with pytest.raises(UserError, match="--normalize-std does nothing with --baseline leave-one-out"):
        resolve(make(TrainConfig, **options))
    config = resolve(make(TrainConfig, **options, **reader))
    assert "--no-normalize-std" in changes(config) and not config.variant.normalize_std
