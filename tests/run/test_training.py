"""A step around its update: which questions, which samples, what they earn, which of them are learned from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
import torch
from helpers.sessions import collect, session_of, train_step

from searchr1_mini.core import methods, scores, training
from searchr1_mini.core.prompts import SEARCH_TEMPLATE, STOP_STRINGS
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.core.rollout_stats import RolloutStats
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrievers.probes import EmptyRetriever
from searchr1_mini.run import evaluations, imitation
from searchr1_mini.run.opening import configured_method, rollout_limits
from searchr1_mini.run.run import Run
from searchr1_mini.storage.files import read_jsonl


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Two questions per step, two rollouts each; tests change its config."""
    return session_of(tmp_path_factory.mktemp("run") / "r", questions_per_step=2, group_size=2, reward="em")


@pytest.fixture(autouse=True)
def as_it_was(request):
    """Puts the config, and the questions, back after each test."""
    run = request.getfixturevalue("run") if "run" in request.fixturenames else None
    before = run and (run.config, run.train)
    yield
    if run:
        run.config, run.train = before


def played(run: Run, example, is_right: bool = False, reason: str = "answer", n_observed: int = 3) -> Trajectory:
    """A rollout that searched once: what it wrote and read are real ids, its log-probs made up."""
    tokenizer = run.policy.tokenizer
    answer = example.golden_answers[0] if is_right else "nobody"
    if reason != "answer":
        answer = None
    last = f"<think> so </think> <answer> {answer} </answer>" if answer else "<think> so"
    parts = [("prompt", "Question: " + example.question), ("policy", "<search> a </search>")]
    parts += [("observation", " x" * n_observed), ("policy", last)]
    segments = []
    for kind, text in parts:
        ids = tokenizer(text)["input_ids"]
        segments.append(Segment(kind, ids, [-1.0] * len(ids) if kind == "policy" else [], text))
    return Trajectory(example.id, segments, reason, answer, ["a"], [" x" * n_observed], [["A"]])


def play(monkeypatch, make) -> list:
    """Has `make(number, example)` give the rollouts, numbered over all rounds; returns what is asked for."""
    asked, numbers = [], iter(range(10**6))

    def rollout(examples, make_method, policy, retriever, limits, *, temperature, seed):
        asked.append((examples, seed, temperature))
        made = [make(next(numbers), example) for example in examples]
        return made, RolloutStats(10, 100, 50, 0, 1.0)

    monkeypatch.setattr(training, "rollout", rollout)
    return asked


def learned_from(run: Run, step: int = 1) -> list[bool]:
    """Takes a step; which of its rollouts the log says were in the update, as share and tokens trained on do."""
    metrics = train_step(run, step)
    rows = read_jsonl(run.folder / "rollouts" / f"step-{step:06d}.jsonl")
    is_in = [row["in_update"] for row in rows]
    assert metrics["trained_on"] == sum(is_in) / len(is_in)
    segments = [segment for row in rows if row["in_update"] for segment in row["segments"]]
    n_tokens = sum(len(segment["token_ids"]) for segment in segments if segment["kind"] == "policy")
    assert metrics["trained_tokens"] == n_tokens * run.config.optimization.epochs
    return is_in


def test_a_question_that_comes_again_is_answered_anew(run):
    """In the next step, in another round and with another seed of the run: else the same words were learned twice."""
    run.train = replace(run.train, examples=run.train.examples[:2])

    def sampled(step: int, **settings) -> dict[str, list]:
        run.config = with_options(run.config, **settings)
        rollouts = collect(run, step)
        return {t.example_id: (t.token_ids, rollouts.trajectories[i ^ 1].token_ids) for i, t in
                enumerate(rollouts.trajectories)}  # fmt: skip

    first, again, second, other = sampled(1), sampled(1), sampled(2), sampled(1, seed=5)
    assert first == again
    assert all(first[name] != second[name] and first[name] != other[name] for name in first)
    assert all(one != two for one, two in first.values())  # and the rollouts of a group differ


