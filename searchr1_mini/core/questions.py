"""Questions, and which of them a step asks: a function of seed and step alone, so that a resumed run asks the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from searchr1_mini.core.config import OptimizationConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A question with its gold answers.

    Attributes:
        id: unique over all data sets, as `hotpotqa/5a7a06935542990198eaf050`.
        source: what results are reported by, as `hotpotqa` or `world-2hop`.
        supporting: (title, words) of the passages that the answer rests on, where the data set gives them: a title, and
            words that the passage holds (two passages may share a title).
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    source: str
    supporting: tuple[tuple[str, str], ...] = ()


def step_slice(examples: Sequence[T], step: int, n: int, seed: int, round_: int = 0, part: str = "") -> list[T]:
    """Returns the `n` questions (or demonstrations) of a step: consecutive slices of a fresh permutation each epoch.

    Each round of dynamic sampling, and each part of the examples, has its own order.
    """
    chosen: list[T] = []
    orders: dict[int, list[int]] = {}
    for position in range((step - 1) * n, step * n):
        epoch, index = divmod(position, len(examples))
        if epoch not in orders:
            rng = random.Random(f"{seed}/{epoch}" + f"/{round_}" * (round_ > 0) + f"/{part}" * bool(part))
            orders[epoch] = rng.sample(range(len(examples)), len(examples))
        chosen.append(examples[orders[epoch][index]])
    return chosen


def stratified_slice(examples: Sequence[Example], step: int, n: int, seed: int, round_: int = 0) -> list[Example]:
    """Returns the `n` questions of a step in equal shares of their sources; the remainder moves on each step.

    A source with fewer questions than another comes round sooner.
    """
    sources: dict[str, list[Example]] = {}
    for example in examples:
        sources.setdefault(example.source, []).append(example)
    names = sorted(sources)
    shares = [range(first, step * n, len(names)) for first in range(len(names))]
    chosen: list[Example] = []
    for name, positions in zip(names, shares, strict=True):
        n_before = sum(position < (step - 1) * n for position in positions)
        drawn = step_slice(sources[name], 1, len(positions), seed, round_, name)
        chosen += drawn[n_before:]
    return chosen


def step_questions(
    examples: Sequence[Example], step: int, config: OptimizationConfig, round_: int = 0
) -> list[Example]:
    """Returns the questions of a step, or of a round of it, in equal shares of their sources if so configured."""
    draw = stratified_slice if config.stratify else step_slice
    return draw(examples, step, config.questions_per_step, config.seed, round_)
