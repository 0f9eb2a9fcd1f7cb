"""The memory preflight: its formulas against real models and autograd, its search, its refusal as a user meets it."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from helpers.models import CPU, QWEN_3B, SHAPE, save_random_qwen2
from helpers.paths import ROOT
from helpers.programs import run_program
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import Qwen2Config

from searchr1_mini import preflight as preflight_command
from searchr1_mini.core import logprobs
from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.policy import Policy
from searchr1_mini.models import loading
from searchr1_mini.models.loading import load_policy
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS
from searchr1_mini.options.nested import get, make, with_options
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.run import memory, preflight
from searchr1_mini.run.shape import Shape, model_shape

DEEPER = model_shape(Qwen2Config(**QWEN_3B.to_dict() | {"num_hidden_layers": 40, "layer_types": None}))
WAYS = [
    {},
    {"gradient_checkpointing": False},
    {"load_in_4bit": False},
    {"lora_rank": 0},
    {"algorithm": "ppo"},
    {"method": "r1"},
]
configs = st.builds(
    lambda way, **numbers: resolve(make(TrainConfig, model="Qwen2.5-3B", **way, **numbers)),
    st.sampled_from(WAYS),
    tokens_per_micro_batch=st.integers(64, 16_384),
    rollout_batch_size=st.integers(1, 128),
    max_total_tokens=st.integers(600, 8192),
    group_size=st.integers(2, 16),
)


def totals(config: TrainConfig, shape: Shape = SHAPE, width: int = 2) -> list[float]:
    predicted = memory.predict(config, shape, width, on_gpu=True)
    return [predicted.total(phase) for phase in predicted.phases]


@given(
    configs,
    st.sampled_from(["tokens_per_micro_batch", "rollout_batch_size", "max_total_tokens", "group_size"]),
    st.integers(1, 4096),
)
def test_no_phase_takes_less_when_there_is_more_of_anything(config, name, more):
    larger = with_options(config, **{name: get(config, name) + more})
    assert all(after >= before for before, after in zip(totals(config), totals(larger), strict=True))


@given(configs)
def test_more_layers_take_more(config):
    assert all(after > before for before, after in zip(totals(config), totals(config, DEEPER), strict=True))


@given(st.lists(st.integers(2, 500), min_size=1, max_size=128))
@example([50] * 128)
def test_no_batch_of_observations_takes_more_than_counted(lengths):
    """Of short ones more rows are fed together, and a layer gathers keys and values of whole rows."""
    config = resolve(make(TrainConfig, model="Qwen2.5-3B", rollout_batch_size=128))
    assert config.data.eval_questions >= 128 and config.rollout.max_observation_tokens == 500
    counted = memory.rollout_terms(config, SHAPE, 2, prompt=250)["prefill or sampling"]
    rows = [SimpleNamespace(pending=range(length)) for length in lengths]
    for batch in Decoder._chunks(SimpleNamespace(chunk_tokens=memory.CHUNK_TOKENS), rows):
        tokens = len(batch) * max(len(row.pending) for row in batch)
        of_whole_rows = 2 * 2 * (SHAPE.key_value + SHAPE.query) * len(batch) * config.rollout.max_total_tokens
        assert of_whole_rows + 2 * tokens * config.rollout.max_total_tokens <= counted


def test_a_shape_counts_what_qwen2_5_counts():
    """Qwen's model card: 3.09 B parameters, 2.77 B without embeddings."""
    assert round(SHAPE.all / 1e9, 2) == 3.09
    assert round((SHAPE.all - SHAPE.vocabulary * SHAPE.hidden) / 1e9, 2) == 2.77


@pytest.mark.parametrize(
    ("load_in_4bit", "dtype", "lora_rank"),
    [(False, torch.float32, 8), (False, torch.bfloat16, 8), (True, torch.bfloat16, 8), (False, torch.float32, 0)],
)
def test_weights_are_those_of_the_loaded_model(tmp_path, tokenizer, load_in_4bit, dtype, lora_rank):
    folder = save_random_qwen2(tmp_path, tokenizer, hidden=512)
    options = {"lora_rank": lora_rank, "load_in_4bit": load_in_4bit}
    config = resolve(make(TrainConfig, model=str(folder), **options))
    predicted = memory.predict(config, preflight.load_shape(str(folder)), dtype.itemsize, on_gpu=False)
    policy = load_policy(str(folder), lora_alpha=8, dtype=dtype, device=CPU, **options)
    models = [policy.model] if lora_rank else [policy.model, policy.frozen]
    real = sum(bytes_of(parameter) for model in models for parameter in model.parameters())
    assert predicted.total("weights") == pytest.approx(real, rel=0.01)


def bytes_of(parameter: torch.nn.Parameter) -> int:
    """A parameter and, of an NF4 one, its scales of both levels."""
    state = getattr(parameter, "quant_state", None)
    scales = [state.absmax, state.state2.absmax, state.state2.code, state.code] if state else []
    return sum(tensor.nbytes for tensor in (parameter.data, *scales))


