"""A short run of PPO to its end: what is evaluated and saved, and both learning rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.sessions import session_of

from searchr1_mini.core.optimizer import Optimizer
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_metrics


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory) -> tuple[Path, list[list[list[float]]]]:
    """A run of PPO, and its learning rates at every optimizer step, by steps: policy's and critic's at a peak of 1."""
    folder = tmp_path_factory.mktemp("six") / "run"
    run = session_of(
        folder, algorithm="ppo", questions_per_step=2, group_size=1, steps=6, warmup_steps=2, critic_warmup_steps=4,
        decay_steps=2, mini_batches=2, learning_rate=1e-3, critic_learning_rate=1e-4, eval_every=4, save_every=4,
        max_turns=1, max_new_tokens=8,
    )  # fmt: skip
    seen, step = [], torch.optim.AdamW.step

    def take(optimizer, *arguments, **options):
        seen[-1].append([optimizer.param_groups[0]["lr"] / 1e-3, optimizer.param_groups[1]["lr"] / 1e-4])
        return step(optimizer, *arguments, **options)

    def begin(optimizer, *arguments):
        seen.append([])
        return one_step(optimizer, *arguments)

    one_step = Optimizer.begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", take)
        patch.setattr(Optimizer, "begin", begin)
        train(with_options(run.config, resume=True))
    assert [len(updates) for updates in seen] == [2] * 6
    logged = [row["learning_rate"] for row in read_metrics(folder / "metrics.jsonl")]
    assert logged == pytest.approx([updates[-1][0] * 1e-3 for updates in seen])
    return folder, seen


def test_the_last_step_is_always_evaluated_and_saved(six_steps):
    folder, _ = six_steps
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/em" in row] == [4, 6]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("em", "response_tokens", "searches"):
        assert rows[-1][f"eval/{name}"] == summary["after"][name]
        assert rows[-1][f"eval/world-1hop/{name}"] == summary["after"]["by_source"]["world-1hop"][name]
    assert [row["updates"] for row in rows] == [2] * 6 and all(row["trained_tokens"] > 0 for row in rows)
    assert summary["settings"]["value_clip"] == 0.5 and summary["settings"]["max_new_tokens"] == 8
    assert not {"output_dir", "resume", "date"} & summary["settings"].keys()
    assert summary["train_seconds"] == pytest.approx(sum(row["seconds"] for row in rows), abs=0.2)


def test_the_learning_rate_warms_up_by_steps_not_by_updates(six_steps):
    _, rates = six_steps
    of_policy = [updates[-1][0] for updates in rates]
    assert of_policy[:4] == pytest.approx([1 / 2, 1, 1, 1])
    assert 1 > of_policy[-1] > 0 and of_policy[-2] > of_policy[-1]
    assert all(first[0] <= last[0] for first, last in rates[:2])


def test_the_critic_has_a_learning_rate_and_a_warm_up_of_its_own(six_steps):
    assert [updates[-1][1] for updates in six_steps[1]][:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
