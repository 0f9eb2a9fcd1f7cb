"""Exact match and F1 after SQuAD's normalization."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.config import RewardConfig
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import contains_gold, exact_match, normalize_answer
from searchr1_mini.core.scores import f1_score, sub_exact_match
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.rewards import outcome_reward, reward
from searchr1_mini.run.training import configured_reward


@pytest.mark.parametrize(
    ("answer", "golds", "em", "f1"),
    [
        ("the Eiffel Tower!", ["Eiffel tower"], 1.0, 1.0),
        ("Paris, France", ["Paris"], 0.0, 2 / 3),
        ("Rome", ["Paris", "rome."], 1.0, 1.0),
        ("", ["Paris"], 0.0, 0.0),
        (None, ["Paris"], 0.0, 0.0),
        ("the", ["A"], 0.0, 0.0),
        ("a", ["A"], 1.0, 1.0),
        (" A. ", ["The Who", "A"], 1.0, 1.0),
        ("a an the", ["the"], 0.0, 0.5),
        ("The", ["The Who"], 0.0, 0.0),
        ("!", ["?"], 0.0, 0.0),
        ("+", ["+"], 1.0, 1.0),
        ("C++", ["c"], 1.0, 1.0),  # SQuAD's own: something is left
        ("。", ["，"], 0.0, 0.0),
        ("\U0001f600", ["\U0001f601"], 0.0, 0.0),
    ],
)
def test_scores_by_hand(answer, golds, em, f1):
    assert exact_match(answer, golds) == em
    assert f1_score(answer, golds) == pytest.approx(f1)


HARD = [  # answer, gold answers, EM and F1 of the official scripts of SQuAD 1.1 and HotpotQA
    ("The Beatles", ["Beatles"], 1, 1.0),
    ("an apple a day", ["apple day"], 1, 1.0),
    ("U.S.A.", ["USA"], 1, 1.0),
    ("rock 'n' roll", ["rock n roll"], 1, 1.0),
    ("well-known", ["well known"], 0, 0.0),
    ("Theodore", ["odore"], 0, 0.0),
    ("São Paulo", ["Sao Paulo"], 0, 0.5),
    ("MÜNCHEN", ["münchen"], 1, 1.0),
    ("“Hamlet”", ["Hamlet"], 0, 0.0),  # only ASCII punctuation is dropped
    ("東京", ["東京"], 1, 1.0),
    ("yes", ["yes"], 1, 1.0),
    ("Yes.", ["yes"], 1, 1.0),
    ("yes, it is", ["yes"], 0, 0.0),  # HotpotQA; SQuAD has no such rule
    ("no", ["no one"], 0, 0.0),
    ("1,000", ["1000"], 1, 1.0),
    ("3.5", ["35"], 1, 1.0),
    ("nineteen", ["19"], 0, 0.0),
    ("Barack Hussein Obama", ["Obama", "Barack Obama"], 0, 0.8),
    ("to be or to be", ["to be"], 0, 4 / 7),
    ("Paris\tFrance\n", ["paris  france"], 1, 1.0),
    ("", [""], 1, 1.0),
]


@pytest.mark.parametrize(("answer", "golds", "em", "f1"), HARD)
def test_hard_cases_score_as_in_the_official_scripts(answer, golds, em, f1):
    assert exact_match(answer, golds) == em == max(official_em(answer, gold) for gold in golds)
    assert f1_score(answer, golds) == pytest.approx(f1)
    if answer.strip(" .") and golds != [""]:
        assert f1 == pytest.approx(max(official_f1(answer, gold) for gold in golds))


def official_normalize(text):
    """As SQuAD's evaluate-v1.1.py and hotpot_evaluate_v1.py have it, step by step."""
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official_em(answer, gold):
    return float(official_normalize(answer) == official_normalize(gold))


