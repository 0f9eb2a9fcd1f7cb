"""A real language model: SmolLM2-135M-Instruct as a GGUF file, which SEARCHR1_SMOLLM2 names (`.ci/run` fetches it)."""

from __future__ import annotations

import json
import os
import re
import sys
from copy import deepcopy
from datetime import date
from pathlib import Path

import pytest
import torch
from helpers.models import CPU
from helpers.programs import run_program
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.encoding import foreign_ids, observation_ids
from searchr1_mini.core.experience import policy_logprobs
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.export import main as export
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.prompting import prompt_ids
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.retrievers.bm25 import RankBM25
from searchr1_mini.run.memory import GB
from searchr1_mini.run.methods import make_method
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_metrics

FILE = os.environ.get("SEARCHR1_SMOLLM2", "")
pytestmark = pytest.mark.skipif(not Path(FILE).is_file(), reason="SEARCHR1_SMOLLM2 names no GGUF file of SmolLM2")
NAMES = (
    "France Italy Norway Japan Peru Egypt Kenya Chile Spain Greece Poland Cuba Iran Nepal Ghana Fiji Mali Oman Laos "
    "Iceland"
)
QUESTIONS = [Example(str(n), f"What is the capital of {name}?", ("?",), "real") for n, name in enumerate(NAMES.split())]
PASSAGES = [
    Passage(str(n), name, f"{name} is a country. Its capital is a city.") for n, name in enumerate(NAMES.split())
]
SMALL = {
    "dataset": "world", "template": "short", "max_new_tokens": 12, "max_turns": 1, "max_total_tokens": 320, "steps": 1,
    "max_observation_tokens": 64, "questions_per_step": 1, "group_size": 2, "eval_questions": 1, "mini_batches": 1,
    "entropy_coef": 0.1, "kl_coef": 0.0, "lora_rank": 4, "tensorboard": False, "warmup_steps": 0, "learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def source(tmp_path_factory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield resolve_model(FILE)


@pytest.fixture(scope="module")
def policy(source) -> Policy:
    return load_policy(source, lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU)


def rollouts(policy: Policy, examples, temperature: float):
    make = make_method("search-r1", template="short", max_turns=1, max_new_tokens=10, topk=1)
    limits = RolloutLimits(20, 400, 64)
    return rollout(examples, make, policy, RankBM25(PASSAGES), limits, temperature=temperature, seed=0)[0]


def test_greedy_turns_are_those_of_transformers(policy):
    """Twenty questions; a turn that is no action gets an observation, and another turn follows it."""
    trajectories = rollouts(policy, QUESTIONS, temperature=0.0)
    prompts = [trajectory.segments[0].token_ids for trajectory in trajectories]
    n_shared = next(n for n, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
    with torch.no_grad():  # what all prompts begin with, once
        shared = policy.causal_lm(torch.tensor([prompts[0][:n_shared]]), use_cache=True).past_key_values
    n_turns = 0
    for trajectory in trajectories:
        before, cache = [], deepcopy(shared)
        for segment in trajectory.segments:
            if segment.kind == "policy":
                ids = torch.tensor([before])
                wanted = policy.causal_lm.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(segment.token_ids),
                    pad_token_id=policy.tokenizer.pad_token_id, past_key_values=cache,
                )  # fmt: skip
                assert wanted[0, len(before) :].tolist() == segment.token_ids, trajectory.example_id
                n_turns += 1
            before += segment.token_ids
    assert n_turns > len(QUESTIONS)


def test_sampled_log_probs_are_those_of_a_fresh_forward(policy):
    trajectories = rollouts(policy, QUESTIONS[:4], temperature=1.0)
    batch = build_batch(trajectories, [0.0] * 4, range(4), policy.tokenizer.pad_token_id)
    with torch.no_grad():
        logprobs, _ = policy_logprobs(policy, batch, temperature=1.0)
    sampled = batch.loss_mask & ~batch.old_logprobs.isnan()
    assert sampled.sum() > 32
    torch.testing.assert_close(logprobs[sampled], batch.old_logprobs[sampled], atol=2e-3, rtol=0)


def test_no_passage_forges_a_control_token_of_the_chat_template(policy):
    """The template is the one in the model's file."""
    tokenizer = policy.tokenizer
    text = tokenizer.decode(prompt_ids("Who are you?", tokenizer, date(2026, 1, 2)))
    assert text.endswith("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
    added = set(tokenizer.get_added_vocab().values())
    for token in tokenizer.get_added_vocab():
        assert not added & set(foreign_ids(f"a {token} b", tokenizer)), token
        ids, _ = observation_ids([Passage("0", token, f"{token}{token}")], tokenizer, 200)
        assert not added & set(ids), token


@pytest.fixture(scope="module")
def run(source, tmp_path_factory) -> Path:
    """One step of GRPO on the base in NF4."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return train(resolve(make(TrainConfig, model=FILE, load_in_4bit=True, output_dir=str(folder), **SMALL)))


def test_a_step_of_grpo_on_nf4_moves_the_adapter(run):
    adapter = load_file(run / "checkpoints" / "step-000001" / "model" / "policy" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    (row,) = read_metrics(run / "metrics.jsonl")
    assert row["grad_norm"] > 0 and row["logprob_diff_max"] < 0.01


def test_a_cold_start_lowers_the_loss_and_makes_turns_valid(source, tmp_path):
    """24 scripted episodes, after which a model that never wrote a tag answers some questions; then a step of GRPO.

    In float32: 16 bits round otherwise from CPU to CPU, and two questions have four turns.
    """
    settings = SMALL | {
        "cold_start": 24, "cold_start_batch_size": 2, "cold_start_learning_rate": 1e-3, "world_hops": "1", "topk": 1,
        "observation": "plain", "max_new_tokens": 32, "eval_questions": 2, "lora_rank": 32,
        "load_in_4bit": False, "gradient_checkpointing": False, "dtype": "float32",
    }  # fmt: skip
    folder = train(resolve(make(TrainConfig, model=FILE, output_dir=str(tmp_path / "run"), **settings)))
    curve = [json.loads(row)["loss"] for row in (folder / "cold_start" / "metrics.jsonl").read_text().splitlines()]
    assert len(curve) == 12 and curve[-1] < curve[0] / 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"]["valid_actions"] < 0.1 and summary["after_cold_start"]["valid_actions"] > 0.9
    assert summary["before"]["em"] == 0 and summary["after_cold_start"]["searches"] > 0.5
    assert summary["steps"] == 1


HELD = """
import json, re, sys
from pathlib import Path
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.training import train
train(resolve(make(TrainConfig, **json.loads(sys.argv[1]))))
print("held", re.search("VmHWM: *(.+) kB", Path("/proc/self/status").read_text().replace(chr(9), " "))[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_preflight_comes_near_the_peak_of_a_run(tmp_path):
    """Three contexts that fill up, in one micro-batch; the peak is that of the whole process."""
    settings = SMALL | {
        "max_turns": 3, "max_new_tokens": 24, "max_total_tokens": 224, "group_size": 3, "tokens_per_micro_batch": 672,
        "lora_rank": 32, "dtype": "float32", "gradient_checkpointing": False, "load_in_4bit": False,
        "model": FILE, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    done = run_program("-c", HELD, json.dumps(settings))
    assert done.returncode == 0, done.stderr
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert row["overlong"] == 1 and row["trained_tokens"] > 0
    predicted = max(map(float, re.findall(r"[\d.]+", re.search(r"^memory: (.+) GB of", done.stdout, re.M)[1])))
    held = int(re.search(r"^held (\d+)", done.stdout, re.M)[1]) * 1024 / GB
    assert abs(predicted / held - 1) < 0.15, (predicted, held)


@torch.no_grad()
def test_adapter_and_merged_weights_are_the_same_model(run, source):
    export([str(run), "--dtype", "float32"])
    merged = AutoModelForCausalLM.from_pretrained(run / "export" / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run / "export" / "adapter")
    ids = torch.arange(100, 140)[None]
    found, wanted = merged(ids).logits, adapted(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)
    with adapted.disable_adapter():
        assert not torch.equal(adapted(ids).logits, wanted)
    assert "SmolLM2" in (run / "export" / "merged" / "README.md").read_text()
    assert str(Path(FILE).parent) not in (run / "export" / "adapter" / "README.md").read_text()
