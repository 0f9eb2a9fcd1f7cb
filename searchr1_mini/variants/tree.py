"""Tree rollouts (Tree-GRPO, arXiv 2509.21240): chains that branch after a search, and the advantages within a tree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from searchr1_mini.core.algorithms import group_advantages
from searchr1_mini.core.batch import Batch
from searchr1_mini.core.distributed import share
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.methods import Aside, Generate, MakeMethod, Method, Observe, Prompt, Search
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.prompts import INVALID_ACTION
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Retriever, ask
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.core.rollout_stats import RolloutStats, sum_stats
from searchr1_mini.core.training import Rollouts
from searchr1_mini.core.trajectory import Trajectory

BRANCH_SEED = 250_007  # added to the step's, so that branches draw other numbers than chains


def tree_rollout(
    examples: Sequence[Example],
    make_method: MakeMethod,
    policy: Policy,
    retriever: Retriever,
    limits: RolloutLimits,
    *,
    temperature: float,
    seed: int,
    leaves: int,
) -> tuple[list[Trajectory], RolloutStats]:
    """Rolls out trees of `leaves` trajectories each: a chain, and branches from after an observation.

    Which observation a branch starts from is drawn by the seed; where a chain has none, it starts from the prompt. What
    lies before the branch is not sampled again, and is prefilled once for all branches from there. Its searches are
    asked again, one by one, since a method of one's own may look at what they find.

    Args:
        examples: each question as often in a row as it is to be answered, a multiple of `leaves`.
        leaves: trajectories per tree.

    Returns:
        A trajectory for each example, tree after tree, the chain first; other arguments and errors as of `rollout`.
    """
    how = {"temperature": temperature}
    chains, stats = rollout(examples[::leaves], make_method, policy, retriever, limits, seed=seed, **how)
    draw = random.Random(f"{seed}/branches")
    stems = [stem(chain, draw.choice(forks(chain))) for chain in chains for _ in range(leaves - 1)]
    left = iter(stems[share(len(stems))])
    rest = [example for example in examples[::leaves] for _ in range(leaves - 1)]
    grown, of_branches = rollout(
        rest, lambda question: resumed(make_method(question), next(left), retriever), policy, retriever, limits,
        seed=seed + BRANCH_SEED, **how,
    )  # fmt: skip
    branches = [joined(before, after) for before, after in zip(stems, grown, strict=True)]
    trees = [[chain, *branches[i * (leaves - 1) : (i + 1) * (leaves - 1)]] for i, chain in enumerate(chains)]
    return [trajectory for tree in trees for trajectory in tree], sum_stats([stats, of_branches])


def forks(chain: Trajectory) -> list[int]:
    """Lists after how many segments a chain may branch: observations that a turn followed, else its prompt."""
    kinds = [segment.kind for segment in chain.segments]
    return [n for n in range(2, len(kinds)) if kinds[n - 1] == "observation" and kinds[n] == "policy"] or [1]


def stem(chain: Trajectory, n_segments: int) -> Trajectory:
    """Copies a chain up to where it branches."""
    segments = chain.segments[:n_segments]
    n_searches = sum(segment.text in chain.retrieved for segment in segments if segment.kind == "observation")
    n_invalid = sum(segment.text == INVALID_ACTION for segment in segments if segment.kind == "observation")
    return Trajectory(
        chain.example_id, segments, queries=chain.queries[:n_searches], retrieved=chain.retrieved[:n_searches],
        titles=chain.titles[:n_searches], invalid_actions=n_invalid,
    )  # fmt: skip


def resumed(method: Method, before: Trajectory, retriever: Retriever) -> Method:
    """Plays a method up to the end of a stem, then goes on from its tokens; a search on the way is asked again.

    Raises:
        UserError: the method reads something aside on the way.
    """
    turns = before.of_kind("policy")
    left, value = sum(1 for _ in before.of_kind("observation")), None
    method.send(None)  # its prompt, which the stem begins with
    while left:
        request = method.send(value)
        value = None
        match request:
            case Generate():
                value = next(turns).text
            case Search(query, topk):
                value = [hit.passage for hit in ask(retriever, [query], [before.example_id], topk)[0]]
            case Aside():
                raise UserError("--tree-branches does not go with a --method that reads aside; leave it out")
            case Observe():
                left -= 1
    yield Prompt("", tuple(before.token_ids))
    while True:
        value = yield method.send(value)


def joined(before: Trajectory, after: Trajectory) -> Trajectory:
    """Puts a stem and what grew from it together."""
    return replace(
        after, segments=[*before.segments, *after.segments[1:]], queries=before.queries + after.queries,
        retrieved=before.retrieved + after.retrieved, titles=before.titles + after.titles,
        invalid_actions=before.invalid_actions + after.invalid_actions,
    )  # fmt: skip


def add_tree_advantages(rollouts: Rollouts, batch: Batch, *, leaves: int, normalize_std: bool) -> Tensor:
    """Compares each trajectory with those of its tree (Tree-GRPO: intra-tree, on top of the group's, inter-tree).

    Args:
        rollouts: N of a step, `leaves` by `leaves`.
        batch: built from them.

    Returns:
        (N, T-1), 0 where the policy did not write.
    """
    trees = torch.arange(len(rollouts.trajectories)) // leaves
    return group_advantages(batch.rewards, trees, "group", normalize_std)[:, None] * batch.loss_mask
