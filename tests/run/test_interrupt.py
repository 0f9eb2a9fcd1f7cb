"""A run that is broken off at any micro-batch, decode step or evaluation ends, resumed, as if it had not been."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from searchr1_mini.core import interrupt
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.evaluations import Evaluations
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_jsonl

SETTINGS = make(TrainConfig, 
    steps=3, questions_per_step=2, group_size=4, eval_questions=2, eval_every=2, save_every=3, max_new_tokens=40,
    tokens_per_micro_batch=600, drop_zero_variance=False, reward="format", tensorboard=False, memory_check=False,
)  # fmt: skip
TIMINGS = ("seconds", "rollout_seconds", "tokens_per_second")


def left_behind(folder: Path) -> tuple:
    """What must not depend on interruptions: every metric but the timings, every rollout, the weights."""
    rows = [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_jsonl(folder / "metrics.jsonl")]
    rollouts = [path.read_bytes() for path in sorted((folder / "rollouts").iterdir())]
    return rows, rollouts, (folder / "checkpoints/step-000003/model/policy/adapter_model.safetensors").read_bytes()


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal before the n-th point at which a run may be left; counts them in `.n`."""
    check = interrupt.check

    def count() -> None:
        count.n += 1
        if count.n == count.at:
            os.kill(os.getpid(), signal.SIGTERM)
        check()

    count.n, count.at = 0, None
    monkeypatch.setattr(interrupt, "check", count)
    return count


def test_a_signal_at_any_point_costs_no_bit(tmp_path, signal_at, capsys):
    config = resolve(with_options(SETTINGS, output_dir=str(tmp_path / "whole")))
    train(config)
    n_points = signal_at.n
    whole = left_behind(tmp_path / "whole")
    assert n_points > 100 and [row["step"] for row in whole[0]] == [1, 2, 2, 3, 3]
    told = set()
    for point in (1, n_points // 3, n_points * 3 // 5, n_points * 4 // 5):
        signal_at.n, signal_at.at = 0, point
        config = resolve(with_options(SETTINGS, output_dir=str(tmp_path / str(point))))
        with pytest.raises(KeyboardInterrupt):
            train(config)
        told |= {line for line in capsys.readouterr().out.splitlines() if line.startswith("saved step")}
        signal_at.at = None
        train(with_options(config, resume=True))
        assert left_behind(tmp_path / str(point)) == whole, point
    assert told >= {"saved step 1", "saved step 2"}


def test_an_evaluation_that_was_broken_off_is_made_up_for(tmp_path, signal_at, monkeypatch):
    """The step's weights have moved already, so it is saved, and evaluated when the run goes on."""
    config = resolve(with_options(SETTINGS, output_dir=str(tmp_path / "whole")))
    train(config)
    measure, calls = Evaluations.measure, []

    def stop_in_second(self, run, what):
        calls.append(run)
        if len(calls) == 2:  # the first is the base's
            signal_at.at = signal_at.n + 3
        return measure(self, run, what)

    monkeypatch.setattr(Evaluations, "measure", stop_in_second)
    config = resolve(with_options(SETTINGS, output_dir=str(tmp_path / "broken")))
    with pytest.raises(KeyboardInterrupt):
        train(config)
    rows = read_jsonl(tmp_path / "broken" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and not any("eval/em" in row for row in rows)
    assert (tmp_path / "broken" / "checkpoints" / "step-000002").is_dir()
    train(with_options(config, resume=True))
    assert left_behind(tmp_path / "broken") == left_behind(tmp_path / "whole")


def test_a_run_in_a_thread_is_stopped_by_asking_and_goes_on(tmp_path, monkeypatch):
    """Where there are no signals, as below a page's server."""
    config = resolve(with_options(SETTINGS, steps=1, save_every=1, eval_every=1, output_dir=str(tmp_path / "run")))
    handlers, check, points = [signal.getsignal(signal.SIGINT)], interrupt.check, []

    def asked() -> None:
        points.append(None)
        if len(points) == 40:
            handlers.append(signal.getsignal(signal.SIGINT))
            interrupt.ask()
        check()

    monkeypatch.setattr(interrupt, "check", asked)
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(train, config).exception(), KeyboardInterrupt)
        assert pool.submit(train, with_options(config, resume=True)).result() == tmp_path / "run"
    assert (tmp_path / "run" / "summary.json").is_file() and handlers[0] == handlers[1]
