"""Which questions a step asks: every one once an epoch, or equal shares of the sources."""

from __future__ import annotations

import pytest

from searchr1_mini.core.questions import Example, step_slice, stratified_slice


@pytest.mark.parametrize("n", [4, 5])
def test_every_epoch_asks_each_question_once_in_a_new_order(n):
    questions = list(range(20))
    asked = [question for step in range(1, 60 // n + 1) for question in step_slice(questions, step, n, seed=7)]
    epochs = [asked[first : first + 20] for first in (0, 20, 40)]
    assert all(sorted(epoch) == questions for epoch in epochs)
    assert questions not in epochs and len({tuple(epoch) for epoch in epochs}) == 3
    assert step_slice(questions, 1, 20, seed=8) != epochs[0]
    rounds = [step_slice(questions, 1, 20, seed=7, round_=round_) for round_ in range(3)]
    assert rounds[0] == epochs[0] and len({tuple(order) for order in rounds}) == 3


@pytest.mark.parametrize(("sizes", "n"), [((20, 20), 8), ((30, 10), 4), ((12, 12, 12), 4), ((7,), 3)])
def test_stratified_steps_hold_equal_shares_of_every_source(sizes, n):
    """Every question of a source is asked before any of them is asked again."""
    questions = [Example(f"{k}/{i}", "?", ("x",), f"source {k}") for k, size in enumerate(sizes) for i in range(size)]
    steps = [stratified_slice(questions, step, n, seed=7) for step in range(1, 16)]
    for chosen in steps:
        counts = [sum(e.source == f"source {k}" for e in chosen) for k in range(len(sizes))]
        assert len(chosen) == n and max(counts) - min(counts) <= 1
    for k, size in enumerate(sizes):
        asked = [e.id for chosen in steps for e in chosen if e.source == f"source {k}"]
        assert abs(len(asked) - 15 * n / len(sizes)) < 1
        assert len(set(asked[:size])) == min(size, len(asked)) and asked[:size] != sorted(asked[:size])
