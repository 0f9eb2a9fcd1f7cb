"""What a rollout cost, beside what the usual loop would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

from searchr1_mini.core.trajectory import Trajectory


@dataclass
class RolloutStats:
    """What a rollout cost. `fed_ratio` = tokens fed to the model / tokens of all trajectories; at most 1.

    Attributes:
        tokens_fed: tokens that went through the model.
        tokens_total: tokens of all trajectories.
        tokens_sampled: those of the policy.
        prefill_tokens_saved: tokens that a loop which feeds the whole context again at every turn would feed more.
        seconds: wall time.
    """

    tokens_fed: int
    tokens_total: int
    tokens_sampled: int
    prefill_tokens_saved: int
    seconds: float

    @property
    def fed_ratio(self) -> float:
        return self.tokens_fed / max(self.tokens_total, 1)


def usual_loop_tokens(trajectory: Trajectory) -> int:
    """Counts what a loop feeds that begins every turn with the whole context: for each turn, all up to its end."""
    ends = accumulate(len(segment.token_ids) for segment in trajectory.segments)
    return sum(end for end, segment in zip(ends, trajectory.segments, strict=True) if segment.kind == "policy")


def sum_stats(parts: Sequence[RolloutStats]) -> RolloutStats:
    """Sums up what several rollouts cost."""
    return RolloutStats(*(sum(getattr(part, f.name) for part in parts) for f in fields(RolloutStats)))
