"""A GGUF file as a base: unpacked once, to the numbers that transformers itself reads; then it goes as any other."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.faults import config_of, sentence_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.export import main as export
from searchr1_mini.models import gguf_base
from searchr1_mini.models.prompting import prompt_ids
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.run import preflight
from searchr1_mini.run.training import train
from searchr1_mini.storage.checkpoint import latest_checkpoint

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

DAY = date(2026, 1, 1)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
HIDDEN, HEADS, KV_HEADS, LAYERS, MIDDLE = 32, 4, 2, 2, 64
SIZES = {
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // 2, HIDDEN), "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (MIDDLE, HIDDEN), "ffn_up": (MIDDLE, HIDDEN),
    "ffn_down": (HIDDEN, MIDDLE),
}  # fmt: skip
SHORT = {"dataset": "world", "template": "short", "max_total_tokens": 400, "max_observation_tokens": 64}


def write_gguf(
    path: Path,
    tokenizer,
    architecture: str = "llama",
    seed: int = 0,
    base: float = 10000.0,
    factors=None,
    scaling: tuple[str, float] | None = None,
    kind: str = "gpt2",
) -> Path:
    """A random llama of two layers, with the tokenizer and a chat template in its metadata.

    `base`, `factors` (as llama.cpp keeps those of Llama 3) and `scaling` are of its rotary angles, `kind` is of its
    tokenizer.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(base)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    writer.add_vocab_size(len(tokenizer))
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    added = tokenizer.get_added_vocab()
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in added else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(np.float32))

    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    add("token_embd.weight", len(tokens), HIDDEN)
    for layer in range(LAYERS):
        for name, shape in SIZES.items():
            add(f"blk.{layer}.{name}.weight", *shape)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory, tokenizer) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", tokenizer)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def test_it_is_unpacked_once_to_what_transformers_reads(file, capsys):
    folder = resolve_model(str(file))
    assert capsys.readouterr().err.startswith("unpacking small.gguf")
    assert resolve_model(str(file)) == resolve_model(str(file.parent)) == folder
    assert "unpacking" not in capsys.readouterr().err
    wanted = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    found = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(5, 30)[None]
    assert torch.equal(found(ids).logits, wanted(ids).logits)
    own, read = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert own.chat_template == TEMPLATE and own.get_vocab() == read.get_vocab()
    assert prompt_ids("Who is it?", own, DAY) == prompt_ids("Who is it?", read, DAY)
    assert preflight.load_shape(folder).layers == LAYERS
    assert str(file.parent) not in "".join(path.read_text() for path in Path(folder).glob("*.json"))


def test_a_file_is_read_and_its_tensors_are_named_once(tmp_path, tokenizer, monkeypatch):
    """Each time takes seconds with a real vocabulary; afterwards the package is as it was."""
    calls = []

    def counting(name: str, real: Callable) -> Callable:
        return lambda *args: calls.append(name) or real(*args)

    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, counting(name, getattr(gguf, name)))
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    resolve_model(str(write_gguf(tmp_path / "counted.gguf", tokenizer, seed=7)))
    assert sorted(calls) == ["GGUFReader", "get_tensor_name_map"]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.parametrize("settings", [{"load_in_4bit": True}, {"lora_rank": 0}])