@pytest.mark.parametrize("lora_rank", [0, 8])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_saved_activations_are_those_that_autograd_saves(tmp_path, tokenizer, lora_rank, checkpointing):
    """Of four more layers, which leaves out what embeddings and the last norm save."""
    options = {"lora_rank": lora_rank, "gradient_checkpointing": checkpointing}
    predicted, saved = [], []
    for layers in (2, 6):
        folder = save_random_qwen2(tmp_path / str(layers), tokenizer, hidden=128, layers=layers)
        config = resolve(
            make(TrainConfig, model=str(folder), max_total_tokens=1024, tokens_per_micro_batch=2048, **options)
        )
        terms = memory.update_terms(config, preflight.load_shape(str(folder)), 4, on_gpu=False)
        predicted.append(terms["saved activations"])
        policy = load_policy(str(folder), lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU, **options)
        saved.append(bytes_saved_by_a_forward(policy, checkpointing))
    assert predicted[1] - predicted[0] == pytest.approx(saved[1] - saved[0], rel=0.01)


def bytes_saved_by_a_forward(policy: Policy, checkpointing: bool) -> int:
    """What autograd saves of a forward of 2 x 1024 ids, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids, positions = torch.arange(2048).remainder(1000).view(2, 1024), torch.arange(1024).expand(2, 1024)
    policy.gradient_checkpointing = checkpointing
    with policy.training(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = policy.hidden(input_ids=ids, position_ids=positions)
    assert hidden.requires_grad
    return sum(storage.nbytes() for address, storage in saved.items() if address not in weights)


@given(configs, st.floats(0.1, 1.0))
def test_the_flags_that_fit_fit_and_none_is_changed_for_nothing(config, share):
    def predicted(tried: TrainConfig) -> memory.Preflight:
        return memory.predict(tried, SHAPE, 2, on_gpu=True)

    room = share * predicted(config).peak
    changes = preflight.flags_that_fit(config, predicted, room)
    if changes is None:
        smallest = {name: values[-1] for name, values in preflight.ways_to_save(config) if values}
        assert predicted(with_options(config, **smallest)).peak > room
        return
    assert predicted(with_options(config, **changes)).peak <= room
    for name in changes:
        kept = {other: value for other, value in changes.items() if other != name}
        assert predicted(with_options(config, **kept)).peak > room, name


def test_every_preset_fits_its_card_with_qwen2_5_3b():
    for preset, card in (("24gb", 24), ("16gb", 16), ("t4", 16), ("12gb", 12)):
        config = resolve(make(TrainConfig, model="Qwen2.5-3B", **PRESETS[preset]))
        assert memory.predict(config, SHAPE, 2, on_gpu=True).peak < 0.9 * card * memory.GB


def test_the_command_names_flags_that_it_then_accepts(monkeypatch, capsys):
    command = ["preflight", "--model", "tiny", "--device", "cpu", "--memory-limit", "0.1"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        run_command(preflight_command.main)
    shown = capsys.readouterr()
    assert exit_.value.code == 2
    assert "rollout" in shown.out and "KV cache" in shown.out and max(map(len, shown.out.splitlines())) <= 80
    flags = re.search(r"GB: (--.*) \(--no-memory-check", shown.err)[1].split()
    monkeypatch.setattr(sys, "argv", command + flags)
    run_command(preflight_command.main)


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_the_command_counts_in_the_format_of_the_device(monkeypatch, capsys, has_bfloat16):
    """On a CPU `fast` takes 16 bits only if they are multiplied in hardware; Apple's GPUs compute in float32."""
    monkeypatch.setattr(loading, "cpu_has_bfloat16", lambda: has_bfloat16)

    def table(device: str, dtype: str) -> str:
        preflight_command.main(["--device", device, "--dtype", dtype])
        return capsys.readouterr().out

    for device in ("cpu", "mps", "cuda"):
        wide, short = table(device, "float32"), table(device, "bfloat16")
        is_fast = device == "cuda" or (device == "cpu" and has_bfloat16)
        assert wide != short and table(device, "fast") == (short if is_fast else wide)
        assert table(device, "auto") == (short if device == "cuda" else wide)
    assert table("auto", "auto") == table("cuda", "float16")


