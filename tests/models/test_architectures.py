"""What a config.json tells of an architecture is told before weights are read; what is set after loading is set."""

from __future__ import annotations

import contextlib
import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from helpers.families import FAMILIES, config_of, save_family
from helpers.models import CPU
from helpers.paths import ROOT
from transformers import Qwen2Config, T5Config

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.policy import undefined_ids, without_undefined
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.models.architecture import SUPPORTED, check_length
from searchr1_mini.models.bases import check_model
from searchr1_mini.models.loading import load_policy
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.preflight import load_shape
from searchr1_mini.run.training import train

NO_CACHE_OF_KEYS = "bamba falcon_h1 jamba lfm2 mamba mamba2 minimax qwen3_5_text qwen3_next recurrent_gemma rwkv xlstm"


@pytest.mark.parametrize("name", [*NO_CACHE_OF_KEYS.split(), "bloom", "mpt", "gptj", "falcon:alibi", "gpt_oss"])
def test_unsupported_models_are_refused_before_weights_are_read(name, tmp_path, tokenizer):
    config_of(name, tokenizer).save_pretrained(tmp_path)  # there are no weights
    family = name.split(":")[0]
    for asked in (lambda: check_model(str(tmp_path), 640), lambda: load_shape(str(tmp_path))):
        with pytest.raises(UserError, match=f"^models of the family {family} are not supported: .*docs/models.md"):
            asked()


def test_no_family_is_advised_whose_own_tokenizers_are_refused():
    """Of these only the architecture was tried: their published tokenizers are sentencepiece's."""
    table = (ROOT / "docs" / "models.md").read_text()
    for name, family in (("Mistral", "mistral"), ("Gemma", "gemma"), ("Phi", "phi3")):
        assert name not in SUPPORTED and f"| `{family}` | right, architecture only |" in table


def test_an_encoder_decoder_is_no_causal_language_model(tmp_path):
    T5Config(d_model=64, num_layers=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="models of the family t5 are not supported"):
        check_model(str(tmp_path), 640)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shape_or_a_sentence(name, tmp_path, tokenizer):
    config_of(name, tokenizer).save_pretrained(tmp_path)
    with contextlib.suppress(UserError):  # which the tests above have looked at
        shape = load_shape(str(tmp_path))
        assert (shape.layers, shape.hidden) == (2, 64)
        assert 64 <= shape.intermediate <= 512 and shape.key_value % 16 == 0 and shape.lora > 0


ROPE = {"rope_theta": 10000.0}
LENGTHS = {
    "positions": ("qwen2", {"max_position_embeddings": 128}, 128),
    "n_positions": ("gpt2", {"n_positions": 512}, 512),
    "window": ("mistral", {"sliding_window": 64}, 64),
    "some layers": ("gemma3_text", {"sliding_window": 96}, 96),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0} | ROPE}, 4096),
    "dynamic, short": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0} | ROPE, "max_position_embeddings": 256},
        256,
    ),
    "longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8} | ROPE,
        },
        1024,
    ),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0} | ROPE}, 8192),
    "yarn": (
        "qwen2",
        {
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096} | ROPE,
        },
        16384,
    ),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_a_context_is_as_long_as_the_model_computes_alike(case, tokenizer):
    name, changes, most = LENGTHS[case]
    config = config_of(name, tokenizer, **changes)
    check_length(config, most)
    with pytest.raises(UserError, match=f"take --max-total-tokens {most}, or"):
        check_length(config, most + 1)


@pytest.mark.parametrize(("window", "is_used", "fits"), [(32, True, False), (64, True, True), (32, False, True)])
def test_a_model_that_sees_a_part_of_its_context_only_is_refused(window, is_used, fits):
    config = Qwen2Config(sliding_window=window, use_sliding_window=is_used, max_window_layers=0, num_hidden_layers=2)
    with nullcontext() if fits else pytest.raises(UserError, match="--max-total-tokens 32"):
        check_length(config, 64)


def test_too_long_a_context_is_refused_before_weights_are_read(tmp_path, tokenizer):
    config_of("qwen2", tokenizer, max_position_embeddings=128).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base, told = str(tmp_path / "base"), "--max-total-tokens 400 is too long .* 128 positions"
    options = {"model": base, "max_total_tokens": 400, "max_new_tokens": 32}
    run = make(TrainConfig, dataset="world", max_observation_tokens=64, output_dir=str(tmp_path / "run"), **options)
    with pytest.raises(UserError, match=told):
        train(resolve(run))
    assert not (tmp_path / "run").exists()
    asked = EvalConfig(ask="Who?", methods="search-r1", datasets="world", max_observation_tokens=64, **options)
    with pytest.raises(UserError, match=told):
        evaluate_command(asked)


def test_our_attention_is_set_whatever_a_config_says(tmp_path, tokenizer):
    folder = save_family(tmp_path, "llama", tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "eager"}))
    policy = load_policy(str(folder), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU)
    assert policy.config._attn_implementation == "sdpa"


def test_no_dropout_is_left_in_a_model_or_its_config(tmp_path, tokenizer):
    dropouts = {"resid_pdrop": 0.1, "embd_pdrop": 0.2, "attn_pdrop": 0.3}
    folder = save_family(tmp_path, "gpt2", tokenizer, **dropouts)
    policy = load_policy(str(folder), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU)
    modules = [module for module in policy.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert modules and all(module.p == 0 for module in modules)
    assert all(getattr(policy.config, name) == 0 for name in dropouts)


def test_ids_without_a_token_are_found_in_gaps_and_past_the_end(tokenizer):
    class Gaps:
        def get_vocab(self):
            return {"a": 0, "b": 1, "c": 3}

    assert undefined_ids(Gaps(), 6) == [2, 4, 5]
    assert undefined_ids(tokenizer, len(tokenizer)) == []
    logits = torch.zeros(2, 6).half()
    spread = without_undefined(logits, torch.tensor([2, 4, 5])).float().softmax(-1)
    torch.testing.assert_close(spread, torch.tensor([[1.0, 1, 0, 1, 0, 0]] * 2) / 3)


def test_4_bits_that_leave_every_layer_as_it_is_are_refused(tmp_path, tokenizer):
    """bitsandbytes does not know Falcon's own class of linear layers, and the preflight would count half a byte."""
    folder = str(save_family(tmp_path, "falcon", tokenizer))
    load = partial(load_policy, folder, lora_rank=2, lora_alpha=4, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"family falcon are not supported: .* add --no-load-in-4bit"):
        load(load_in_4bit=True)
