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


def episode(*texts: str, answer: str | None = None, retrieved: tuple[str, ...] = ()) -> Trajectory:
    segments = [Segment("prompt", [1], text="Q")]
    for text in texts:
        segments += [Segment("policy", [2], [-1.0], text), Segment("observation", [3], text="<answer> Rome </answer>")]
    return Trajectory("q", segments[:-1], answer=answer, retrieved=list(retrieved))


SEARCH, ANSWER = "<think> a </think>\n<search> b </search>", "<think> c </think>\n<answer> Rome </answer>"


@pytest.mark.parametrize(
    ("trajectory", "score"),
    [
        (episode(SEARCH, ANSWER, answer="Rome"), 1.0),
        (episode(SEARCH, "<answer> Rome </answer>", answer="Rome"), 0.8),  # no thought
        (episode(SEARCH, "so " + ANSWER, answer="Rome"), 0.8),  # text outside of the tags
        (episode("nothing", ANSWER, answer="Rome"), 0.8),  # a turn that was no action
        (episode(SEARCH, ANSWER.replace("Rome", "Oslo"), answer="Oslo"), 0.2),
        (episode("<answer> Oslo </answer>", answer="Oslo"), 0.1),
        (episode(SEARCH, SEARCH), 0.0),
    ],
)
def test_the_format_reward_has_the_public_codes_values(trajectory, score):
    assert reward(trajectory, ["Rome"], "format") == score


def test_variants_by_hand():
    said = episode(ANSWER, answer="the city of Rome", retrieved=("Rome is old.",))
    assert [reward(said, ["Rome"], kind) for kind in ("em", "sub-em", "f1")] == [0.0, 1.0, 0.5]
    assert reward(said, ["Rome"], "em", retrieval_bonus=0.1) == 0.1
    assert reward(episode(ANSWER, answer="Rome", retrieved=("Rome",)), ["Rome"], "em", retrieval_bonus=0.1) == 1.0
    assert reward(episode(ANSWER, answer="Oslo", retrieved=("Romeo",)), ["Rome"], "em", retrieval_bonus=0.1) == 0.0
    assert reward(episode(ANSWER, answer="Romeo"), ["Rome"], "sub-em") == 0.0
    with pytest.raises(ValueError, match="sub-em"):
        reward(said, ["Rome"], "exact")


@pytest.mark.parametrize("kind", ["em", "sub-em", "f1", "format"])
@given(text=st.text(max_size=40))
def test_no_reward_reads_what_the_engine_wrote(kind, text):
    one = episode(SEARCH, ANSWER.replace("Rome", "Oslo"), answer="Oslo")
    two = episode(SEARCH, ANSWER.replace("Rome", "Oslo"), answer="Oslo")
    for segment in two.of_kind("observation"):
        segment.text = text
    assert reward(one, ["Rome"], kind) == reward(two, ["Rome"], kind)