def test_train_refuses_before_it_loads_or_writes(tmp_path):
    result = run_program("train.py", "--memory-limit", 0.01, "--output-dir", tmp_path / "run")
    assert result.returncode == 2
    assert "memory: weights" in result.stdout
    assert "--no-memory-check" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_limit_without_the_check_is_refused():
    with pytest.raises(UserError, match="--memory-limit does nothing with --no-memory-check"):
        resolve(make(TrainConfig, memory_limit=1.0, memory_check=False))


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"memory.max": "1000", "memory.current": "400", "memory.stat": "anon 300\ninactive_file 100"}, 700),
        ({"memory.max": "max", "memory.current": "400", "memory.stat": "anon 300"}, float("inf")),
        ({"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "400",
          "memory/memory.stat": "cache 1"}, 600),
        ({}, float("inf")),
    ],
)  # fmt: skip
def test_a_containers_room_is_its_limit_less_the_memory_in_use(tmp_path, files, room):
    """File cache that can be dropped does not count as in use."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert preflight.cgroup_room(tmp_path) == room


def test_a_4_bit_base_is_unpacked_for_rollouts_if_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "available_bytes", lambda device: 1e12)  # whatever this machine has
    QWEN_3B.save_pretrained(tmp_path)
    arguments = str(tmp_path), CPU, torch.bfloat16, ["Who?"]
    config = resolve(make(TrainConfig, model=str(tmp_path), tokens_per_micro_batch=1024, memory_limit=1000.0))
    predicted = preflight.predictor(*arguments)
    packed, unpacked = (
        predicted(with_options(config, rollout_weights=name)).peak / memory.GB for name in ("base", "dequantized")
    )
    assert unpacked - packed > 3  # 2.8e9 numbers in the layers' matrices, two bytes each
    for room, settled in ((unpacked / 0.85 + 0.1, "dequantized"), (packed / 0.85, "auto")):
        assert preflight.check(with_options(config, memory_limit=room), *arguments).weights.rollout_weights == settled


@pytest.mark.parametrize(
    ("is_large", "share", "gives_back"),
    [(False, 8.0, False), (False, 1.5, True), (True, 8.0, True)],
    ids=["the default run, with room", "the default run, without", "Qwen2.5-3B, with room"],
)
def test_malloc_gives_blocks_back_where_memory_is_scarce(tmp_path, monkeypatch, is_large, share, gives_back):
    """Elsewhere every block that is given back costs page faults: a fifth of the default run's time."""
    QWEN_3B.save_pretrained(tmp_path)
    config = resolve(make(TrainConfig, **({"model": str(tmp_path), "load_in_4bit": False} if is_large else {})))
    arguments = resolve_model(config.run.model), CPU, torch.float32, ["Who?"]
    expected, given = preflight.predictor(*arguments)(config), []
    monkeypatch.setattr(preflight, "available_bytes", lambda device: share * expected.peak)
    monkeypatch.setattr(preflight, "give_back_large_blocks", lambda: given.append(True))
    preflight.check(config, *arguments)
    assert bool(given) == gives_back


def test_the_formulas_count_with_the_bounds_of_the_code():
    assert memory.LOGITS_BYTES == logprobs.LOGITS_BYTES
    assert inspect.signature(Decoder).parameters["chunk_tokens"].default == memory.CHUNK_TOKENS


@given(configs)
def test_16_bits_on_a_cpu_count_what_onednn_holds(config):
    cpu, gpu = (memory.predict(config, SHAPE, 2, on_gpu).phases for on_gpu in (False, True))
    assert {phase for phase in cpu if "oneDNN" in cpu[phase]} == cpu.keys() - {"weights"}
    assert not any("oneDNN" in terms for terms in gpu.values())
    assert not any("oneDNN" in terms for terms in memory.predict(config, SHAPE, 4, on_gpu=False).phases.values())


QWEN2_5 = {  # hidden size, layers, heads, key/value heads, width of the middle, vocabulary
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936),
    "3B": (2048, 36, 16, 2, 11_008, 151_936),
    "7B": (3584, 28, 28, 4, 18_944, 152_064),
    "14B": (5120, 48, 40, 8, 13_824, 152_064),
}
NAMES = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size".split()


@cache
def shape_of(size: str) -> Shape:
    numbers = dict(zip(NAMES, QWEN2_5[size], strict=True))
    return model_shape(Qwen2Config(**numbers, tie_word_embeddings=size not in ("7B", "14B")))


@cache
def peak_of(flags: str) -> str:
    """The peak that is predicted for a command, as the docs print it."""
    config = resolve(*parse_asked(TrainConfig, "train.py", "", shlex.split(flags)))
    shape = shape_of(config.run.model.removeprefix("Qwen2.5-"))
    return f"{memory.predict(config, shape, 2, on_gpu=True).peak / memory.GB:.1f}"


def test_the_docs_tell_what_is_predicted():
    recipes, page = ((ROOT / "docs" / name).read_text() for name in ("recipes.md", "memory.md"))
    told = re.findall(r"^\| `python train\.py (.*?)` \| ([\d.]+) \|$", recipes, re.MULTILINE)
    for preset, *peaks in re.findall(r"^\| `(\d+gb)`.*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE):
        sizes = ("1.5B", "3B", "7B")
        told += [(f"--model Qwen2.5-{n} --preset {preset}", peak) for n, peak in zip(sizes, peaks, strict=True)]
    assert len(told) == 22 + 9
    assert [(flags, peak_of(flags)) for flags, _ in told] == told