def test_each_round_of_a_step_has_its_own_seed_and_groups(run, monkeypatch):
    run.config = with_options(run.config, dynamic_sampling=3, temperature=0.7)
    asked = play(monkeypatch, lambda number, example: played(run, example))  # all wrong: no round is enough
    rollouts = collect(run, 4)
    assert len(asked) == 3 and len({seed for _, seed, _ in asked}) == 3
    assert {temperature for _, _, temperature in asked} == {0.7}
    assert rollouts.group_ids == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [t.example_id for t in rollouts.trajectories] == [e.id for examples, _, _ in asked for e in examples]
    assert [stats.tokens_total for stats in rollouts.stats] == [100, 100, 100]


def test_dynamic_sampling_trains_on_a_full_step_of_groups(run, monkeypatch):
    """Round 1: one group of two differs; round 2: both do, of which one is wanted; there is no third round."""
    right = {0, 4, 7}
    run.config = with_options(run.config, dynamic_sampling=3)
    asked = play(monkeypatch, lambda number, example: played(run, example, is_right=number in right))
    is_in = learned_from(run)
    assert len(asked) == 2
    assert is_in == [True, True, False, False, True, True, False, False]


def test_one_round_is_enough_where_every_group_differs(run, monkeypatch):
    run.config = with_options(run.config, dynamic_sampling=3)
    asked = play(monkeypatch, lambda number, example: played(run, example, is_right=number % 2 == 0))
    assert learned_from(run) == [True] * 4 and len(asked) == 1


@pytest.mark.parametrize(("drops", "is_in"), [(True, [False, False, True, True]), (False, [True] * 4)])
def test_groups_without_a_difference_are_left_out_where_asked(run, monkeypatch, drops, is_in):
    run.config = with_options(run.config, drop_zero_variance=drops)
    play(monkeypatch, lambda number, example: played(run, example, is_right=number == 3))
    assert learned_from(run) == is_in


def test_a_token_counts_once_for_every_pass_over_it(run, monkeypatch):
    run.config = with_options(run.config, epochs=3)
    play(monkeypatch, lambda number, example: played(run, example, is_right=number % 2 == 0))
    assert learned_from(run) == [True] * 4


def test_the_update_gets_each_rollouts_own_advantage(run, monkeypatch):
    """The first group is dropped; what is left must not be trained on by the numbers of the first."""
    run.config = with_options(run.config, drop_zero_variance=True)
    play(monkeypatch, lambda number, example: played(run, example, is_right=number == 3))
    got, prepare = [], training.prepare_grpo

    def seen(policy, batch, advantages, *rest):
        masks = list(batch.loss_mask)
        of_rows = [set(row[: len(mask)][mask].tolist()) for row, mask in zip(advantages, masks, strict=True)]
        got.append((batch.rewards.tolist(), [value for (value,) in of_rows]))  # one along a row
        return prepare(policy, batch, advantages, *rest)

    monkeypatch.setattr(training, "prepare_grpo", seen)
    train_step(run, 1)
    ((rewards, advantages),) = got
    assert rewards == [0.0, 1.0] and advantages == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-4)
    rows = read_jsonl(run.folder / "rollouts" / "step-000001.jsonl")
    assert [row["reward"] for row in rows] == [0, 0, 0, 1]
    assert [row["advantage"] for row in rows] == pytest.approx([0, 0, *advantages])
    assert [row["group"] for row in rows] == [0, 0, 1, 1]


def test_overlong_drop_leaves_out_only_what_the_context_cut(run, monkeypatch):
    """One that used up its turns has failed by itself, and learns it."""
    run.config = with_options(run.config, overlong="drop", drop_zero_variance=False)
    reasons = ["length", "turns", "eos", "answer"]
    play(monkeypatch, lambda number, example: played(run, example, reason=reasons[number], is_right=number == 3))
    assert learned_from(run) == [False, True, True, True]


def test_the_overlong_penalty_counts_all_tokens_of_a_trajectory(run, monkeypatch):
    """What was read takes up the context as what was written does: 30 of a buffer of 100 tokens are used."""
    trajectory = played(run, run.train.examples[0], is_right=True, n_observed=200)
    n_tokens = len(trajectory.token_ids)
    limit = n_tokens + 70
    run.config = with_options(run.config, overlong="penalize", max_total_tokens=limit, overlong_buffer=100)
    assert trajectory.n_policy_tokens < 40
    play(monkeypatch, lambda number, example: played(run, example, number % 2 == 0, n_observed=200))
    rollouts = collect(run, 1)
    wanted = [
        (number % 2 == 0) - (len(t.token_ids) - (limit - 100)) / 100 for number, t in enumerate(rollouts.trajectories)
    ]
    assert rollouts.rewards == pytest.approx(wanted, abs=1e-5)
    assert all(0.1 < (number % 2 == 0) - paid < 0.9 for number, paid in enumerate(rollouts.rewards))


