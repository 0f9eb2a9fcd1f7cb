"""The forward of rollouts with stacked projections gives what transformers' own gives, whatever rows come and go."""

from __future__ import annotations

import gc
import shutil
import weakref
from functools import partial

import pytest
import torch
from helpers.graphs import Capture, Refused, capture_on_cpu
from helpers.models import CPU
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from searchr1_mini.core import kv_cache
from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.errors import UserError
from searchr1_mini.models import stacked as module
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.rollout_weights import faster
from searchr1_mini.models.stacked import StackedModel

FAMILIES = {
    "llama": {"attention_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "mistral": {"sliding_window": None},
}


def load(tmp_path_factory, tokenizer, family: str, **flags):
    """A random policy of a family, with numbers in its adapter."""
    folder = tmp_path_factory.mktemp(family)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.1,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **FAMILIES[family],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {"lora_rank": 4, "lora_alpha": 8, "load_in_4bit": False, "dtype": torch.float32, "device": CPU} | flags
    policy = load_policy(str(folder), **options)
    assert policy.stacks  # the load probe found no difference
    fill_adapter(policy, seed=1)
    policy.merges = False
    return policy


def fill_adapter(policy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, tmp_path_factory, tokenizer):
    return load(tmp_path_factory, tokenizer, request.param)


@pytest.fixture
def qwen2(tmp_path_factory, tokenizer):
    return load(tmp_path_factory, tokenizer, "qwen2")


ids = st.lists(st.integers(1, 900), min_size=1, max_size=12)
jobs = st.lists(st.tuples(ids, st.lists(ids, max_size=2), st.booleans()), min_size=1, max_size=7)


def run(policy, jobs, n_rows: int) -> list[list[tuple[list[int], list[float]]]]:
    """Conversations with observations, or with asides that are forgotten; rows are reused as they get free."""
    turns = [[] for _ in jobs]
    with policy.for_rollouts():
        assert bool(policy.stacked) == policy.stacks
        decoder = Decoder(policy, n_rows=n_rows, max_length=90, temperature=0.9, seed=3)
        decoder.expect([prompt for prompt, _, _ in jobs])
        waiting, marks = list(range(len(jobs))), {}
        while waiting or decoder.rows:
            while waiting and decoder.has_room:
                key = waiting.pop(0)
                decoder.start(key, jobs[key][0])
                decoder.generate(key, ("er", "a"), 6)
            for key, turn in decoder.step():
                turns[key].append((turn.token_ids, turn.logprobs))
                if key in marks:
                    decoder.rewind(key, marks.pop(key))
                observed = jobs[key][1][len(turns[key]) - 1 :]
                if not observed:
                    decoder.close(key)
                    continue
                if jobs[key][2]:
                    marks[key] = decoder.mark(key)
                decoder.append(key, observed[0])
                decoder.generate(key, ("er", "a"), 6)
    return turns


def same(one, other) -> None:
    assert [[ids for ids, _ in turns] for turns in one] == [[ids for ids, _ in turns] for turns in other]
    for turns, others in zip(one, other, strict=True):
        for (_, logprobs), (_, expected) in zip(turns, others, strict=True):
            assert logprobs == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=jobs, n_rows=st.integers(1, 4))
def test_turns_are_those_of_transformers_own_forward(policy, jobs, n_rows):
    results = []
    for stacks in (True, False):
        policy.stacks = stacks
        results.append(run(policy, jobs, n_rows))
    same(*results)


JOBS = [([5 + n, 6, 7], [[9] * (n % 3 + 1), [8, 4]], n % 2 == 0) for n in range(11)]