def official_f1(answer, gold):
    """f1_score of hotpot_evaluate_v1.py."""
    answer, gold = official_normalize(answer), official_normalize(gold)
    for word in ("yes", "no", "noanswer"):
        if (answer == word or gold == word) and answer != gold:
            return 0.0
    same = sum((Counter(answer.split()) & Counter(gold.split())).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(answer.split()), same / len(gold.split())
    return 2 * precision * recall / (precision + recall)


@given(st.text(), st.text(min_size=1))
def test_non_empty_answers_score_as_in_the_official_scripts(answer, gold):
    if official_normalize(answer) or official_normalize(gold):
        assert exact_match(answer, [gold]) == official_em(answer, gold)
    if official_normalize(answer) and official_normalize(gold):
        assert f1_score(answer, [gold]) == pytest.approx(official_f1(answer, gold))


emptied = st.lists(st.sampled_from(["a", "The", "an", ".", "!", "+", "-", " "]), max_size=4).map("".join)
phrase = st.lists(st.sampled_from(["the", "A", "Who", "who", "C++", ".", "+", "yes", "东京", "?"]), max_size=4)
answers = st.one_of(emptied, phrase.map(" ".join), st.text(max_size=8))


@given(answers, st.lists(answers.filter(str.strip), min_size=1, max_size=3))
def test_sub_em_is_at_least_em(answer, golds):
    """An answer that normalization empties equals only itself."""
    em = exact_match(answer, golds)
    assert sub_exact_match(answer, golds) >= em
    assert f1_score(answer, golds) == pytest.approx(1) or not em
    assert exact_match(golds[0].swapcase(), golds) == 1.0 or golds[0].swapcase().lower() != golds[0].lower()
    if not official_normalize(answer) and em:
        letters = [re.sub(r"[\W_]", "", text.lower()) for text in (answer, *golds)]
        assert letters[0] in letters[1:]


@given(st.text())
def test_normalizing_twice_changes_nothing(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once


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
        (episode(SEARCH, ANSWER.replace(" c ", ""), answer="Rome"), 0.8),  # an empty thought
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
    assert reward(said, ["Rome"], "format", retrieval_bonus=0.1) == pytest.approx(0.2 + 0.1)  # on top of what it earned
    unanswered, malformed = episode(SEARCH, retrieved=("Rome",)), episode("hm", answer="Oslo", retrieved=("Rome",))
    assert reward(unanswered, ["Rome"], retrieval_bonus=0.1) == 0.1
    paid = [reward(made, ["Rome"], "format", retrieval_bonus=0.1) for made in (unanswered, malformed)]
    assert paid == [0.0, 0.1]  # as without the bonus
    assert reward(episode(ANSWER, answer="Oslo"), ["Rome"], "em", retrieval_bonus=0.1) == 0.0  # nothing was retrieved
    assert reward(episode(ANSWER, answer="Oslo", retrieved=("x", "In Rome.")), ["Rome"], retrieval_bonus=0.1) == 0.1
    with pytest.raises(ValueError, match="sub-em"):
        reward(said, ["Rome"], "exact")


@pytest.mark.parametrize(
    ("titles", "supporting", "paid"),
    [(["Oslo"], ("Oslo", "Bern"), 0.0), (["Oslo", "Bern"], ("Oslo", "Bern"), 0.3), (["Oslo"], (), 0.0)],
)
def test_the_bonus_of_a_closed_question_is_for_its_support(titles, supporting, paid):
    """`no` stands in nearly every passage."""
    wrong = episode(ANSWER, answer="yes", retrieved=("There is no such film.",))
    wrong.titles = [titles]
    example = Example("0", "Is it?", ("no",), "q", tuple((title, "") for title in supporting))
    assert outcome_reward(RewardConfig(retrieval_bonus=0.3), 99)(wrong, example) == paid


@pytest.mark.parametrize(("n_searches", "answer", "paid"), [
    (0, "Rome", 1.0), (1, "Rome", 1.0), (2, "Rome", 0.9), (4, "Rome", 0.7), (4, "Oslo", 0.0), (2, None, 0.0),
])  # fmt: skip
def test_a_right_answer_pays_for_each_search_beyond_the_first(n_searches, answer, paid):
    """A wrong one does not: it would be paid for not looking."""
    tried = episode(ANSWER, answer=answer)
    tried.queries = ["q"] * n_searches
    assert reward(tried, ["Rome"], "em", search_cost=0.1) == pytest.approx(paid)


TRIED = st.tuples(st.integers(0, 3), st.sampled_from(["Rome", "Rome of old", "Oslo", None]))  # searches, answer


@given(st.lists(TRIED, min_size=1, max_size=5), st.sampled_from(["em", "f1"]), st.floats(0, 2))
def test_the_action_penalty_is_a_loop_over_what_was_left_undone(tried, kind, penalty):
    """Taken off once for an episode without a search, and once for one without an answer, whatever it earned."""
    paid = outcome_reward(RewardConfig(reward=kind), 99, action_penalty=penalty)
    for n_searches, answer in tried:
        made = episode(ANSWER, answer=answer)
        made.queries = ["q"] * n_searches
        wanted = 0.0 if answer is None else {"em": official_em, "f1": official_f1}[kind](answer, "Rome")
        for is_undone in (n_searches == 0, answer is None):
            wanted -= penalty if is_undone else 0.0
        assert paid(made, Example("0", "Where?", ("Rome",), "q")) == pytest.approx(wanted)


def test_the_action_penalty_of_the_options_is_taken_off():
    config = resolve(make(TrainConfig, reward="f1", action_penalty=0.25))
    idle = episode(ANSWER)
    assert configured_reward(config)(idle, Example("0", "Where?", ("Rome",), "q")) == -0.5


@pytest.mark.parametrize("kind", ["em", "sub-em", "f1", "format"])
@given(text=st.text(max_size=40))
def test_no_reward_reads_what_the_engine_wrote(kind, text):
    one = episode(SEARCH, ANSWER.replace("Rome", "Oslo"), answer="Oslo")
    two = episode(SEARCH, ANSWER.replace("Rome", "Oslo"), answer="Oslo")
    for segment in two.of_kind("observation"):
        segment.text = text
    assert reward(one, ["Rome"], kind) == reward(two, ["Rome"], kind)


@pytest.mark.parametrize(
    ("text", "gold", "stands"),
    [
        ("中国的首都是北京。它很大。", "北京", True),
        ("東京タワーは東京都にある", "東京タワー", True),
        ("กรุงเทพมหานครเป็นเมืองหลวง", "กรุงเทพ", True),
        ("中国的首都是北京。", "上海", False),
        ("The Parisian", "Paris", False),
        ("서울은 수도이다", "서울", True),
        ("수도는 서울이다", "부산", False),
        ("그 배는 ㄱ호이다", "ㄱ", True),
    ],
)
def test_a_gold_answer_stands_in_scripts_without_blanks(text, gold, stands):
    """Korean has blanks, but its words end in particles."""
    assert contains_gold(text, [gold]) is stands


@pytest.mark.parametrize(
    ("kind", "exact", "longer"), [("sub-em", "Paris", "the city Paris"), ("f1", "New York", "New York City")]
)
def test_no_longer_answer_earns_more_than_the_exact_one(kind, exact, longer):
    """With a bonus for a wrong answer whose passages held the right one, and a cost of a right one's searches."""

    def paid(answer, n_searches=1):
        made = Trajectory("0", [], "answer", answer, ["q"] * n_searches, retrieved=[f"It is {exact}."])
        return reward(made, [exact], kind, retrieval_bonus=0.3, search_cost=0.1)

    assert paid(longer) <= paid(exact) == 1.0 and paid("Rome") == pytest.approx(0.3)
    if kind == "sub-em":
        assert paid(longer, 3) == paid(exact, 3) == pytest.approx(0.8)
