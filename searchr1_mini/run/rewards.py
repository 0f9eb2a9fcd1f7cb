"""What the options say that a trajectory earns: exact match, its variants, and the public code's format reward."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from searchr1_mini.core.config import RewardConfig
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.scores import f1_score, has_found, sub_exact_match
from searchr1_mini.core.training import Reward
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.variants.rewards import soft_overlong

_TAG = re.compile(r"(</?(?:think|search|answer|information)>)")


def is_well_formed(trajectory: Trajectory) -> bool:
    """Tells whether every turn thinks once and acts once, with nothing outside the tags, and the last answers."""
    actions = [well_formed_action(turn) for turn in trajectory.turns()]
    return bool(actions) and actions[-1] == "answer" and all(action == "search" for action in actions[:-1])


def well_formed_action(turn: str) -> str | None:
    """Returns `search` or `answer` if the turn is `<think>..</think> <action>..</action>` and nothing else, or None.

    Linear in len(turn): it looks at the first five tags at most. The text inside a tag is not empty.
    """
    parts = _TAG.split(turn, maxsplit=5)  # text, tag, text, tag, .., text
    if len(parts) != 9:
        return None
    outside, thought, between, content, after = parts[::2]
    action = parts[5][1:-1]
    is_framed = parts[1::2] == ["<think>", "</think>", f"<{action}>", f"</{action}>"] and action in ("search", "answer")
    is_bare = not (outside.strip() or between.strip() or after.strip())
    return action if is_framed and is_bare and thought and content else None


def format_reward(trajectory: Trajectory, golden_answers: Sequence[str]) -> float:
    """Returns the public code's four values: right 1.0, right but malformed 0.8, wrong but well-formed 0.2, else 0.1.

    0.1 is for an answer that is wrong and malformed; without any answer a malformed trajectory gets 0.
    """
    if exact_match(trajectory.answer, golden_answers):
        return 1.0 if is_well_formed(trajectory) else 0.8
    if is_well_formed(trajectory):
        return 0.2
    return 0.0 if trajectory.answer is None else 0.1


def reward(
    trajectory: Trajectory,
    golden_answers: Sequence[str],
    kind: str = "em",
    retrieval_bonus: float = 0.0,
    search_cost: float = 0.0,
    action_penalty: float = 0.0,
    supporting: Sequence[tuple[str, str]] = (),
) -> float:
    """Computes r(x, y), by default EM(answer, gold), equation 4 of the paper.

    The answer is the one that ended the episode, which the rollout read from policy tokens only: an `<answer>` in the
    prompt or in a passage never scores. The bonus pays a wrong answer, or none, for a search that found the right one
    (see `has_found`), up to what a right one earns: it reads what the engine returned. With `format` it pays only
    well-formed trajectories, as the public code does. The cost is taken off a right answer, one with the full score of
    its kind, for each search beyond the first. The penalty is taken off for never searching, and again for giving no
    answer, so that avoiding to answer is worse than being wrong (Search-R1++, arXiv 2602.19526, read in summaries: they
    give no formula). All are 0 by default.

    Args:
        kind: `em`, `sub-em`, `f1` or `format`.
        supporting: of the example, for the bonus where the answer is yes or no.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "em":
            score = exact_match(trajectory.answer, golden_answers)
        case "sub-em":
            score = sub_exact_match(trajectory.answer, golden_answers)
        case "f1":
            score = f1_score(trajectory.answer, golden_answers)
        case "format":
            score = format_reward(trajectory, golden_answers)
        case _:
            raise ValueError(f"unknown reward {kind!r}; it is em, sub-em, f1 or format")
    is_right = score >= 1 or exact_match(trajectory.answer, golden_answers)
    if not is_right and retrieval_bonus > 0 and (kind != "format" or is_well_formed(trajectory)):
        score = min(score + retrieval_bonus * has_found(trajectory, golden_answers, supporting), 1.0)
    score -= action_penalty * ((not trajectory.queries) + (trajectory.answer is None))
    return score - search_cost * max(len(trajectory.queries) - 1, 0) if is_right else score


def outcome_reward(
    config: RewardConfig, max_total_tokens: int, own: Reward | None = None, action_penalty: float = 0.0
) -> Reward:
    """Computes the reward that the options name: of the outcome, less the penalty of what is overlong (DAPO).

    Args:
        own: pays for the outcome instead.
    """

    def paid(trajectory: Trajectory, example: Example) -> float:
        if own:
            value = own(trajectory, example)
        else:
            how = config.reward, config.retrieval_bonus, config.search_cost, action_penalty
            value = reward(trajectory, example.golden_answers, *how, example.supporting)
        if config.overlong == "penalize":
            n_tokens = torch.tensor(len(trajectory.token_ids))
            value += soft_overlong(n_tokens, max_total_tokens, config.overlong_buffer).item()
        return value

    return paid
