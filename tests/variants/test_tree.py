"""Tree rollouts: what lies before a branch is the chain's, token for token, and the rest is as if sampled there."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
import torch
from helpers.sessions import collect, session_of, train_step
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.algorithms import group_advantages
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.experience import Experience, all_logprobs
from searchr1_mini.core.methods import Aside, Prompt
from searchr1_mini.core.prompts import INVALID_ACTION, parse_action
from searchr1_mini.core.training import Rollouts
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.run.cold_start import cold_start
from searchr1_mini.run.invariants import check_texts
from searchr1_mini.run.token_values import token_values
from searchr1_mini.variants.tree import add_tree_advantages, forks, resumed, stem

LEAVES = 4
TREE = {"tree_branches": LEAVES - 1, "group_size": 2 * LEAVES, "questions_per_step": 6, "cold_start": 96}
# reward of a leaf, and the tokens of its turns
LEAF = st.tuples(st.sampled_from([0.0, 0.2, 1.0]), st.lists(st.integers(1, 4), min_size=1, max_size=3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose policy has been shown how to search, or there would be nowhere to branch."""
    run = session_of(tmp_path_factory.mktemp("tree"), **TREE)
    cold_start(run)
    return run


@pytest.fixture(scope="module")
def rollouts(run):
    return collect(run, 1)


def kinds_of(turns: list[int]) -> list[tuple[str, int]]:
    """(writer, tokens) of the segments of a trajectory with turns of so many tokens, and observations between them."""
    between = [part for n in turns for part in (("policy", n), ("observation", 2))]
    return [("prompt", 3), *between[:-1]]


def trajectory_of(turns: list[int]) -> Trajectory:
    return Trajectory("q", [Segment(kind, [7] * n, [-0.5] * n * (kind == "policy")) for kind, n in kinds_of(turns)])


def shared_segments(one: Trajectory, two: Trajectory) -> int:
    """How many segments two trajectories begin with alike."""
    pairs = list(zip(one.segments, two.segments, strict=False))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))


def test_branches_share_their_chains_beginning(rollouts):
    trajectories = rollouts.trajectories
    assert len(trajectories) == 6 * 2 * LEAVES and rollouts.group_ids == [n for n in range(6) for _ in range(8)]
    deep = 0
    for start in range(0, len(trajectories), LEAVES):
        chain, *branches = trajectories[start : start + LEAVES]
        for branch in branches:
            n = max(point for point in forks(chain) if point <= shared_segments(chain, branch))
            assert stem(branch, n) == stem(chain, n) and branch.example_id == chain.example_id
            deep += n > 1
    assert deep > 20


def test_a_trajectory_of_a_tree_is_as_complete_as_any(run, rollouts):
    """Its log-probs are those of a forward over it, and what it searched and found is all there."""
    check_texts(rollouts.trajectories, run.policy.tokenizer)
    batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    now = all_logprobs(run.policy, batch, run.config.rollout.temperature, run.optimizer.micro_batches)
    torch.testing.assert_close(now[batch.loss_mask], batch.old_logprobs[batch.loss_mask], atol=1e-3, rtol=1e-3)
    for trajectory in rollouts.trajectories:
        shown = [segment.text for segment in trajectory.of_kind("observation")]
        told = [text for text in shown if text != INVALID_ACTION]
        assert trajectory.retrieved == told
        asked = [parse_action(turn) for turn in trajectory.turns()]
        queries = [action.content for action in asked if action.kind == "search"]
        assert trajectory.queries == queries[: len(trajectory.queries)]
        assert len(told) <= len(trajectory.queries) == len(trajectory.titles) <= run.config.rollout.max_turns
        is_last_told = bool(asked) and asked[-1].kind == "invalid" and trajectory.finish_reason == "turns"
        assert trajectory.invalid_actions in (shown.count(INVALID_ACTION), shown.count(INVALID_ACTION) + is_last_told)


def test_the_same_seed_grows_the_same_trees(run, rollouts):
    assert collect(run, 1).trajectories == rollouts.trajectories


def test_what_lies_before_a_branch_is_not_sampled_again(rollouts):
    (stats,) = rollouts.stats
    written = sum(trajectory.n_policy_tokens for trajectory in rollouts.trajectories)
    assert stats.tokens_sampled < 0.8 * written


def test_a_tree_is_compared_with_itself_and_its_group(run, rollouts):
    batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    laid = add_tree_advantages(rollouts, batch, leaves=LEAVES, normalize_std=True)
    for start in range(0, len(rollouts.rewards), LEAVES):
        own = batch.rewards[start : start + LEAVES]
        wanted = group_advantages(own, torch.zeros(LEAVES))[:, None] * batch.loss_mask[start : start + LEAVES]
        torch.testing.assert_close(laid[start : start + LEAVES], wanted)
    assert "grad_norm" in train_step(run, 1)


def test_an_engine_that_looks_at_the_question_is_asked_by_it(run, rollouts):
    """`--retriever oracle` takes no query."""
    chain = next(t for t in rollouts.trajectories if len(t.queries) == 1 and max(forks(t)) > 1)
    before, asked = stem(chain, max(forks(chain))), []

    class Probe:
        def search_for(self, ids, topk):
            asked.append((ids, topk))
            return [[]]

    method = run.make_method(chain.segments[0].text)
    assert next(resumed(method, before, Probe())).token_ids == tuple(before.token_ids)
    assert asked == [([chain.example_id], run.config.retrieval.topk)]


def test_a_method_that_reads_aside_does_not_branch(run, rollouts):
    def reads_aside(question):
        yield Prompt(question)
        yield Aside([], "", (), 4)

    chain = next(t for t in rollouts.trajectories if max(forks(t)) > 1)
    with pytest.raises(UserError, match="--tree-branches"):
        next(resumed(reads_aside("Who?"), stem(chain, max(forks(chain))), None))


def test_the_logged_advantage_of_a_branch_is_the_one_trained_on(run, rollouts):
    batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    experience = Experience(batch, advantages=torch.arange(batch.targets.numel()).view_as(batch.targets).float())
    values = token_values(run, experience)
    for row in (0, len(values) - 1):
        logged = [value for value in values[row]["advantages"] if value is not None]
        assert logged == experience.advantages[row][batch.loss_mask[row]].tolist()


@given(
    st.integers(2, 4).flatmap(lambda n: st.lists(st.lists(LEAF, min_size=n, max_size=n), min_size=1, max_size=3)),
    st.booleans(),
)
def test_the_advantages_of_trees_are_those_of_a_loop(trees, normalize_std):
    """Each leaf against the leaves of its tree, on every token that the policy wrote and on no other."""
    leaves = [leaf for tree in trees for leaf in tree]
    trajectories = [trajectory_of(turns) for _, turns in leaves]
    rollouts = Rollouts(trajectories, rewards=[reward for reward, _ in leaves], group_ids=[0] * len(leaves))
    batch = build_batch(trajectories, rollouts.rewards, rollouts.group_ids, 0)
    laid = add_tree_advantages(rollouts, batch, leaves=len(trees[0]), normalize_std=normalize_std).tolist()
    for tree in trees:
        rewards = [reward for reward, _ in tree]
        scale = stdev(rewards) + 1e-6 if normalize_std else 1.0
        for reward, turns in tree:
            wanted, row = (reward - fmean(rewards)) / scale, laid.pop(0)
            written = [kind == "policy" for kind, n in kinds_of(turns) for _ in range(n)][1:]
            written += [False] * (len(row) - len(written))
            assert row == pytest.approx([wanted if is_ours else 0.0 for is_ours in written], rel=1e-4, abs=1e-4)
    assert laid == []
