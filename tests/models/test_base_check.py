"""Models and adapters of strangers, saved to disk with something wrong: one sentence, before weights are read."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from datetime import date
from pathlib import Path

import pytest
import torch
from helpers.guards import Trap, cpu_seconds, told
from helpers.models import CPU, INDEX, sharded
from safetensors.torch import load_file, save_file

from searchr1_mini import evaluate
from searchr1_mini.core.errors import UserError
from searchr1_mini.models.bases import check_source
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.saving import save_policy
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.preflight import load_shape
from searchr1_mini.run.training import train

DAY = date(2026, 1, 5)


def load(source, **settings):
    return load_policy(
        str(source), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU, **settings
    )


def changed(path: Path, **values) -> Path:
    """Changes a JSON file; `...` takes a key out."""
    new = {key: value for key, value in (json.loads(path.read_text()) | values).items() if value is not ...}
    path.write_text(json.dumps(new))
    return path


@pytest.fixture
def model(random_qwen2, tmp_path) -> Path:
    return Path(shutil.copytree(random_qwen2, tmp_path / "model"))


QUANTIZED = {
    "awq": ({"quant_method": "awq", "bits": 4}, "(awq)"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "(gptq)"),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "(fp8)"),
    "compressed": ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "(compressed-tensors)"),
    "hqq": ({"quant_method": "hqq"}, "(hqq)"),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "(bitsandbytes, 4 bits)"),
    "8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "(bitsandbytes, 8 bits)"),
    "no object": ("awq", "already,"),
}


@pytest.mark.parametrize("form", QUANTIZED)
def test_weights_already_quantized_are_refused_before_training(model, tmp_path, capsys, form):
    value, said = QUANTIZED[form]
    changed(model / "config.json", quantization_config=value)
    settings = {"model": str(model), "dataset": "world", "memory_check": form == "awq"}
    config = make(TrainConfig, **settings, output_dir=str(tmp_path / "run"))
    sentence = told(lambda: train(resolve(config)), capsys)
    assert said in sentence and "quantized already" in sentence and "--load-in-4bit" in sentence
    assert not (tmp_path / "run").exists()
    answered = EvalConfig(model=str(model), datasets="world", output_dir=str(tmp_path / "eval"))
    assert said in told(lambda: evaluate.evaluate_command(answered), capsys)


def test_older_and_mlx_quantized_weights_are_refused_too(model):
    """Older ones say so in a separate file, MLX under another name."""
    (model / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(UserError, match="quantized already"):
        check_source(str(model), DAY)
    (model / "quantize_config.json").unlink()
    check_source(str(model), DAY)
    changed(model / "config.json", quantization={"group_size": 64, "bits": 4})
    with pytest.raises(UserError, match="quantized already"):
        check_source(str(model), DAY)


CONFIGS = {
    "a word": ({"hidden_size": "x"}, "hidden_size"),
    "null": ({"hidden_size": None}, "hidden_size"),
    "a list": ({"vocab_size": [64]}, "vocab_size"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "negative": ({"intermediate_size": -1}, "intermediate_size is -1"),
    "huge": ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "layers without end": ({"num_hidden_layers": 10**9, "layer_types": ...}, "num_hidden_layers is 1000000000"),
    "heads do not divide": ({"num_key_value_heads": 3}, "4 num_attention_heads cannot share 3"),
    "no width a head": ({"hidden_size": 3, "num_attention_heads": 4, "head_dim": ...}, "built (ZeroDivisionError"),
    "other sizes": ({"num_key_value_heads": 4}, "of other sizes than its config.json says"),
    "no such activation": ({"hidden_act": "nope"}, "built (KeyError: 'nope')"),
    "another task": ({"architectures": ["Qwen2ForSequenceClassification"]}, "but Qwen2ForSequenceClassification"),
    "no architectures": ({"architectures": 5}, "architectures is 5"),
    "no type": ({"model_type": ...}, "model_type"),
    "type of another kind": ({"model_type": []}, "cannot load"),
    "pickled weights": ({"transformers_weights": "adapter_model.bin"}, "adapter_model.bin"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_config_that_makes_no_sense_is_told(model, fault):
    values, said = CONFIGS[fault]
    changed(model / "config.json", **values)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load(model)
    assert len(str(error.value)) < 500
    if fault != "other sizes":
        with pytest.raises(UserError, match=re.escape(said)):
            load_shape(str(model))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe{\0", b"[" * 100_000, b"null"])
def test_a_damaged_config_is_told(model, content):
    (model / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load(model)


@pytest.mark.parametrize(
    "name",
    ["weights.bin", "../outside.safetensors", "sub/x.safetensors", "{absolute}", "C:x.safetensors",
     "sub\\x.safetensors", "x.safetensors\n.bin", ".safetensors/../weights.bin", 5],
)  # fmt: skip
def test_an_index_may_name_only_safetensors_in_its_own_folder(model, tmp_path, name):
    sharded(model)
    sign, trap = tmp_path / "sign", tmp_path / "outside.safetensors"
    trap.write_bytes(pickle.dumps(Trap(sign)))
    shutil.copy(trap, model / "weights.bin")
    name = str(trap) if name == "{absolute}" else name
    index = json.loads((model / INDEX).read_text())
    changed(model / INDEX, weight_map=dict.fromkeys(index["weight_map"], name))
    with pytest.raises(UserError, match=r"is not opened|is damaged"):
        load(model)
    assert not sign.exists()


@pytest.mark.parametrize("weight_map", [..., {}, [], None])
def test_an_index_without_a_map_is_told(model, weight_map):
    changed(sharded(model) / INDEX, weight_map=weight_map)
    with pytest.raises(UserError, match="no weight_map"):
        load(model)


def test_a_fake_safetensors_file_is_refused_even_behind_a_link(model, tmp_path):
    shard = sharded(model) / "model-00001-of-00001.safetensors"
    aside = tmp_path / "blobs" / "0123"
    aside.parent.mkdir()
    shard.rename(aside)
    with pytest.raises(UserError, match="missing, though the index names it"):
        load(model)
    shard.symlink_to(aside)  # as the hub's cache keeps them
    load(model)
    sign = tmp_path / "sign"
    aside.write_bytes(pickle.dumps(Trap(sign)))
    with pytest.raises(UserError, match="is no safetensors file"):
        load(model)
    assert not sign.exists()


@pytest.fixture
def adapter(random_policy, tmp_path) -> Path:
    save_policy(random_policy, tmp_path / "saved")
    return tmp_path / "saved" / "policy"


ADAPTERS = {
    "no number": ({"r": "4"}, "names no rank (r)"),
    "true": ({"r": True}, "names no rank (r)"),
    "nothing": ({"lora_alpha": 0}, "names no rank (r)"),
    "no end": ({"lora_alpha": float("inf")}, "names no rank (r)"),
    "another kind": ({"peft_type": "LOHA"}, "of the type LOHA"),
    "a prompt": ({"peft_type": "PROMPT_TUNING"}, "of the type PROMPT_TUNING"),
    "targets of numbers": ({"target_modules": [1, 2]}, "target_modules"),
    "no target": ({"target_modules": []}, "target_modules"),
    "a pattern of ranks": ({"rank_pattern": {"(.*.*)*x": 8}}, "rank_pattern"),
    "a list of alphas": ({"alpha_pattern": [1]}, "alpha_pattern"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "starts by changing the base": ({"init_lora_weights": "pissa"}, "'pissa'"),
    "code": ({"megatron_config": {"x": 1}, "megatron_core": "os"}, "megatron_config"),
    "layers repeated": ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
    "other matrices": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
}


@pytest.mark.parametrize("fault", ADAPTERS)
def test_an_adapter_that_is_no_plain_lora_is_refused(random_qwen2, adapter, capsys, monkeypatch, fault):
    values, said = ADAPTERS[fault]
    changed(adapter / "adapter_config.json", **values)
    monkeypatch.setattr("searchr1_mini.models.loading.load_base", None)  # no weight is read
    config = EvalConfig(model=str(random_qwen2), adapter=str(adapter), ask="Who?")
    assert said in told(lambda: evaluate.evaluate_command(config), capsys)
    with pytest.raises(UserError, match=re.escape(said)):
        load(random_qwen2, weights=adapter.parent)


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": r"(.*.*.*.*.*.*)*(q_proj|k_proj|zzz)$"},
        {"target_modules": r"((\w|\.)+)+!"},
        {"target_modules": None},
        {"exclude_modules": r"((\w|\.)+)+!"},
        {"layers_to_transform": [0, 1], "layers_pattern": r"((\w|\.)+)+!"},
        {"target_modules": "all-linear"},
        {"base_model_name_or_path": ...},
    ],
)
def test_an_adapter_goes_onto_the_modules_that_its_tensors_name(random_qwen2, adapter, values):
    """What peft would look for by a pattern of strangers: it may search for ever."""
    with torch.no_grad():
        saved = load_file(adapter / "adapter_model.safetensors")
        tensors = {name: torch.randn_like(tensor) for name, tensor in saved.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    changed(adapter / "adapter_config.json", **values)
    with cpu_seconds(30):
        policy = load(random_qwen2, weights=adapter)
    loaded = {name: parameter for name, parameter in policy.model.named_parameters() if "lora_" in name}
    assert len(loaded) == len(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name.replace(".weight", ".policy.weight")], tensor)


def test_a_critic_of_a_run_whose_config_was_changed_is_refused(tmp_path, adapter):
    from searchr1_mini.models.weights import adapter_folder

    changed(adapter / "adapter_config.json", target_modules=r"((\w|\.)+)+!")
    with pytest.raises(UserError, match="no list of target_modules"):
        adapter_folder(adapter)