@pytest.mark.parametrize(
    ("settings", "paid"), [({}, 0.0), ({"reward": "format"}, 0.1), ({"retrieval_bonus": 0.25}, 0.25)]
)
def test_a_step_pays_the_reward_that_was_asked_for(run, monkeypatch, settings, paid):
    run.config = with_options(run.config, **settings)

    def found(number, example):
        trajectory = played(run, example)
        trajectory.retrieved = [f"It is {example.golden_answers[0]}."]
        return trajectory

    play(monkeypatch, found)
    assert collect(run, 1).rewards == [paid] * 4


def test_what_a_step_logs_of_its_rollouts(run, monkeypatch):
    """Four rollouts: right, wrong, cut, out of turns."""
    reasons = ["answer", "answer", "length", "turns"]
    play(monkeypatch, lambda number, example: played(run, example, number == 0, reasons[number], n_observed=number))
    metrics = train_step(run, 1)
    made = [played(run, run.train.examples[0], number == 0, reasons[number]) for number in range(4)]
    assert metrics["reward"] == metrics["em"] == 0.25
    assert (metrics["answered"], metrics["overlong"], metrics["searches"]) == (0.5, 0.25, 1.0)
    assert metrics["zero_variance_groups"] == 0.5
    assert metrics["response_tokens"] < max(t.n_policy_tokens for t in made) < 60
    rows = read_jsonl(run.folder / "rollouts" / "step-000001.jsonl")
    written = Counter()
    for row in rows:
        for segment in row["segments"]:
            written[segment["kind"]] += len(segment["token_ids"])
    assert metrics["response_tokens"] == written["policy"] / 4
    assert metrics["observation_tokens"] == written["observation"] / 4


