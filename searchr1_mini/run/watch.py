"""The stability watch: signs of a collapse in a run's metrics, each with its likely cause and the flag to try."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from math import isfinite, isnan, nan
from statistics import fmean
from typing import Any, NamedTuple

WINDOW = 5  # steps that a sign must last
QUIET = 20  # steps before the same warning is given again


class Trend(NamedTuple):
    """A metric's last value, and its mean over the last WINDOW values, the first, and the best; nan before they are."""

    last: float = nan
    now: float = nan
    start: float = nan
    top: float = nan


class Trends(dict[str, Trend]):
    """Metric -> Trend, kept up step by step. What was not logged is nan, which no comparison holds for."""

    def __init__(self) -> None:
        self.windows: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=WINDOW))

    def __missing__(self, key: str) -> Trend:
        return Trend()

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds the metrics of one more step; None was not logged."""
        for key, value in metrics.items():
            if value is None or not isfinite(value):  # null in metrics.jsonl, from which a resumed run reads
                continue
            window, old = self.windows[key], self[key]
            window.append(value)
            now = fmean(window) if len(window) == WINDOW else nan
            start, top = (now if isnan(old_value) else old_value for old_value in (old.start, old.top))
            self[key] = Trend(value, now, start, max(top, now))


# name -> when it is seen, and what is said of it
SIGNS: dict[str, tuple[Callable[[Trends], bool], str]] = {
    "not finite": (
        lambda t: t["skipped_updates"].last > 0,
        "a loss or gradient was not finite and its update was thrown away; if this goes on, lower --learning-rate or "
        "use --dtype float32",
    ),
    "not what was sampled": (
        lambda t: t["logprob_diff_mean"].now > max(0.01, min(0.1, 3 * t["logprob_diff_mean"].start)),
        "before an update its log-probs are {logprob_diff_mean.now:.3f} nats per token from those of sampling, and "
        "up to {logprob_diff_max.last:.2g}: the policy that samples is not the one that is trained; run with --check, "
        "try --dtype float32, or correct for it with --importance-cap 2",
    ),
    "far from the reference": (
        lambda t: t["kl"].now > 1.0,
        "KL to the reference is {kl.now:.2f} nats per token: the policy drifts away, often because observations are "
        "trained on or steps are too large; check --mask-observations, lower --learning-rate or raise --kl-coef",
    ),
    "entropy gone": (
        lambda t: t["entropy"].now < 0.1 * t["entropy"].start and t["em"].now < 0.5,
        "entropy fell to {entropy.now:.3f} nats while exact match is {em.now:.2f}: the policy no longer explores; try "
        "--entropy-coef 0.001 or --clip-eps-high 0.28",
    ),
    "entropy bursts": (
        lambda t: t["entropy"].now > max(3 * t["entropy"].start, 1.0),
        "entropy rose to {entropy.now:.2f} nats from {entropy.start:.2f}: text falls apart; lower --learning-rate or "
        "--entropy-coef",
    ),
    "all fail": (
        lambda t: t["zero_variance_groups"].now >= 0.9 and t["em"].now < 0.5,
        "{zero_variance_groups.now:.0%} of the rollouts are in groups that agree, and most fail: there is no signal; "
        "raise --group-size, try --dynamic-sampling 3 or easier questions",
    ),
    "all succeed": (
        lambda t: t["zero_variance_groups"].now >= 0.9 and t["em"].now >= 0.5,
        "{zero_variance_groups.now:.0%} of the rollouts are in groups that agree, and most succeed: the data is "
        "learned; take harder questions or stop",
    ),
    "invalid actions": (
        lambda t: t["valid_actions"].now < 0.5 and t["valid_actions"].now < 0.7 * max(t["valid_actions"].top, 0.75),
        "only {valid_actions.now:.0%} of the turns are valid actions: the format is lost, or was never there; try "
        "--reward format, --cold-start 200 or a lower --learning-rate",
    ),
    "length runs away": (
        lambda t: t["overlong"].now > 0.2 and t["response_tokens"].now > 2 * t["response_tokens"].start,
        "responses grew to {response_tokens.now:.0f} tokens from {response_tokens.start:.0f} and {overlong.now:.0%} "
        "are cut: length runs away; try --overlong penalize or --loss-aggregation constant",
    ),
    "thinks nothing": (
        lambda t: t["empty_think"].now > max(0.5, t["empty_think"].start + 0.2),
        "{empty_think.now:.0%} of the turns think nothing new; try --reward format, a lower --learning-rate or a "
        "larger --kl-coef",
    ),
    "likelihood falls": (  # lazy likelihood displacement, the start of a death spiral (arXiv 2512.04220)
        lambda t: t["correct_loglik_change"].now < -0.02,
        "right trajectories lose likelihood, {correct_loglik_change.now:.3f} nats per token in a step: lazy likelihood "
        "displacement, which comes before a collapse; try --llds-coef 0.1",
    ),
    "reward fell": (
        lambda t: t["em"].top > 0.2 and t["em"].now < t["em"].top / 2,
        "exact match fell to {em.now:.2f} from {em.top:.2f}: the run has collapsed; evaluate an earlier checkpoint "
        "with eval.py --checkpoint, and start again with a lower --learning-rate",
    ),
}


class Watch:
    """Sees each step's metrics and tells what looks wrong; it never changes the run.

    Args:
        history: metrics of the steps so far, when a run is resumed.
    """

    def __init__(self, history: Iterable[dict[str, Any]] = ()) -> None:
        self.trends = Trends()
        self.told: dict[str, int] = {}
        for metrics in history:
            self.see(metrics["step"], metrics)  # so that what was told is not told again at once

    def see(self, step: int, metrics: dict[str, Any]) -> dict[str, str]:
        """Maps each sign of this step to its warning; a sign told less than QUIET steps ago is not repeated."""
        self.trends.add(metrics)
        found = {
            name: message.format_map(self.trends)
            for name, (is_seen, message) in SIGNS.items()
            if step - self.told.get(name, -QUIET) >= QUIET and is_seen(self.trends)
        }
        self.told |= dict.fromkeys(found, step)
        return found
