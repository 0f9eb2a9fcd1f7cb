"""Memory that runs out: smaller micro-batches, the same gradient, and a sentence where nothing is left to halve."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from helpers.sessions import losses_of, session_of, step_of, train_step

from searchr1_mini.core import interrupt, micro_batches
from searchr1_mini.core.errors import UserError, is_out_of_memory
from searchr1_mini.core.micro_batches import MicroBatches
from searchr1_mini.core.training import weighted
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.variant import configured_variant


@pytest.fixture(autouse=True)
def nothing_is_held() -> Iterator[None]:
    """No step of another test is under way, and none of these is left so."""
    interrupt.clear()
    yield
    interrupt.clear()


def test_what_this_system_says_when_memory_runs_out_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("settings", "is_measured"), [({}, True), ({"kl_coef": 0.0}, False)])
def test_an_update_tells_a_kl_only_where_it_measured_one(tmp_path, settings, is_measured):
    run = session_of(tmp_path, **settings)
    metrics = train_step(run, 1)
    assert ("kl" in metrics) is is_measured and "approx_kl" in metrics


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_running_out_of_memory_does_not_change_the_gradient(tmp_path, algorithm, monkeypatch, capsys):
    """It runs out once the gradient of the first large micro-batch is there already, which must not count twice."""
    groups = {"group_size": 1, "questions_per_step": 16} if algorithm == "ppo" else {}
    run = session_of(tmp_path, algorithm=algorithm, drop_zero_variance=False, **groups)
    _, experience = step_of(run)
    losses, optimizer, gradients = losses_of(run, monkeypatch), run.optimizer, []

    def keep(loss):
        weights = [weight for group in optimizer.adamw.param_groups for weight in group["params"]]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
        optimizer.zero_grad()
        return {}

    def step(losses) -> dict[str, float]:
        optimizer.begin(1, n_updates=1)
        optimizer.step(weighted(experience, run.config, configured_variant(run.config)), losses)
        return optimizer.logs[-1]

    monkeypatch.setattr(optimizer, "apply_gradients", keep)
    whole = step(losses)
    largest = int(experience.batch.lengths.max())

    def losses_of_the_small(part):
        for told in losses(part):
            yield told
            if part.batch.input_ids.numel() > largest:
                raise torch.OutOfMemoryError("CUDA out of memory")

    halved = step(losses_of_the_small)
    told = re.findall(r"out of memory: from here on micro-batches of (\d+) tokens", capsys.readouterr().err)
    assert told and optimizer.micro_batches.tokens == int(told[-1]) < run.config.optimization.tokens_per_micro_batch
    assert gradients[0].norm() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * gradients[0].abs().max().item())
    assert halved["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert halved["ratio_max"] == pytest.approx(whole["ratio_max"], abs=1e-4)


def test_a_trajectory_that_does_not_fit_in_memory_is_reported(tmp_path):
    """As a UserError only while no weight has moved; any other error is passed on unchanged."""
    run = session_of(tmp_path)
    rollouts, experience = step_of(run)
    longest = max(len(trajectory.token_ids) for trajectory in rollouts.trajectories)
    batches = run.optimizer.micro_batches

    def fail(rows):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match=rf"a single trajectory of {longest} tokens; lower --max-total-tokens"):
        batches.over(experience.batch, fail)
    batches.tokens = run.config.optimization.tokens_per_micro_batch
    interrupt.hold()
    with pytest.raises(RuntimeError, match="can't allocate memory"):  # weights have moved: no step to go back to
        batches.over(experience.batch, fail)
    interrupt.release()
    with pytest.raises(RuntimeError, match="shapes"):
        batches.over(experience.batch, lambda rows: (_ for _ in ()).throw(RuntimeError("shapes")))


def test_halving_ends_where_every_row_stands_alone():
    lengths, batches, seen = [30, 50, 20, 45], MicroBatches(10_000), []
    with pytest.raises(UserError, match="a single trajectory of 50 tokens"):
        while len(seen) < 100:
            batches.halve(lengths, None)
            seen.append(batches.tokens)
    assert seen[0] == 100 and all(2 * after <= before for before, after in pairwise(seen))
    assert all(len(rows) == 1 for rows in micro_batches.micro_batches(lengths, seen[-1]))


def test_a_resumed_run_keeps_to_the_smaller_micro_batches(tmp_path):
    run = session_of(tmp_path)
    run.optimizer.micro_batches.tokens = 512
    run.save(1)
    for asked, kept in (({}, 512), ({"tokens_per_micro_batch": 1024}, 1024)):
        assert open_run(with_options(run.config, resume=True, **asked)).optimizer.micro_batches.tokens == kept


def test_a_row_that_changes_its_process_is_counted_once(tmp_path, monkeypatch):
    """Two processes, one after the other: memory runs out in the first try, so that micro-batches are made anew."""
    run = session_of(tmp_path, questions_per_step=2)
    batch = step_of(run)[1].batch
    monkeypatch.setattr(micro_batches, "n_processes", lambda: 2)
    monkeypatch.setattr(micro_batches, "sum_over_processes", lambda values: values)
    total = torch.zeros_like(batch.old_logprobs)
    for process in (0, 1):
        tries = iter([True, False])
        monkeypatch.setattr(micro_batches, "rank", lambda process=process: process)
        monkeypatch.setattr(micro_batches, "any_process", lambda failed, tries=tries: next(tries))
        run.optimizer.micro_batches.tokens = 10**9
        total += run.optimizer.micro_batches.whole(batch, lambda part: torch.ones_like(part.old_logprobs))
    for row, length in enumerate(batch.lengths.tolist()):
        assert total[row, : length - 1].tolist() == [1.0] * (length - 1)


def test_half_of_a_share_is_less_than_a_share(monkeypatch):
    monkeypatch.setattr(micro_batches, "n_processes", lambda: 2)
    lengths, batches = [10, 10, 10, 10], MicroBatches(10**9)
    batches.halve(lengths, None)
    assert batches.tokens == sum(lengths) // 2 // 2