ADVANTAGES = [  # of rewards 1, 0, 0, 0 in a group of four
    ({}, [1.5, -0.5, -0.5, -0.5]),
    ({"normalize_std": False}, [0.75, -0.25, -0.25, -0.25]),
    ({"baseline": "leave-one-out", "normalize_std": False}, [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ({"baseline": "none", "normalize_std": False}, [1.0, 0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(("settings", "wanted"), ADVANTAGES)
def test_a_step_compares_rewards_as_it_was_told(run, monkeypatch, settings, wanted):
    run.config = with_options(run.config, group_size=4, questions_per_step=1, drop_zero_variance=False, **settings)
    play(monkeypatch, lambda number, example: played(run, example, is_right=number == 0))
    train_step(run, 1)
    rows = read_jsonl(run.folder / "rollouts" / "step-000001.jsonl")
    assert [row["advantage"] for row in rows] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("masks", [True, False])
def test_what_was_read_is_trained_on_only_where_asked(run, monkeypatch, masks):
    run.config = with_options(run.config, mask_observations=masks, drop_zero_variance=False)
    play(monkeypatch, lambda number, example: played(run, example, is_right=number % 2 == 0))
    train_step(run, run.config.optimization.steps)  # whose ratios are written down
    (row, *_) = read_jsonl(run.folder / "rollouts" / f"step-{run.config.optimization.steps:06d}.jsonl")
    learned = [segment["kind"] for segment in row["segments"] if "ratios" in segment]
    assert learned == (["policy", "policy"] if masks else ["policy", "observation", "policy"])


def test_questions_come_in_an_order_of_the_runs_seed(run, monkeypatch):
    asked = play(monkeypatch, lambda number, example: played(run, example))
    for seed in (0, 1):
        run.config = with_options(run.config, seed=seed)
        collect(run, 1)
        collect(run, 2)
    orders = [[example.id for example in examples] for examples, _, _ in asked]
    assert len(set(map(tuple, orders))) == 4
    known = {example.id for example in run.train.examples}
    assert all(set(order) <= known and order[0] == order[1] != order[2] == order[3] for order in orders)


def test_the_options_of_a_rollout_reach_it():
    """Each is another than its default."""
    settings = {"max_turns": 3, "max_new_tokens": 21, "topk": 5, "template": "paper", "max_total_tokens": 700}
    config = resolve(make(TrainConfig, **settings, max_observation_tokens=90, rollout_batch_size=7))
    assert rollout_limits(config) == RolloutLimits(7, 700, 90, overlap_search=False)
    assert rollout_limits(with_options(config, retriever="http")).overlap_search

    def asked(config: TrainConfig, replies: list) -> list:
        method = configured_method(config)("Who")
        return [method.send(None), *(method.send(reply) for reply in replies)]

    search = ["<search> a </search>", [], None]
    requests = asked(config, [None, *search * 3, "<search> b </search>"])
    assert requests[0] == methods.Prompt(SEARCH_TEMPLATE.format(question="Who?"))
    assert [request for request in requests if isinstance(request, methods.Search)] == [methods.Search("a", 5)] * 3
    turns = [request for request in requests if isinstance(request, methods.Generate)]
    assert turns == [methods.Generate(STOP_STRINGS, 21)] * 4  # the last without an engine
    assert requests[-1] == methods.Finish(None, "turns")
    for method in ("search-r1", "search-o1"):
        faulty = with_options(config, bug="no-last-turn", method=method, max_turns=1)
        assert asked(faulty, [None, "hm", None])[-1] == methods.Finish(None, "turns")
    without_last = asked(with_options(config, bug="no-last-turn"), [None, *search * 3])
    assert without_last == [*requests[:-2], methods.Finish(None, "turns")]
    no_engine = asked(with_options(config, retriever="none"), [None, *search[:1]])
    assert no_engine[-1] == methods.Observe(methods.INVALID_ACTION)


def test_a_run_is_measured_greedily_on_held_out_questions(run, monkeypatch):
    """With the engine, and once without anything found; what it found without is not what the report shows."""
    asked = []

    def rollout(examples, make_method, policy, retriever, limits, *, temperature, seed):
        asked.append((examples, retriever, temperature))
        return [played(run, example, is_right=len(asked) == 1) for example in examples], None

    monkeypatch.setattr(scores, "rollout", rollout)
    assert run.evaluations.measure(run)["em"] == 1
    samples = run.evaluations.samples
    assert evaluations.measured(run, is_empty=True)[0]["em"] == 0 and run.evaluations.samples is samples
    (first, engine, cold), (second, nothing, colder) = asked
    assert first == second == run.held_out.examples
    assert not {e.question for e in first} & {e.question for e in run.train.examples}
    assert engine is run.held_out.retriever and isinstance(nothing, EmptyRetriever) and cold == colder == 0


def test_a_base_is_measured_once(run, monkeypatch):
    """A resumed run compares with what its first process measured."""
    monkeypatch.setattr(scores, "rollout", lambda examples, *_, **__: ([played(run, e) for e in examples], None))
    run.evaluations.before = None
    run.evaluations.measure_before(run)
    assert run.evaluations.before["em"] == 0 and run.evaluations.samples_before == run.evaluations.samples
    run.evaluations.before = {"em": 0.5}
    run.evaluations.measure_before(run)
    assert run.evaluations.before == {"em": 0.5}


def test_the_adapter_follows_the_seed(run, tmp_path):
    other = session_of(tmp_path / "other", seed=1)
    again = session_of(tmp_path / "again", reward="em")

    def weights(session: Run) -> list:
        return [p for name, p in session.policy.model.named_parameters() if "lora_A" in name]

    assert not any(torch.equal(one, two) for one, two in zip(weights(again), weights(other), strict=True))
    first = session_of(tmp_path / "first", reward="em")
    assert all(torch.equal(one, two) for one, two in zip(weights(again), weights(first), strict=True))


def test_imitation_takes_every_demonstration_once_an_epoch(run, monkeypatch):
    shown, chosen = list(range(8)), []
    monkeypatch.setattr(imitation, "imitation_step", lambda _policy, _optimizer, part, *_: chosen.append(part) or {})
    monkeypatch.setattr(run, "steps", lambda: range(1, 9))
    monkeypatch.setattr(run, "log_step", lambda metrics: None)
    run.config = with_options(run.config, algorithm="sft", questions_per_step=2, steps=8)
    imitation.imitate(run, shown)
    first, second = (list(chain.from_iterable(epoch)) for epoch in (chosen[:4], chosen[4:]))
    assert sorted(first) == sorted(second) == shown and first != second
