"""A chat over a few passages."""

from __future__ import annotations

from helpers.dictated import LIMITS, OneAnswer

from searchr1_mini.chat.terminal import Chat
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.run.methods import make_method

SEARCH = "<think> x </think>\n<search> Oslo </search>"


WIDE = RolloutLimits(n_rows=8, max_total_tokens=4000, max_observation_tokens=1500)


def chat_of(policy, *passages: Passage, name: str = "search-r1", limits=LIMITS, temperature: float = 0.0) -> Chat:
    method = make_method(name, template="short", max_turns=3, max_new_tokens=limits.max_total_tokens // 4, topk=2)
    return Chat(policy, OneAnswer(*passages), method, limits, temperature, 0)