def test_the_shapes_that_a_graph_would_have_change_nothing(policy, monkeypatch):
    """Rows rounded up to a power of 2 and a span rounded up: what is beside the rows is written where nobody looks."""
    policy.stacks = True
    plain = run(policy, JOBS, 5)
    made = StackedModel.__init__

    def with_few_shapes(self, *args):
        made(self, *args)
        self.has_few_shapes = True

    monkeypatch.setattr(StackedModel, "__init__", with_few_shapes)
    same(run(policy, JOBS, 5), plain)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_replayed_steps_change_nothing(family, tmp_path_factory, tokenizer, monkeypatch):
    """Rows come and go, and the cache grows, which makes graphs anew."""
    policy = load(tmp_path_factory, tokenizer, family)
    expected = run(policy, JOBS, 5)
    monkeypatch.setattr(kv_cache, "GROW", 8)
    monkeypatch.setattr(module, "SPAN", 16)
    graphs = capture_on_cpu(monkeypatch)
    same(run(policy, JOBS, 5), expected)
    assert len(graphs) > 1 and all(graph.replays for graph in graphs)


class Full(Capture):
    """A capture for which there is no memory."""

    def __torch_dispatch__(self, *call):
        raise RuntimeError("CUDA out of memory")


def test_a_step_that_cannot_be_captured_is_told_once(qwen2, monkeypatch, capsys):
    expected, streams = run(qwen2, JOBS, 5), []
    graphs = capture_on_cpu(monkeypatch, capture=Refused)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    for _ in range(2):
        same(run(qwen2, JOBS, 5), expected)
    assert len(graphs) == 1 and streams == ["own"]
    out = capsys.readouterr().out
    told = "since no step can be captured: operation not permitted when stream is capturing\n"
    assert out.count("captured") == 1 and told in out


def test_memory_that_runs_out_in_a_capture_is_told_as_that(qwen2, monkeypatch):
    capture_on_cpu(monkeypatch, capture=Full)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        run(qwen2, JOBS, 5)


class Copies(TorchDispatchMode):
    """Keeps what is copied to a device without waiting: the source, and whether it and its copy lie in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, bool]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default and args[2:] == (True,):
            self.seen.append((args[1].clone(), args[0].is_contiguous() and args[1].is_contiguous()))
        return function(*args, **(kwargs or {}))


def test_a_steps_ids_are_sent_in_one_piece(qwen2, monkeypatch):
    """Of rows that are not all in use too: a pinned copy of anything else goes by way of a buffer that is not pinned.

    Rows beside them are told to write where nobody looks, and get an id that every model has.
    """
    made = StackedModel.__init__

    def with_few_shapes(self, *args):
        made(self, *args)
        self.has_few_shapes = True

    monkeypatch.setattr(StackedModel, "__init__", with_few_shapes)
    with Copies() as copies:
        run(qwen2, JOBS, 20)
    assert {sent.shape[1] for sent, _ in copies.seen} == {8, 16}
    assert all(is_whole for _, is_whole in copies.seen)
    assert not any(sent[0][sent[1] == 90].any() for sent, _ in copies.seen)


def test_a_compiled_step_expands_no_keys_and_changes_nothing(tmp_path_factory, tokenizer, monkeypatch):
    """Queries that share a head's keys stand together; keys expanded to every head would be copied."""
    policy = load(tmp_path_factory, tokenizer, "qwen2")
    plain, shapes, compile_ = run(policy, JOBS, 5), [], torch.compile

    def backend(graph, inputs):
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            shapes.append(tuple(value.shape) if isinstance(value, torch.Tensor) else ())
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **flags: compile_(f, backend=backend, **flags))
    monkeypatch.setattr(module, "SPAN", 32)
    policy.faster = partial(faster, compiles=True)
    same(run(policy, JOBS, 5), plain)
    keys = [shape for shape in shapes if len(shape) == 4 and shape[2] in (32, 64, 90)]
    assert keys and {shape[1] for shape in keys} <= {1, 2}