def test_it_is_trained_resumed_evaluated_and_exported(file, tmp_path, settings):
    settings = {"model": str(file), "load_in_4bit": False} | settings | SHORT
    for steps, resume in ((1, False), (2, True)):
        run = train(config_of(tmp_path / "run", **settings, steps=steps, resume=resume))
    evaluate_command(EvalConfig(run=str(run), limit=2, output_dir=str(tmp_path / "eval")))
    export([str(run), "--dtype", "float32"])
    merged = load_file(run / "export" / "merged" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    assert merged and "quantization_config" not in model.config.to_dict()
    for card in (run / "export").glob("*/README.md"):
        assert "| base | small.gguf |" in card.read_text() and str(file.parent) not in card.read_text()
    for config in (run / "export").glob("adapter/adapter_config.json"):
        assert json.loads(config.read_text())["base_model_name_or_path"] == "small.gguf"
    assert latest_checkpoint(run).name == "step-000002"


def test_another_file_of_the_same_name_is_another_base(file, tmp_path, tokenizer, capsys):
    run = train(config_of(tmp_path / "run", model=str(file), load_in_4bit=False, **SHORT, steps=1))
    other = write_gguf(tmp_path / "small.gguf", tokenizer, seed=1)
    (model,) = (run / "checkpoints").glob("step-*/model")
    told = sentence_of(
        capsys, evaluate_command,
        EvalConfig(
            model=str(other), adapter=str(model), limit=2, datasets="world", output_dir=str(tmp_path / "eval"),
            max_total_tokens=2048,
        ),
    )  # fmt: skip
    assert "trained on another base" in told and "other weights" in told


def test_what_cannot_be_read_is_told_in_a_sentence(file, tmp_path, tokenizer, capsys, monkeypatch):
    several = tmp_path / "several"
    several.mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, several / name)
    content = file.read_bytes()
    files = {
        "cut.gguf": content[: len(content) // 2], "header.gguf": content[:200], "empty.gguf": b"",
        "page.gguf": b"<html>not found</html>", "m-00001-of-00003.gguf": content, "mmproj-m.gguf": content,
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    write_gguf(tmp_path / "unknown.gguf", tokenizer, architecture="nosuch")
    told = {
        "nowhere.gguf": "there is no file", "several": "a.gguf, b.gguf); name one", "cut.gguf": "damaged, or cut",
        "header.gguf": "damaged, or cut", "empty.gguf": "no GGUF file", "page.gguf": "no GGUF file",
        "m-00001-of-00003.gguf": "one part of several", "mmproj-m.gguf": "image part", "unknown.gguf": "cannot load",
    }  # fmt: skip
    for name, sentence in told.items():
        assert sentence in sentence_of(capsys, resolve_model, str(tmp_path / name)), name
    monkeypatch.setattr(gguf_base, "find_spec", lambda name: None)
    other = write_gguf(tmp_path / "other.gguf", tokenizer, seed=2)
    assert '".[gguf]"' in sentence_of(capsys, resolve_model, str(other))
    assert not list(gguf_base.cache_folder().glob(".unpacking-*"))


def test_a_tokenizer_not_byte_level_is_told_before_weights(tmp_path, tokenizer, capsys, monkeypatch):
    """By the kind that the file names, as Mistral's and Gemma's do, or by what transformers makes of it."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    path = write_gguf(tmp_path / "mistral.gguf", tokenizer, kind="llama")
    assert "no byte-level BPE but of the kind 'llama'" in sentence_of(capsys, resolve_model, str(path))
    pieces = copy.deepcopy(tokenizer)
    pieces.get_vocab = lambda: {"▁the": 300}
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pieces)
    path = write_gguf(tmp_path / "x.gguf", tokenizer)
    assert "not a byte-level BPE" in sentence_of(capsys, resolve_model, str(path))
    assert not list(gguf_base.cache_folder().glob("*x-*")) and not list(gguf_base.cache_folder().glob("mistral*"))


def test_a_file_that_memory_cannot_hold_unpacked_is_refused(tmp_path, tokenizer, capsys, monkeypatch):
    """Beside all weights, one of them is there twice more, and the vocabulary takes room."""
    path = write_gguf(tmp_path / "room.gguf", tokenizer)
    shapes = [tensor.n_elements for tensor in gguf.GGUFReader(path).tensors]
    needed = 4 * int(sum(shapes) + 2 * max(shapes)) + gguf_base.TOKEN_BYTES * len(tokenizer)
    for free in (needed - 1, needed):
        monkeypatch.setattr(gguf_base.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        if free < needed:
            assert "of memory while unpacked" in sentence_of(capsys, resolve_model, str(path))
        else:
            assert Path(resolve_model(str(path))).is_dir()


LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_factors(base: float, width: int) -> list[float]:
    """What llama.cpp's conversion writes of Llama 3.2: by what each angle is divided."""
    factors = []
    for angle in base ** -(np.arange(0, width, 2) / width):
        length = 2 * np.pi / angle
        smooth = (8192 / length - 1) / (4 - 1)
        factors.append(1.0 if length < 8192 / 4 else 32.0 if length > 8192 else 1 / ((1 - smooth) / 32 + smooth))
    return factors


@pytest.mark.parametrize("scaled", ["llama3", "linear", "default"])
def test_the_files_rotary_angles_are_the_models(tmp_path, tokenizer, scaled):
    """transformers reads their base alone: a Llama 3.2 would be another model, and nobody would be told."""
    base, width = 500_000.0, HIDDEN // HEADS
    flags = {"llama3": {"factors": llama3_factors(base, width)}, "linear": {"scaling": ("linear", 4.0)}, "default": {}}
    path = write_gguf(tmp_path / f"{scaled}.gguf", tokenizer, base=base, **flags[scaled])
    model = AutoModelForCausalLM.from_pretrained(resolve_model(str(path)))
    plain = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    wanted = {"llama3": LLAMA3, "linear": {"factor": 4.0}, "default": {}}[scaled]
    plain.config.rope_parameters = {"rope_type": scaled, "rope_theta": base, **wanted}
    as_published = type(plain)(plain.config)
    as_published.load_state_dict(plain.state_dict())
    ids = torch.arange(5, 60)[None]
    torch.testing.assert_close(model(ids).logits, as_published(ids).logits, atol=1e-5, rtol=1e-4)
    assert (scaled == "default") == torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-4)


def test_the_card_of_an_adapter_on_it_shows_how_to_load_both(tmp_path, tokenizer):
    """Its own code, run as it stands with the places filled in: scaled angles included, as merged weights have them."""
    factors = llama3_factors(500_000.0, HIDDEN // HEADS)
    path = write_gguf(tmp_path / "scaled.gguf", tokenizer, base=500_000.0, factors=factors)
    run = train(config_of(tmp_path / "run", model=str(path), load_in_4bit=False, **SHORT, steps=1))
    export([str(run), "--dtype", "float32"])
    out = run / "export"
    code = (out / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    for place, there in (("path/to/base.gguf", path), ("path/to/adapter", out / "adapter")):
        assert code.count(place) == 1
        code = code.replace(place, str(there))
    made: dict = {}
    exec(code, made)
    ids, merged = torch.arange(5, 60)[None], AutoModelForCausalLM.from_pretrained(out / "merged")
    torch.testing.assert_close(made["model"](ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"scaling": ("yarn", 4.0)}, "scales its rotary angles by yarn"),
        ({"factors": [1.0, 2.0, 3.0, 4.0]}, "other rotary angles than transformers makes of it"),
        ({"factors": [1.0, 2.0]}, "other rotary angles than transformers makes of it"),
    ],
)
def test_rotary_angles_that_are_not_read_right_are_told(tmp_path, tokenizer, capsys, flags, told):
    path = write_gguf(tmp_path / "x.gguf", tokenizer, **flags)
    assert told in sentence_of(capsys, resolve_model, str(path))


def test_a_tokenizer_that_has_more_tokens_than_the_model_is_told(tmp_path, tokenizer, capsys, monkeypatch):
    """As transformers makes of DeepSeek's control tokens; resizing the model, as for a folder, would not help."""
    path = write_gguf(tmp_path / "x.gguf", tokenizer)
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<new>"])
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: more)
    assert "take the model's safetensors" in sentence_of(capsys, resolve_model, str(path))


@pytest.mark.parametrize(
    "held, taken",
    [
        (["m-00001-of-00001.gguf"], "m-00001-of-00001.gguf"),
        (["m.gguf", "mmproj-m.gguf"], "m.gguf"),
        (["m.GGUF"], "m.GGUF"),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m.Q4.gguf"], "m.Q4.gguf"),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "llama-gguf-split --merge"),
        (["mmproj-m.gguf"], "image part"),
    ],
)
def test_the_one_whole_model_of_a_folder_is_taken(tmp_path, held, taken):
    for name in held:
        (tmp_path / name).write_bytes(b"GGUF")
    if taken in held:
        assert gguf_base.find_gguf(str(tmp_path)) == gguf_base.find_gguf(str(tmp_path / taken)) == tmp_path / taken
    else:
        with pytest.raises(UserError, match=taken):
            gguf_base.find_gguf(str(tmp_path))


def test_an_ending_in_upper_case_is_unpacked_too(tmp_path, tokenizer):
    path = write_gguf(tmp_path / "SMALL.GGUF", tokenizer)
    assert Path(resolve_model(str(path)), "model.safetensors").is_file()
