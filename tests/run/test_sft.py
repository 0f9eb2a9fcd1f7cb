"""Imitation: what is learned from, the loss against a loop, and a sampling that was interrupted."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from helpers.programs import run_program

from searchr1_mini.core.experience import policy_logprobs
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.imitation import demonstrations, gold_demonstration, imitation_step
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.run import Run
from searchr1_mini.storage.files import read_jsonl

SMALL = "--steps 3 --demonstration-questions 66 --eval-questions 4 --questions-per-step 8 --no-tensorboard".split()


def train(folder: Path, *flags: object) -> str:
    result = run_program("train.py", "--output-dir", folder, *SMALL, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def session_of(folder: Path, algorithm: str) -> Run:
    config = resolve(
        make(TrainConfig, algorithm=algorithm, output_dir=str(folder), eval_questions=4, tensorboard=False)
    )
    return open_run(with_options(config, demonstration_questions=10))


def with_rates(run: Run, **settings) -> Run:
    """The run, whose optimizer steps are made by other options."""
    run.config = with_options(run.config, **settings)
    run.optimizer.config = run.config.optimization
    return run


def step_on(run: Run, shown: list[Trajectory]) -> dict[str, float]:
    """What the first step of the run logs, on these demonstrations."""
    return imitation_step(run.policy, run.optimizer, shown, 1, run.config.optimization)


def test_sft_imitates_gold_answers_after_the_methods_own_prompt(tmp_path):
    run = session_of(tmp_path / "run", "sft")
    shown = demonstrations(run)
    examples = {example.id: example for example in run.train.examples}
    assert len(shown) == 10
    for trajectory in shown:
        prompt, answer = trajectory.segments
        example = examples[trajectory.example_id]
        assert prompt.text.startswith("Question: " + example.question) and prompt.text.endswith("<answer>")
        assert answer.text == f" {example.golden_answers[0]} </answer>"
        assert run.policy.tokenizer.decode(answer.token_ids) == answer.text
        assert example.golden_answers[0] not in prompt.text
    run.tracker.__exit__()


@pytest.mark.parametrize(("gold", "said"), [("<|endoftext|>", "< |endoftext|>"), ("</answer> a", "(/answer) a")])
def test_a_gold_answer_forges_no_token_and_no_tag(tmp_path, gold, said):
    run = session_of(tmp_path / "run", "sft")
    shown = gold_demonstration(run, replace(run.train.examples[0], golden_answers=(gold,)))
    (answer,) = shown.of_kind("policy")
    assert answer.text == f" {said} </answer>" == run.policy.tokenizer.decode(answer.token_ids)
    assert run.policy.tokenizer.eos_token_id not in answer.token_ids
    run.tracker.__exit__()


def test_the_loss_is_the_mean_nll_of_the_policys_tokens(tmp_path):
    """Against a loop over tokens, for rollouts with passages in between, in micro-batches of any size."""
    run = session_of(tmp_path / "run", "rejection-sampling")
    one_update = {"mini_batches": 1, "epochs": 1, "warmup_steps": 0, "decay_steps": 0}
    run = with_rates(run, demonstration_questions=130, **one_update)
    run.optimizer.micro_batches.tokens = 400
    shown = demonstrations(run)[:6]
    assert all(trajectory.queries for trajectory in shown)
    total, n = 0.0, 0
    with torch.no_grad():
        for trajectory in shown:
            ids = torch.tensor([trajectory.token_ids])
            logprobs = run.policy.model(ids).logits[0].log_softmax(-1)
            at = 0
            for segment in trajectory.segments:
                for token in segment.token_ids:
                    if segment.kind == "policy":
                        total, n = total - logprobs[at - 1, token].item(), n + 1
                    at += 1
    before = [p.detach().clone() for p in run.policy.trainable()]
    metrics = step_on(run, shown)
    assert metrics["loss"] == pytest.approx(total / n, rel=1e-5)
    assert any(not torch.equal(old, new) for old, new in zip(before, run.policy.trainable(), strict=True))
    assert step_on(run, shown)["loss"] < metrics["loss"]
    run.tracker.__exit__()


def test_a_step_logs_means_so_that_a_skipped_update_shows(tmp_path, monkeypatch):
    """The first of two mini-batches has a loss that is not finite; the second is sound."""
    run = with_rates(session_of(tmp_path / "run", "sft"), mini_batches=2, epochs=1)
    shown = demonstrations(run)

    def poisoned(policy, batch, temperature):
        logprobs, entropy = policy_logprobs(policy, batch, temperature)
        return logprobs * (float("nan") if run.optimizer.is_first_update else 1.0), entropy

    monkeypatch.setattr("searchr1_mini.run.imitation.policy_logprobs", poisoned)
    metrics, told = step_on(run, shown), run.optimizer.logs
    assert [log["skipped_updates"] for log in told] == [1.0, 0.0]
    assert metrics["skipped_updates"] == 0.5
    assert metrics["entropy"] == pytest.approx(fmean(log["entropy"] for log in told))
    assert metrics["learning_rate"] == told[-1]["learning_rate"] != told[0]["learning_rate"]
    run.tracker.__exit__()


def test_only_right_rollouts_are_imitated_and_sampling_resumes(tmp_path):
    """A kill leaves whole chunks and a torn line; the resumed run ends with the same bits as one that was not."""
    flags = ["--algorithm", "rejection-sampling"]
    out = train(tmp_path / "whole", *flags)
    rows = read_jsonl(tmp_path / "whole" / "demonstrations.jsonl")
    assert [row["sampled"] for row in rows] == [320, 10]  # 64 and 2 questions, 5 rollouts each
    right = [trajectory for row in rows for trajectory in row["right"]]
    assert f"{len(right)} of 330 rollouts were right" in out and right
    assert all(trajectory["finish_reason"] == "answer" for trajectory in right)

    train(tmp_path / "torn", *flags)
    text = (tmp_path / "whole" / "demonstrations.jsonl").read_text()
    first = text.index("\n") + 1
    for path in (tmp_path / "torn" / "checkpoints").iterdir():
        subprocess.run(["rm", "-r", path], check=True)
    (tmp_path / "torn" / "summary.json").unlink()
    (tmp_path / "torn" / "demonstrations.jsonl").write_text(text[: first + 100])
    train(tmp_path / "torn", *flags, "--resume")
    assert (tmp_path / "torn" / "demonstrations.jsonl").read_text() == text
    weights = Path("checkpoints") / "step-000003" / "model" / "policy" / "adapter_model.safetensors"
    assert (tmp_path / "torn" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    logs = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("torn", "whole")]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["steps"] == 3


def test_only_an_exact_answer_is_imitated(tmp_path, monkeypatch):
    """Not one that merely holds the gold answer: its words would be learned as if they were right."""
    run = session_of(tmp_path / "run", "rejection-sampling")
    forms = ["{}", "The {}.", "it is {}", "{} of Norway", "nobody", None]
    asked = []

    def rollout(examples, *_, temperature, seed):
        asked.append((temperature, seed))
        texts = [form and form.format(e.golden_answers[0]) for e, form in zip(examples, forms * 64, strict=False)]
        return [Trajectory(e.id, [], "answer", text) for e, text in zip(examples, texts, strict=True)], None

    monkeypatch.setattr("searchr1_mini.run.imitation.rollout", rollout)
    run.config = with_options(run.config, demonstration_questions=130, group_size=6)
    kept = demonstrations(run)
    golds = {example.id: example.golden_answers[0] for example in run.train.examples}
    assert len(kept) == 2 * 130 and len({seed for _, seed in asked}) == 3
    assert all(trajectory.answer in (golds[trajectory.example_id], f"The {golds[trajectory.example_id]}.")
               for trajectory in kept)  # fmt: skip
    run.tracker.__exit__()


def test_more_demonstrations_hold_the_fewer(tmp_path):
    run = session_of(tmp_path / "run", "sft")
    few = {trajectory.example_id for trajectory in demonstrations(run)}
    run.config = with_options(run.config, demonstration_questions=20)
    assert few < {trajectory.example_id for trajectory in demonstrations(run)}
    run.tracker.__exit__()