def test_a_step_is_compiled_once_for_each_of_many_shapes(qwen2, monkeypatch):
    """torch raises after some shapes of a function, here 3 and by itself 8, unless its limits are raised."""
    plain, graphs, shapes = {n_rows: run(qwen2, JOBS, n_rows) for n_rows in (5, 3)}, [], set()
    compile_, one_each = torch.compile, StackedModel._one_each

    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph.forward

    def seen(self, ids, positions, is_real, cache, span):
        shapes.add((cache.n_rows, span))
        return one_each(self, ids, positions, is_real, cache, span)

    monkeypatch.setattr(torch, "compile", lambda f, **flags: compile_(f, backend=backend, **flags))
    monkeypatch.setattr(StackedModel, "_one_each", seen)
    monkeypatch.setattr(module, "SPAN", 8)
    monkeypatch.setattr(kv_cache, "GROW", 8)
    qwen2.faster = partial(faster, compiles=True)
    with torch._dynamo.config.patch(recompile_limit=3):
        for n_rows in (5, 3, 5):
            same(run(qwen2, JOBS, n_rows), plain[n_rows])
    assert len(graphs) == len(shapes) > 3


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=jobs, seed=st.integers(0, 9))
def test_turns_of_a_compiled_step_are_those_of_a_plain_one(qwen2, jobs, seed):
    """With the compiler that a run has, log-probs included, and with the weights as they are now."""
    fill_adapter(qwen2, seed)
    results = []
    for compiles in (False, True):
        qwen2.faster = partial(faster, compiles=compiles)
        results.append(run(qwen2, jobs, 4))
    same(*results)


def test_a_frozen_base_is_stacked_once_and_not_held_twice(tmp_path_factory, tokenizer):
    policy = load(tmp_path_factory, tokenizer, "llama", dtype=torch.bfloat16)
    attention = policy.backbone.layers[0].self_attn
    before = attention.k_proj.base_layer.weight.clone()
    with policy.for_rollouts():
        whole = policy.stacked.layers[0].qkv.weight
    with policy.for_rollouts():
        assert policy.stacked.layers[0].qkv.weight.data_ptr() == whole.data_ptr()
    weight = attention.k_proj.base_layer.weight
    assert torch.equal(weight, before) and weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("compiles", [False, True])
def test_nothing_of_a_rollout_stays_for_the_update(tmp_path_factory, tokenizer, monkeypatch, compiles):
    """An unpacked base is most of the memory; a cycle of references would keep it until Python looks for one."""
    policy = load(tmp_path_factory, tokenizer, "qwen2", load_in_4bit=True, dequantize=True, dtype=torch.bfloat16)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **flags: compile_(f, backend="eager", **flags))
    policy.faster = partial(faster, compiles=compiles)
    held = []
    made = StackedModel.__init__

    def watched(self, *args):
        made(self, *args)
        held.extend(weakref.ref(each) for each in (self, self.layers[0].qkv.weight))

    monkeypatch.setattr(StackedModel, "__init__", watched)
    gc.collect()
    gc.disable()
    try:
        run(policy, JOBS, 5)
        assert held and not any(each() is not None for each in held)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "flags", [{"load_in_4bit": True}, {"load_in_4bit": True, "dequantize": True}, {"lora_rank": 0}]
)
def test_4_bit_bases_and_full_fine_tuning_compute_the_same(tmp_path_factory, tokenizer, flags):
    policy = load(tmp_path_factory, tokenizer, "qwen2", **flags)
    one = run(policy, JOBS, 5)
    policy.stacks = False
    same(one, run(policy, JOBS, 5))


@pytest.mark.parametrize(("family", "flags"), [("qwen2", {"use_sliding_window": True, "max_window_layers": 0}),
                                               ("gemma", {}), ("mistral", {"sliding_window": 64})])  # fmt: skip
def test_other_layers_keep_transformers_forward(family, flags, tokenizer):
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, **flags,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert not module.can_stack(model.model)


def test_a_step_that_cannot_be_compiled_is_told(tmp_path, tokenizer):
    config = AutoConfig.for_model(
        "gemma", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"lora_rank": 4, "lora_alpha": 8, "load_in_4bit": False, "dtype": torch.float32, "device": CPU}
    with pytest.raises(UserError, match="--compile-decode does nothing for the family gemma"):
        load_policy(str(tmp_path), compile_decode=True, **options)
