"""Memory that runs out: smaller micro-batches, the same gradient, and a sentence where nothing is left to halve."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from sessions import session_of, step_of

from searchr1_mini.core import optimizer, update
from searchr1_mini.core.batch import micro_batches
from searchr1_mini.core.errors import UserError, is_out_of_memory
from searchr1_mini.core.optimizer import half_as_many, over_micro_batches
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.opening import open_run


def test_what_this_system_says_when_memory_runs_out_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("settings", "is_measured"), [({}, True), ({"kl_coef": 0.0}, False)])
def test_an_update_tells_a_kl_only_where_it_measured_one(tmp_path, settings, is_measured):
    run = session_of(tmp_path, **settings)
    metrics = update.update(run, step_of(run)[1])
    assert ("kl" in metrics) is is_measured and "approx_kl" in metrics


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_step_that_ran_out_of_memory_has_the_gradient_of_one_that_did_not(tmp_path, algorithm, monkeypatch, capsys):
    """It runs out once the gradient of the first large micro-batch is there already, which must not count twice."""
    groups = {"group_size": 1, "questions_per_step": 16} if algorithm == "ppo" else {}
    run = session_of(tmp_path, algorithm=algorithm, **groups)
    _, experience = step_of(run)
    gradients = []

    def keep(run, loss):
        weights = [weight for group in run.optimizer.param_groups for weight in group["params"]]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
        run.optimizer.zero_grad(set_to_none=True)
        return {}

    monkeypatch.setattr(update, "apply_gradients", keep)
    whole = update.optimiser_step(run, experience, is_first=True)
    sound = update.policy_backward
    largest = int(experience.batch.lengths.max())

    def policy_backward(run, part, weights):
        out = sound(run, part, weights)
        if part.batch.input_ids.numel() > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    monkeypatch.setattr(update, "policy_backward", policy_backward)
    halved = update.optimiser_step(run, experience, is_first=True)
    told = re.findall(r"out of memory: from here on micro-batches of (\d+) tokens", capsys.readouterr().err)
    assert told and run.optimizer.micro_batches.tokens == int(told[-1]) < run.config.optimization.tokens_per_micro_batch
    assert gradients[0].norm() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * gradients[0].abs().max().item())
    assert halved["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert halved["ratio_max"] == pytest.approx(whole["ratio_max"], abs=1e-4)


def test_a_trajectory_that_does_not_fit_is_told_while_nothing_is_lost(tmp_path):
    run = session_of(tmp_path)
    rollouts, experience = step_of(run)
    longest = max(len(trajectory.token_ids) for trajectory in rollouts.trajectories)

    def fail(rows):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match=rf"a single trajectory of {longest} tokens; lower --max-total-tokens"):
        over_micro_batches(run, experience.batch, fail)
    run.optimizer.micro_batches.tokens = run.config.optimization.tokens_per_micro_batch
    with pytest.raises(RuntimeError, match="can't allocate memory"):  # weights have moved: no step to go back to
        over_micro_batches(run, experience.batch, fail, may_stop=False)
    with pytest.raises(RuntimeError, match="shapes"):
        over_micro_batches(run, experience.batch, lambda rows: (_ for _ in ()).throw(RuntimeError("shapes")))


def test_halving_ends_where_every_row_stands_alone():
    lengths, tokens = [30, 50, 20, 45], 10_000
    seen = []
    while (tokens := half_as_many(lengths, tokens)) is not None:
        seen.append(tokens)
    assert seen[0] == 100 and all(2 * after <= before for before, after in pairwise(seen))
    assert all(len(rows) == 1 for rows in micro_batches(lengths, seen[-1]))


def test_a_resumed_run_keeps_to_the_smaller_micro_batches(tmp_path):
    run = session_of(tmp_path)
    run.optimizer.micro_batches.tokens = 512
    run.save(1)
    assert open_run(with_options(run.config, resume=True)).micro_batch_tokens == 512
    assert open_run(with_options(run.config, resume=True, tokens_per_micro_batch=1024)).micro_batch_tokens == 1024


def test_a_row_that_changes_its_process_is_counted_once(tmp_path, monkeypatch):
    """Two processes, one after the other: memory runs out in the first try, so that micro-batches are made anew."""
    run = session_of(tmp_path, questions_per_step=2)
    batch = step_of(run)[1].batch
    monkeypatch.setattr(optimizer, "n_processes", lambda: 2)
    monkeypatch.setattr(update, "sum_over_processes", lambda values: values)
    total = torch.zeros_like(batch.old_logprobs)
    for process in (0, 1):
        tries = iter([True, False])
        monkeypatch.setattr(optimizer, "rank", lambda process=process: process)
        monkeypatch.setattr(optimizer, "any_of", lambda failed, tries=tries: next(tries))
        run.optimizer.micro_batches.tokens = 10**9
        total += update.of_whole_batch(run, batch, lambda part: torch.ones_like(part.old_logprobs))
    for row, length in enumerate(batch.lengths.tolist()):
        assert total[row, : length - 1].tolist() == [1.0] * (length - 1)


def test_half_of_a_share_is_less_than_a_share(monkeypatch):
    monkeypatch.setattr(optimizer, "n_processes", lambda: 2)
    lengths = [10, 10, 10, 10]
    assert half_as_many(lengths, 10**9) == sum(lengths) // 2 // 2
