"""The stability watch: signs of a collapse in a run's metrics, each with its likely cause and the flag to try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

WINDOW = 5  # steps that a sign must last
QUIET = 20  # steps before the same warning is given again

History = Sequence[dict[str, Any]]


class Watch:
    """Sees each step's metrics and tells what looks wrong; it never changes the run.

    Args:
        history: metrics of the steps so far, when a run is resumed.
    """

    def __init__(self, history: History = ()) -> None:
        self.history = list(history)
        self.told: dict[str, int] = {}

    def see(self, step: int, metrics: dict[str, Any]) -> list[str]:
        """Warnings of this step; one that was given less than QUIET steps ago is not repeated."""
        self.history.append(metrics)
        found = []
        for name, detector in DETECTORS.items():
            warning = detector(self.history)
            if warning and step - self.told.get(name, -QUIET) >= QUIET:
                self.told[name] = step
                found.append(warning)
        return found


def recent(history: History, key: str, n: int = WINDOW) -> float | None:
    """Mean of the last `n` values, or None before there are so many."""
    values = [row[key] for row in history if row.get(key) is not None][-n:]
    return fmean(values) if len(values) == n else None


def early(history: History, key: str, n: int = WINDOW) -> float | None:
    """Mean of the first `n` values: what was normal for this run."""
    values = [row[key] for row in history if row.get(key) is not None][:n]
    return fmean(values) if len(values) == n else None


def best(history: History, key: str) -> float:
    """The highest mean of WINDOW consecutive values so far."""
    values = [row[key] for row in history if row.get(key) is not None]
    return max((fmean(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)), default=0.0)


def not_finite(history: History) -> str | None:
    """An update that was thrown away."""
    if history[-1].get("skipped_updates"):
        return (
            "a loss or gradient was not finite and its update was thrown away; if it goes on, lower --learning-rate "
            "or take --dtype float32"
        )
    return None


def far_from_reference(history: History) -> str | None:
    """KL above 1 nat a token over the window: the policy writes what the reference finds unlikely."""
    kl = recent(history, "kl")
    if kl is not None and kl > 1.0:
        return (
            f"KL to the reference is {kl:.2f} nats a token: the policy drifts away, often because observations are "
            "trained on or steps are too large; check --mask-observations, lower --learning-rate or raise --kl-coef"
        )
    return None


def entropy_gone(history: History) -> str | None:
    """Entropy below a tenth of its start while most answers are still wrong: nothing is tried any more."""
    now, start, em = recent(history, "entropy"), early(history, "entropy"), recent(history, "em")
    if None not in (now, start, em) and now < 0.1 * start and em < 0.5:
        return (
            f"entropy fell to {now:.3f} nats while exact match is {em:.2f}: the policy no longer explores; try "
            "--entropy-coef 0.001 or --clip-eps-high 0.28"
        )
    return None


def entropy_bursts(history: History) -> str | None:
    """Entropy at three times its start: text falls apart."""
    now, start = recent(history, "entropy"), early(history, "entropy")
    if None not in (now, start) and now > max(3 * start, 1.0):
        return (
            f"entropy rose to {now:.2f} nats from {start:.2f}: text falls apart; lower --learning-rate or "
            "--entropy-coef"
        )
    return None


def no_signal(history: History) -> str | None:
    """Nearly all groups agree within themselves: GRPO has nothing to learn from."""
    share, em = recent(history, "zero_variance_groups"), recent(history, "em")
    if share is None or em is None or share < 0.9:
        return None
    if em < 0.5:
        return (
            f"{share:.0%} of the rollouts are in groups that all fail: there is no signal; raise --group-size, try "
            "--dynamic-sampling 3 or easier questions"
        )
    return (
        f"{share:.0%} of the rollouts are in groups that all succeed: the data is learnt; take harder questions or stop"
    )


def invalid_actions(history: History) -> str | None:
    """Fewer than half of the turns are actions, and they once were."""
    now = recent(history, "valid_actions")
    if now is not None and now < 0.5 and now < 0.7 * best(history, "valid_actions"):
        return (
            f"only {now:.0%} of the turns are valid actions: the format is lost; try --reward format or lower "
            "--learning-rate"
        )
    return None


def length_runs_away(history: History) -> str | None:
    """Responses three times as long as at the start, and often cut."""
    now, start, cut = (
        recent(history, "response_tokens"),
        early(history, "response_tokens"),
        recent(history, "overlong"),
    )
    if None not in (now, start, cut) and cut > 0.2 and now > 2 * start:
        return (
            f"responses grew to {now:.0f} tokens from {start:.0f} and {cut:.0%} are cut: length runs away; try "
            "--overlong penalise or --loss-aggregation constant"
        )
    return None


def thinks_nothing(history: History) -> str | None:
    """Most turns have an empty or repeated `<think>`, and fewer had."""
    now, start = recent(history, "empty_think"), early(history, "empty_think")
    if None not in (now, start) and now > 0.5 and now > start + 0.2:
        return (
            f"{now:.0%} of the turns think nothing new; try --reward format, a lower --learning-rate or a larger "
            "--kl-coef"
        )
    return None


def likelihood_falls(history: History) -> str | None:
    """Right trajectories become less likely: lazy likelihood displacement, the start of a death spiral (2512.04220)."""
    change = recent(history, "correct_loglik_change")
    if change is not None and change < -0.02:
        return (
            f"right trajectories lose {-change:.3f} nats a token in a step: lazy likelihood displacement, which comes "
            "before a collapse; try --llds-coef 0.1"
        )
    return None


def reward_fell(history: History) -> str | None:
    """Exact match at half of what it was."""
    now, top = recent(history, "em"), best(history, "em")
    if now is not None and top > 0.2 and now < top / 2:
        return (
            f"exact match fell to {now:.2f} from {top:.2f}: the run has collapsed; evaluate an earlier checkpoint with "
            "eval.py --checkpoint, and start again with a lower --learning-rate"
        )
    return None


DETECTORS: dict[str, Callable[[History], str | None]] = {
    detector.__name__: detector
    for detector in (
        not_finite,
        far_from_reference,
        entropy_gone,
        entropy_bursts,
        no_signal,
        invalid_actions,
        length_runs_away,
        thinks_nothing,
        likelihood_falls,
        reward_fell,
    )
}
