"""A museum of bugs: faults that public code bases had, each planted by `--bug NAME` around the sound loop.

`python -m searchr1_mini.ablate bugs` trains with each and draws its curve beside the sound run's. One more, training on
what the engine wrote, is `--no-mask-observations`, the paper's own ablation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from random import Random
from unittest.mock import patch

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from searchr1_mini.core import training
from searchr1_mini.core.methods import Finish, Generate, MakeMethod, Method
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import contains_gold
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.options.config import BUGS, RunConfig

HINTS = ("logprob_diff_max", "logprob_diff_mean", "ratios")  # a hunt logs none: their rounding tells `retokenize`


def active_bug(config: RunConfig) -> str | None:
    """Returns the fault that a run has, named by `--bug` or hidden behind the number of `--mystery`."""
    return config.bug if config.mystery is None else Random(f"mystery {config.mystery}").choice(BUGS)


@contextmanager
def planted(bug: str | None, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Plants this fault in the loop inside; two that are no patch of it are a reward and a method of their own."""
    build = training.build_batch
    patches: dict[str, tuple[str, Callable]] = {
        "retokenize": (
            "build_batch",
            lambda trajectories, *rest: build([retokenized(t, tokenizer) for t in trajectories], *rest),
        ),
        "colliding-groups": ("number_groups", lambda examples, *_: colliding_group_ids(examples)),
        "masked-in-denominator": ("loss_weights", lambda mask, *_: weights_over_all_tokens(mask)),
        "tool-tokens-in-length": ("loss_weights", lambda mask, *_: weights_by_whole_length(mask)),
    }
    with patch.object(training, *patches[bug]) if bug in patches else nullcontext():
        yield


def retokenized(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase) -> Trajectory:
    """Decodes every turn, cuts it at its stop string, strips it and encodes it again: `--bug retokenize`.

    The ids that are trained on are then not those that were sampled, EOS is never learned, and the sampler's log-probs
    fit no token any more: they become nan, and are filled from a forward as if that forward had sampled.
    """
    segments = []
    for segment in trajectory.segments:
        if segment.kind == "policy":
            ids = tokenizer(segment.text.strip(), add_special_tokens=False)["input_ids"]
            segment = replace(segment, token_ids=ids, logprobs=[math.nan] * len(ids))
        segments.append(segment)
    return replace(trajectory, segments=segments)


def colliding_group_ids(examples: Sequence[Example]) -> list[int]:
    """Numbers a question inside its own source, so that two sources share numbers: `--bug colliding-groups`."""
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    return [numbers[e.source].setdefault(e.id, len(numbers[e.source])) for e in examples]


def weights_over_all_tokens(loss_mask: Tensor) -> Tensor:
    """Takes the mean over every position (B, T), masked and padding ones included: `--bug masked-in-denominator`."""
    return loss_mask.float() / loss_mask.numel()


def weights_by_whole_length(loss_mask: Tensor) -> Tensor:
    """Takes a sequence mean (B, T) over the first policy token to the last: `--bug tool-tokens-in-length`.

    What lies between them are observations, so that a trajectory that searched weighs less for every passage it read.
    """
    started = loss_mask.float().cummax(1).values
    not_ended = loss_mask.flip(1).float().cummax(1).values.flip(1)
    length = (started * not_ended).sum(1, keepdim=True)
    return loss_mask.float() / (len(loss_mask) * length.clamp(min=1))


def without_last_turn(make_method: MakeMethod, max_turns: int) -> MakeMethod:
    """Makes conversations that end after `max_turns` actions, without a last turn: `--bug no-last-turn`."""

    def method(question: str) -> Method:
        conversation, reply, turns = make_method(question), None, 0
        while True:
            request = conversation.send(reply)
            turns += isinstance(request, Generate)
            reply = yield Finish(None, "turns") if turns > max_turns else request

    return method


def whole_text_reward(trajectory: Trajectory, golden_answers: Sequence[str]) -> float:
    """Returns 1.0 if a gold answer stands anywhere, even in passages: `--bug reward-from-whole-text`."""
    return float(contains_gold(" ".join(segment.text for segment in trajectory.segments), golden_answers))
