"""What the benchmarks do beside measuring: they go on where memory runs out, and say which aim is missed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers.models import SHAPE
from helpers.paths import ROOT

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run import memory


@pytest.fixture
def script(monkeypatch):
    """Imports a script of the folder, which finds the others beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_a_part_that_fails_leaves_the_table_of_the_others(script, tmp_path, monkeypatch, capsys):
    gpu_step, results = script("gpu_step"), tmp_path / "results.json"

    def stand_in(command: list[str], **_) -> subprocess.CompletedProcess:
        part = command[command.index("--part") + 1]
        if part == "decode":
            return subprocess.CompletedProcess(command, 2)
        done = json.loads(results.read_text()) if results.exists() else {}
        done[part] = {"card": "CPU", "shape": "small", "rows": [{"phase": f"rollout of {part}", "seconds": 1.0}]}
        results.write_text(json.dumps(done))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu_step, "save_random", lambda *_: None)
    monkeypatch.setattr(gpu_step.subprocess, "run", stand_in)
    words = ["--shape", "small", "--device", "cpu", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", *words])
    with pytest.raises(UserError, match="not measured, for what is told above: decode;"):
        gpu_step.main()
    shown = capsys.readouterr().out
    assert [part for part in gpu_step.PARTS if f"\n{part}: small on CPU" in shown] == list(gpu_step.PARTS[1:])
    assert "| rollout of 24gb | 1.00 |" in shown


def test_rows_that_do_not_fit_are_halved(script, capsys):
    gpu_step = script("gpu_step")

    def measured(most: int) -> list[int]:
        def work(n_rows: int) -> list[dict]:
            if n_rows > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return [{"rows": n_rows}]

        return [row["rows"] for row in gpu_step.with_rows_that_fit(work)]

    assert list(map(measured, (64, 40, 20, 3))) == [[8, 32, 64], [8, 32], [8, 16], [2]]
    assert "64 rows do not fit" in capsys.readouterr().err
    with pytest.raises(UserError, match="not even one row fits"):
        measured(0)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        gpu_step.with_rows_that_fit(lambda _: torch.ones(2, 3) @ torch.ones(2, 3))


@pytest.mark.parametrize("part", ["decode", "generate"])
def test_decoding_asks_for_no_more_than_it_holds(script, part):
    """A card of 12 GB has room for the weights of Qwen2.5-3B in 16 bits and 64 rows of 1,040 tokens, but for no run."""
    gpu_step = script("gpu_step")
    config = parse(TrainConfig, "gpu_step.py", "", gpu_step.flags_of(part))
    config = resolve(with_options(config, model="Qwen2.5-3B"))
    assert not config.weights.memory_check and config.rollout.rollout_batch_size == max(gpu_step.ROWS)
    terms = memory.predict(config, SHAPE, 2, on_gpu=True).phases["rollout"]
    assert terms["KV cache"] + sum(memory.kept_terms(config, SHAPE, 2).values()) < 11e9


def test_generate_samples_from_the_whole_vocabulary_too(script, monkeypatch):
    gpu_step, asked = script("gpu_step"), []
    monkeypatch.setattr(gpu_step, "decode_seconds", lambda *_: None)
    monkeypatch.setattr(gpu_step, "reset_peak", lambda: None)
    model = SimpleNamespace(generate=lambda **how: asked.append(how))
    policy = SimpleNamespace(device=torch.device("cpu"), model=model, for_rollouts=nullcontext)
    rows = gpu_step.generate_rows(policy, 2)
    assert [row["way"] for row in rows] == ["generate", "ours"]
    assert asked and all(how["do_sample"] and how["top_k"] == 0 for how in asked)


def test_launches_say_which_aim_is_missed(script):
    launches = script("launches")
    assert launches.verdicts(935, 647) == [
        "calls, stacked: 935, aim at most 1,100: met",
        "to those without adapters: 1.45, aim at most 1.1: MISSED",
    ]
    assert [line.rpartition(": ")[2] for line in launches.verdicts(1200, 1150)] == ["MISSED", "met"]


def test_the_comparison_with_trl_says_which_aim_is_missed(script, monkeypatch):
    trl = ModuleType("trl")
    trl.GRPOConfig = trl.GRPOTrainer = object
    monkeypatch.setitem(sys.modules, "trl", trl)
    trl_peer = script("trl_peer")
    assert trl_peer.verdict("one turn", 0.54) == "0.6 met"
    assert trl_peer.verdict("with search", 0.39) == "0.3 MISSED"
