"""The programs as a user runs them: train, interrupt, resume, evaluate, ask; LoRA on 4 bits with the real tokenizer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import save_random_qwen2
from helpers.paths import ROOT
from helpers.programs import Program, run_program

from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.saving import save_policy
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.resolve import resolve
from searchr1_mini.storage.files import read_jsonl, read_metrics

SMALL = "--questions-per-step 4 --group-size 4 --eval-questions 8 --mini-batches 2 --no-tensorboard".split()


def train(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    return run_program("train.py", "--output-dir", folder, *SMALL, *arguments)


def losses(folder: Path) -> list[tuple]:
    """Of every line as it was written, so that one that a resumed run ought to have cut off would show."""
    keys = ("step", "loss", "reward", "kl", "grad_norm", "response_tokens", "eval/em")
    return [tuple(row.get(key) for key in keys) for row in read_jsonl(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = train(folder, "--steps", 4, "--save-every", 2, "--eval-every", 2, "--keep-checkpoints", 3)
    assert result.returncode == 0, result.stderr
    assert "Before training" in result.stdout and "After training" in result.stdout
    assert "world-1hop (4)" in result.stdout and "report.html" in result.stdout
    return folder


def test_a_run_leaves_what_others_read(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"config.json", "metrics.jsonl", "rollouts", "checkpoints", "summary.json", "report.html"} <= names
    summary = json.loads((whole_run / "summary.json").read_text())
    assert {"em", "f1", "searches", "response_tokens", "by_source"} <= set(summary["after"])
    assert summary["steps"] == 4 and summary["train_seconds"] <= summary["total_seconds"]
    assert summary["after_without_retriever"]["em"] <= 0.25
    metrics = read_metrics(whole_run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert all(row["fed_ratio"] <= 1.0 for row in metrics)
    assert all(row["logprob_diff_max"] < 1e-3 for row in metrics if "logprob_diff_max" in row)
    assert "eval/world-2hop/em" in metrics[1]
    rows = read_jsonl(whole_run / "rollouts" / "step-000001.jsonl")
    assert len(rows) == 16
    for row in rows:
        for segment in row["segments"]:
            assert len(segment["logprobs"]) == (len(segment["token_ids"]) if segment["kind"] == "policy" else 0)


def test_kill_9_and_resume_end_as_if_nothing_had_happened(whole_run, tmp_path):
    """Killed after the first checkpoint; the resumed run logs the same losses and the same final weights."""
    folder = tmp_path / "killed"
    arguments = ["--steps", "4", "--save-every", "2", "--eval-every", "2", "--keep-checkpoints", "3"]
    killed = Program("train.py", "--output-dir", folder, *SMALL, *arguments)
    next(line for line in killed.stdout if line.startswith("step 3/"))
    killed.kill()
    assert killed.wait().returncode == -signal.SIGKILL
    resumed = train(folder, *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 2" in resumed.stdout
    assert losses(folder) == losses(whole_run)
    name = Path("checkpoints") / "step-000004" / "model" / "policy" / "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (whole_run / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_tell_how_to_go_on(tmp_path, number):
    folder = tmp_path / "stopped"
    program = Program("train.py", "--output-dir", folder, *SMALL, "--steps", 50, "--save-every", 50)
    next(line for line in program.stdout if line.startswith("step 1/"))
    program.send_signal(number)
    stopped = program.wait()
    out = stopped.stdout
    assert stopped.returncode == 130
    assert f"--resume --output-dir {folder}" in out and "Traceback" not in stopped.stderr
    (saved,) = (folder / "checkpoints").iterdir()
    assert f"saved step {int(saved.name.removeprefix('step-'))}" in out
    last = int(saved.name.removeprefix("step-"))
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")][-1] == last
    (told,) = [line for line in out.splitlines() if line.startswith("continue with: python ")]
    command = told.removeprefix("continue with: python ").split()
    refused = run_program(*command, "--learning-rate", 0.5)
    assert refused.returncode == 2 and "has learning_rate 0.003, not 0.5" in refused.stderr
    went_on = run_program(*command, "--steps", last + 1)
    assert went_on.returncode == 0, went_on.stderr
    assert len(read_jsonl(folder / "rollouts" / f"step-{last + 1:06d}.jsonl")) == 16, "not with the run's own options"


def test_a_finished_run_is_evaluated_on_a_fresh_world(whole_run, tmp_path):
    result = run_program(
        "eval.py", "--run", whole_run, "--limit", 6, "--world-seed", 77, "--output-dir", tmp_path / "eval"
    )
    assert result.returncode == 0, result.stderr
    assert "3 of world-1hop (subset " in result.stdout
    saved = json.loads((tmp_path / "eval" / "results.json").read_text())["rows"]["search-r1"]
    assert [part["n"] for part in saved["by_source"].values()] == [3, 3]
    (cell,) = (tmp_path / "eval" / "cells").iterdir()
    assert {row["example_id"].split("/")[1] for row in read_jsonl(cell)} == {"77"}


def test_the_adapter_is_what_is_evaluated(whole_run, tmp_path):
    """The trained adapter changes the log-probs, and is loaded from the checkpoint that was asked for."""
    found = []
    base = ["--model", "tiny", "--methods", "search-r1", "--no-train"]
    for number, arguments in enumerate((["--run", whole_run], ["--run", whole_run, "--checkpoint", 2], base)):
        out = tmp_path / str(number)
        result = run_program("eval.py", *arguments, "--limit", 4, "--output-dir", out)
        assert result.returncode == 0, result.stderr
        rows = [row for path in (out / "cells").glob("*.jsonl") for row in read_jsonl(path)]
        found.append([s["logprobs"] for row in rows for s in row["segments"] if s["kind"] == "policy"])
        assert found[-1]
    assert found[0] != found[1] != found[2] != found[0]
    missing = run_program("eval.py", "--run", whole_run, "--checkpoint", 3)
    assert missing.returncode == 2 and "it has [2, 4]" in missing.stderr


def test_live_trajectories_are_colored_by_writer(whole_run):
    result = run_program("eval.py", "--run", whole_run, "--ask", "Who is Ada Abbott?", "--color", "always")
    assert "\x1b[1;94m" in result.stdout and "\x1b[2m" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--run", "nowhere"], "holds no run"),
        (["--run", "x", "--model", "tiny"], "--run brings its own model"),
        (["--checkpoint", "3"], "--run"),
    ],
)
def test_what_cannot_be_evaluated_is_told(arguments, told):
    result = run_program("eval.py", *arguments)
    assert result.returncode == 2 and told in result.stderr and "Traceback" not in result.stderr


def test_a_folder_that_holds_a_run_is_refused(whole_run):
    result = train(whole_run, "--steps", 1)
    assert result.returncode == 2 and "--resume" in result.stderr and "Traceback" not in result.stderr
    other = train(whole_run, "--steps", 4, "--resume", "--seed", 5)
    assert other.returncode == 2 and "has seed 0, not 5" in other.stderr


def test_a_full_disk_ends_in_a_sentence(tmp_path):
    code = (
        "import resource, signal, runpy, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); sys.argv = sys.argv[1:];"
        "runpy.run_path('train.py', run_name='__main__')"
    )
    result = run_program("-c", code, "train.py", "--output-dir", tmp_path / "r", *SMALL, "--steps", 1)
    assert result.returncode == 2, result.stderr
    assert "disk is full" in result.stderr and "Traceback" not in result.stderr


def test_ppo_killed_and_resumed_ends_as_if_nothing_had_happened(tmp_path):
    """Two adapters, a value head and two learning rates come back from the checkpoint."""
    flags = "--algorithm ppo --questions-per-step 8 --group-size 1 --epochs 2 --steps 3 --save-every 2".split()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["train.py", "--eval-questions", 4, "--no-tensorboard", *flags, "--output-dir"]
    assert run_program(*command, whole).returncode == 0
    program = Program(*command, killed)
    next(line for line in program.stdout if line.startswith("step 2/"))
    program.send_signal(signal.SIGINT)
    program.wait()
    resumed = run_program(*command, killed, "--resume")  # after step 3 where the signal came too late in it to leave it
    assert resumed.returncode == 0 and re.search(r"resumed after step [23]\b", resumed.stdout), resumed.stderr
    keys = ("loss", "value_loss", "explained_variance", "critic_grad_norm", "kl", "reward")
    rows = [[[row[key] for key in keys] for row in read_metrics(f / "metrics.jsonl")] for f in (whole, killed)]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    names = ["critic/critic/adapter_model.safetensors", "critic/value_head.safetensors"]
    for name in [*names, "model/policy/adapter_model.safetensors"]:
        one, two = (f / "checkpoints" / "step-000003" / name for f in (whole, killed))
        assert one.read_bytes() == two.read_bytes(), name


def test_every_relative_of_grpo_trains(tmp_path):
    """Flags that change the objective, all at once where they allow it: two steps, finite losses."""
    families = {
        "gspo": "--ratio sequence --loss-aggregation sequence --clip-eps 0.003 --clip-eps-high 0.004",
        "dapo": "--clip-eps-high 0.28 --dynamic-sampling 2 --overlong penalize --kl-coef 0",
        "dr-grpo": "--no-normalize-std --loss-aggregation constant --entropy-coef 0.01 --llds-coef 0.1",
        "rloo": "--baseline leave-one-out --kl-estimator k2 --importance-cap 2 --overlong drop",
        "reinforce": "--group-size 1 --questions-per-step 16 --retrieval-bonus 0.1",
    }
    for name, flags in families.items():
        drops = "--group-size 1" in flags or "--dynamic-sampling" in flags
        keeps = [] if drops else ["--no-drop-zero-variance"]
        result = train(tmp_path / name, "--steps", 2, "--reward", "format", *keeps, *flags.split())
        assert result.returncode == 0, result.stderr
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        assert all("loss" in row for row in rows), name
        assert all(row.get("grad_norm", 0) is not None and not row.get("skipped_updates") for row in rows), name


def test_an_offline_hub_is_told():
    command = [sys.executable, "train.py", "--model", "Qwen2.5-3B", "--output-dir", "unused"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=offline)
    assert result.returncode == 2 and "name a local folder" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("lora_rank", [8, 0])
def test_a_policy_survives_saving_and_its_reference_stays(random_qwen2, tmp_path, lora_rank):
    settings = {"lora_alpha": 8, "load_in_4bit": False, "dtype": torch.float32, "device": torch.device("cpu")}
    policy = load_policy(str(random_qwen2), lora_rank=lora_rank, **settings)
    ids = torch.arange(1, 20)[None]
    before = policy.hidden(input_ids=ids)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += 0.01
    trained = policy.hidden(input_ids=ids)
    assert not torch.allclose(trained, before, atol=1e-3)
    with policy.reference():
        torch.testing.assert_close(policy.hidden(input_ids=ids), before)
    save_policy(policy, tmp_path)
    again = load_policy(str(random_qwen2), lora_rank=lora_rank, weights=tmp_path, **settings)
    torch.testing.assert_close(again.hidden(input_ids=ids), trained)
    with again.reference():
        torch.testing.assert_close(again.hidden(input_ids=ids), before)
    assert len(again.trainable()) == len(policy.trainable()) > 0


def test_lora_on_nf4_trains_and_evaluates_with_a_real_tokenizer(shared, qwen_tokenizer, tmp_path):
    """Two steps of GRPO on HotpotQA through bitsandbytes and peft, then evaluation: what runs on Qwen2.5-3B."""
    model = save_random_qwen2(tmp_path / "qwen", qwen_tokenizer, hidden=128)
    data = shared / "data" / "hotpotqa_distractor_100.json"
    budget = "--max-new-tokens 12 --max-total-tokens 420 --max-observation-tokens 60 --max-turns 2 --steps 2".split()
    budget += "--questions-per-step 2 --group-size 2 --eval-questions 3 --mini-batches 1 --no-tensorboard".split()
    budget += ["--weight-decay", "0.01"]  # all rewards of a random model are 0: else nothing would be updated
    flags = ["--model", model, "--dataset", "hotpotqa", "--data-path", data, "--load-in-4bit"]
    result = run_program("train.py", "--output-dir", tmp_path / "run", *flags, *budget)
    assert result.returncode == 0, result.stderr
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(metrics) == 2 and all(row["fed_ratio"] <= 1 for row in metrics)
    assert all(row["grad_norm"] is not None and row["logprob_diff_max"] < 0.05 for row in metrics)
    scored = run_program("eval.py", "--run", tmp_path / "run", "--limit", 3, "--output-dir", tmp_path / "eval")
    assert scored.returncode == 0 and "3 of hotpotqa" in scored.stdout, scored.stderr


def test_the_4_bit_base_is_quantized_and_only_the_adapter_trains(random_qwen2):
    import bitsandbytes

    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=True, dtype=torch.float32,
        device=torch.device("cpu"), gradient_checkpointing=True,
    )  # fmt: skip
    quantized = [m for m in policy.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(quantized) == 2 * 7 and all(m.weight.quant_type == "nf4" for m in quantized)
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7 * 2 and all("lora_" in name for name in names)
    gradients = []
    for _ in range(2):
        with policy.training():
            policy.hidden(input_ids=torch.arange(1, 9)[None]).pow(2).sum().backward()
        gradients.append([p.grad.clone() for p in policy.trainable()])
        policy.model.zero_grad()
        with torch.no_grad():  # a rollout: bitsandbytes would repack its weights here, and pass no gradient afterwards
            policy.hidden(input_ids=torch.arange(1, 9)[None])
    assert all(g.abs().sum() > 0 for name, g in zip(names, gradients[0], strict=True) if "lora_B" in name)
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_defaults_are_those_of_the_embedded_world():
    config = resolve(TrainConfig())
    assert (config.data.dataset, config.weights.lora_rank, config.weights.load_in_4bit) == ("world", 16, False)
