"""What a step and an evaluation look like as numbers, by hand, and what a run's end makes of them."""

from __future__ import annotations

import json

import pytest
from helpers.sessions import session_of

from searchr1_mini.core.questions import Example
from searchr1_mini.core.rollout_stats import RolloutStats, sum_stats, usual_loop_tokens
from searchr1_mini.core.scores import summarize
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.run import evaluations
from searchr1_mini.run.metrics import CURVES, eval_metrics, rollout_metrics

ONE, TWO = Example("a/1", "Where is Oslo?", ("Norway",), "a"), Example("b/2", "Where is Bern?", ("Switzerland",), "b")


def made(*lengths: int, answer: str | None = None, reason: str = "answer", invalid: int = 0) -> Trajectory:
    """Prompt, turn, observation, turn, ... of these lengths; every turn but the last has searched."""
    kinds = ["prompt", *["policy", "observation"] * len(lengths)][: len(lengths)]
    segments = []
    for kind, n in zip(kinds, lengths, strict=True):
        is_turn = kind == "policy"
        segments.append(Segment(kind, [1] * n, [-1.0] * n * is_turn, "<think> so </think>" if is_turn else "x"))
    queries = ["q"] * (kinds.count("observation") - invalid)
    return Trajectory("q", segments, reason, answer, queries, [], [], invalid_actions=invalid)


ROLLOUTS = [
    made(9, 4, 5, 2, answer="Norway"),
    made(9, 3, answer="Sweden"),
    made(9, 3, 7, 3, 7, 3, reason="turns", invalid=1),
    made(9, 6, reason="length"),
]


def test_a_steps_figures_by_hand():
    asked = [ONE, ONE, TWO, TWO]
    told = rollout_metrics(ROLLOUTS, asked, [1.0, 0.25, 0.0, 0.0], RolloutStats(30, 60, 24, 17, 2.0))
    wanted = {
        "reward": 1.25 / 4, "em": 1 / 4, "searches": 2 / 4, "response_tokens": (6 + 3 + 9 + 6) / 4,
        "observation_tokens": (5 + 14) / 4, "answered": 2 / 4, "overlong": 1 / 4, "invalid_actions": 1 / 4,
        "valid_actions": 1 - 1 / 7, "fed_ratio": 0.5, "prefill_tokens_saved": 17, "rollout_seconds": 2.0,
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == pytest.approx(wanted)


def test_an_answer_counts_whatever_ended_the_rollout():
    """A method of one's own ends for reasons of its own; an evaluation counts the same."""
    ended = made(9, 3, answer="Norway", reason="calculator")
    told = rollout_metrics([ended], [ONE], [1.0], RolloutStats(30, 60, 24, 17, 2.0))
    assert told["answered"] == 1 == summarize([ONE], [ended])["answered"]


def test_an_evaluations_curves_are_those_of_each_source():
    summary = summarize([ONE, TWO, TWO], [ROLLOUTS[0], *ROLLOUTS[2:]])
    told = eval_metrics(summary)
    assert told.keys() == {f"{name}/{key}" for name in ("eval", "eval/a", "eval/b") for key in CURVES}
    assert (told["eval/em"], told["eval/a/em"], told["eval/b/em"]) == (pytest.approx(1 / 3), 1, 0)
    assert (told["eval/a/response_tokens"], told["eval/b/response_tokens"]) == (6, 7.5)
    assert told["eval/b/answered"] == 0 and told["eval/searches"] == pytest.approx(2 / 3)


def test_what_rollouts_cost_adds_up():
    parts = [RolloutStats(1, 2, 3, 4, 5.0), RolloutStats(10, 20, 30, 40, 50.0)]
    assert sum_stats(parts) == RolloutStats(11, 22, 33, 44, 55.0)
    assert sum_stats(parts).fed_ratio == 0.5
    assert usual_loop_tokens(ROLLOUTS[0]) == 9 + 4 + 9 + 4 + 5 + 2  # for each turn all that is before it, and itself


def test_a_run_ends_with_its_last_results_beside_the_first(tmp_path, monkeypatch, capsys):
    """Each figure in its column: before, after, and after without what the engine finds."""
    run = session_of(tmp_path / "run")
    summaries = {name: summarize([ONE], [ROLLOUTS[n]]) for n, name in enumerate(("before", "after", "emptied"))}
    run.evaluations.before, run.evaluations.samples, run.evaluations.samples_before = (
        summaries["before"],
        [ROLLOUTS[1]],
        [ROLLOUTS[0]],
    )
    run.held_out.examples[:] = [ONE]
    run.clock.train_seconds, run.clock.earlier_seconds = 12.34, 100.0
    monkeypatch.setattr(
        evaluations,
        "measured",
        lambda run, what="", is_empty=False: (summaries["emptied" if is_empty else "after"], run.evaluations.samples),
    )
    evaluations.finish(run, lambda folder: folder / "report.html")
    saved = json.loads((run.folder / "summary.json").read_text())
    assert {name: saved[name]["response_tokens"] for name in ("before", "after", "after_without_retriever")} == {
        "before": 6, "after": 3, "after_without_retriever": 9,
    }  # fmt: skip
    assert saved["train_seconds"] == 12.3 and 100 < saved["total_seconds"] < 200
    (tokens,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["tokens"]][-1:]
    assert tokens == ["tokens", "6.0", "3.0", "9.0"]
