"""Exact match and F1 after SQuAD's normalisation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.rewards import exact_match, f1_score, normalise_answer, reward
from searchr1_mini.trajectory import Segment, Trajectory


@pytest.mark.parametrize(
    ("answer", "golds", "em", "f1"),
    [
        ("the Eiffel Tower!", ["Eiffel tower"], 1.0, 1.0),
        ("Paris, France", ["Paris"], 0.0, 2 / 3),
        ("Rome", ["Paris", "rome."], 1.0, 1.0),
        ("", ["Paris"], 0.0, 0.0),
        (None, ["Paris"], 0.0, 0.0),
        ("a an the", ["the"], 1.0, 1.0),
    ],
)
def test_scores_by_hand(answer, golds, em, f1):
    assert exact_match(answer, golds) == em
    assert f1_score(answer, golds) == pytest.approx(f1)


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@given(st.text(), st.lists(st.text(), max_size=3))
def test_a_full_match_has_full_f1_and_f1_is_a_share(answer, golds):
    assert 0 <= f1_score(answer, golds) <= 1 + 1e-9
    if exact_match(answer, golds):
        assert f1_score(answer, golds) == pytest.approx(1)


def test_only_the_answer_that_ended_the_episode_scores():
    """The reference read the whole text: the answer in its own template scored with no answer at all."""
    text = "For example, <answer> Beijing </answer>"
    trajectory = Trajectory("q", [Segment("prompt", [1], text=text), Segment("observation", [2], text=text)])
    assert reward(trajectory, ["Beijing"]) == 0.0
    trajectory.answer = "Beijing"
    assert reward(trajectory, ["Beijing"]) == 1.0
