"""The load probe: right after a model is loaded, a few tokens go through every way in which a run computes them.

Rollout, update and reference must give the log-probs of the causal language model's own forward, to the noise of the
dtype. What does not agree, or does not run, is refused before any question is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from searchr1_mini.core.batch import Batch, build_batch
from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.errors import UserError, is_out_of_memory
from searchr1_mini.core.logprobs import token_logprobs
from searchr1_mini.core.names import ADAPTER
from searchr1_mini.core.packing import pack, rows_by_prompt
from searchr1_mini.core.policy import without_undefined
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.models import stacked
from searchr1_mini.models.architecture import unsupported

TEXT = "Who wrote the play? It was written in 1601 by William Shakespeare, they say."
N_IDS, N_PROMPTS, N_OBSERVED, N_SAMPLED = 16, (4, 7), 3, (1, 2)
N_REPLAYED = 1, 4  # where steps are captured: of three of one shape one runs as it is, one is captured, one replayed
# mean and largest difference of log-probs; docs/models.md has what was measured
LIMITS = {torch.float32: (3e-4, 3e-3), torch.bfloat16: (0.15, torch.inf), torch.float16: (0.05, torch.inf)}
# what an adapter does to hidden states may differ by this share of it, where that is no less than this share of them
ADAPTER_LIMIT, LEAST_EFFECT = 0.2, 0.1
JOLT = 0.6  # of what goes into it, what an adapter's matrix is made to add while it is probed


States = dict[tuple[int, int], Tensor]  # hidden states (H,) by row and position


class Failed(Exception):
    """What the probe found, to follow the name of the family."""


class Probe:
    """Takes the untouched model's log-probs when it is made, before an adapter is put on; `check` compares.

    Args:
        policy: a `Policy` around the model that the reference stands for.

    Raises:
        UserError: the model's own forward does not run.
    """

    def __init__(self, policy: Any) -> None:
        ids = policy.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        self.ids = (ids * N_IDS)[:N_IDS]
        rows = [Trajectory("", [Segment("policy", self.ids[:n], [0.0] * n)]) for n in (N_IDS - 6, N_IDS)]
        self.text = build_batch(rows, [0.0] * 2, [0, 1], policy.tokenizer.pad_token_id or 0).to(policy.device)
        with told(policy):
            self.untouched = runs("its own forward", lambda: own_logprobs(policy, self.text))

    def check(self, policy: Any, is_loaded: bool) -> None:
        """Compares reference, rollout and update with the model's own forward, and settles how the policy rolls out.

        Weights, gradients and random state are afterwards what they were.

        Args:
            policy: as the run will use it.
            is_loaded: whether its adapter, or its weights, come from a folder; they too have a forward of their own.

        Raises:
            UserError: something does not agree, or does not run.
        """
        with told(policy):
            with torch.no_grad(), policy.reference():
                reference = runs("the reference", lambda: run_logprobs(policy, self.text))
            agree("reference and base", reference, self.untouched, seen(self.text), policy.dtype)
            self.settle_packing(policy)
            with numbers_in_adapter(policy):
                self.settle_rollouts(policy, is_loaded)

    def settle_packing(self, policy: Any) -> None:
        """Lets updates compute a shared prompt once where that agrees with rows that stand alone."""
        try:
            with torch.no_grad(), policy.reference():
                inputs, places = pack(rows_by_prompt(self.text), self.text)
                hidden = runs("a packed row", lambda: policy.hidden(**inputs).flatten(0, 1)[places])
                packed = target_logprobs(policy, hidden, self.text)
            agree("packed rows and base", packed, self.untouched, seen(self.text), policy.dtype)
        except Failed as failed:
            policy.packs = False
            print(f"updates compute a prompt anew for every row, since {failed}", flush=True)

    def settle_rollouts(self, policy: Any, is_loaded: bool) -> None:
        """Takes of the ways to roll out the quickest that agrees: stacked and merged, or without what fails."""
        ways = [(True, True), (False, True), (True, False), (False, False)]
        failures = []
        for merges, stacks in ways if policy.has_adapter else ways[::2]:
            policy.merges, policy.stacks = merges, stacks
            try:
                self.check_rollout(policy, is_loaded)
            except Failed as failed:
                failures.append(failed)
                continue
            if failures:
                how = [] if policy.merges else ["compute the adapter beside the base"]
                how += [] if policy.stacks else ["run transformers' own forward"]
                print(f"rollouts {' and '.join(how)}, since otherwise {failures[0]}", flush=True)
            return
        raise failures[-1]

    def check_rollout(self, policy: Any, is_loaded: bool) -> None:
        """Rolls out two short conversations, and compares what was sampled with the update and the own forward."""
        batch, rolled = runs("a rollout", lambda: self.roll(policy))
        batch = batch.to(policy.device)
        update, hidden = runs("the update", lambda: update_pass(policy, batch))
        agree("rollout and update", batch.old_logprobs, update, batch.loss_mask, policy.dtype)
        if policy.has_adapter:
            with torch.no_grad(), policy.reference():
                base = runs("the reference", lambda: run_hidden(policy, batch))
            agree_on_adapter(rolled, hidden, base)
        if is_loaded:  # else its numbers are the probe's, and the base's own forward has been compared
            own = runs("its own forward", lambda: own_logprobs(policy, batch))
            agree("update and own forward", update, own, seen(batch), policy.dtype)

    def roll(self, policy: Any) -> tuple[Batch, States]:
        """Rolls out two prompts of different lengths: a turn on each, an observation on the first while the other is
        idle, and one more turn; returns the hidden states of all that was fed, too. The cache has a row that rests, and
        no id ends a turn, so that where steps are captured one is replayed."""
        decoder = Decoder(
            policy,
            n_rows=len(N_PROMPTS) + 1,
            max_length=2 * N_IDS,
            temperature=1.0,
            seed=0,
        )
        decoder.eos_ids = ()
        n_sampled = N_REPLAYED if stacked.can_capture(policy.device) else N_SAMPLED
        states: States = {}
        decoder.cached_hidden = kept_states(decoder.cached_hidden, states)
        prompts, observed = [self.ids[:n] for n in N_PROMPTS], self.ids[-N_OBSERVED:]
        rows = [Trajectory("", [Segment("prompt", prompt)]) for prompt in prompts]
        with torch.no_grad(), policy.for_rollouts():
            for key, prompt in enumerate(prompts):
                decoder.start(key, prompt)
                decoder.generate(key, (), n_sampled[key])
            take_turns(decoder, rows, len(prompts))
            decoder.append(0, observed)
            rows[0].segments.append(Segment("observation", observed))
            decoder.generate(0, (), n_sampled[0])
            take_turns(decoder, rows, 1)
        batch = build_batch(rows, [0.0] * len(rows), range(len(rows)), policy.tokenizer.pad_token_id or 0)
        return batch, states


def kept_states(forward: Callable[..., Tensor], states: States) -> Callable[..., Tensor]:
    """Returns a cached forward that keeps the hidden states of real tokens in `states`, by row and position."""

    def keeping(rows: Tensor, ids: Tensor, positions: Tensor, is_real: Tensor, cache: Any) -> Tensor:
        hidden = forward(rows, ids, positions, is_real, cache)
        for row, column in is_real.nonzero().tolist():
            states[int(rows[row]), int(positions[row, column])] = hidden[row, column].clone()
        return hidden

    return keeping


def take_turns(decoder: Decoder, rows: list[Trajectory], n_turns: int) -> None:
    """Decodes until so many turns are finished."""
    while n_turns:
        for key, turn in decoder.step():
            rows[key].segments.append(Segment("policy", turn.token_ids, turn.logprobs))
            n_turns -= 1


def own_logprobs(policy: Any, batch: Batch) -> Tensor:
    """Computes log-probs (B, T-1) of all targets by the model's own forward in eval mode, as anybody would call it."""
    with torch.no_grad(), policy.autocast():
        logits = policy.model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
    logprobs = without_undefined(logits, policy.undefined).float().log_softmax(-1)
    return logprobs.gather(-1, batch.targets[..., None])[..., 0]


def run_logprobs(policy: Any, batch: Batch) -> Tensor:
    """Computes log-probs (B, T-1) of all targets as update and reference compute them, 0 in the padding."""
    return target_logprobs(policy, run_hidden(policy, batch), batch)


def run_hidden(policy: Any, batch: Batch) -> Tensor:
    """Computes last hidden states (B, T, H) as update and reference do."""
    return policy.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids)


def target_logprobs(policy: Any, hidden: Tensor, batch: Batch) -> Tensor:
    """Computes log-probs (B, T-1) of all targets from hidden states (B, T, H), 0 in the padding."""
    return token_logprobs(hidden[:, :-1], policy.lm_head, batch.targets, seen(batch), temperature=1.0)[0]


def update_pass(policy: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Computes log-probs and hidden states in the update's mode, backward included, which must reach the weights that
    are trained."""
    trained = policy.trainable()
    try:
        with torch.enable_grad(), policy.training():
            hidden = run_hidden(policy, batch)
            logprobs = target_logprobs(policy, hidden, batch)
            logprobs.sum().backward()
        if not any(weight.grad is not None and weight.grad.any() for weight in trained):
            raise Failed("no gradient of the update reaches the weights that are trained")
    finally:
        for weight in trained:
            weight.grad = None
    return logprobs.detach(), hidden.detach()


def seen(batch: Batch) -> Tensor:
    """Returns (B, T-1) bool: which targets are not padding."""
    return torch.arange(batch.targets.shape[1], device=batch.lengths.device) < batch.lengths[:, None] - 1


def agree(what: str, one: Tensor, other: Tensor, mask: Tensor, dtype: torch.dtype) -> None:
    """Raises Failed unless both are the same to the noise of the dtype; nan is not."""
    change = (one - other)[mask].abs()
    mean, largest = change.mean().item(), change.max().item()
    if not (mean <= LIMITS[dtype][0] and largest <= LIMITS[dtype][1]):
        raise Failed(f"{what} differ in their log-probs, by {mean:.2g} in the mean and {largest:.2g} at most")


def agree_on_adapter(rolled: States, update: Tensor, base: Tensor) -> None:
    """Raises Failed unless an adapter does to rollouts what it does to the update; nan is not the same.

    In 16 bits a whole adapter may change log-probs by less than their noise. Of hidden states, all numbers tell. The
    median over the tokens leaves out the few that rounding sends to another expert of a mixture.

    Args:
        rolled: hidden states of rollouts.
        update, base: hidden states (B, T, H) of the same tokens in the update, and without the adapter.
    """
    states = torch.stack(list(rolled.values())).float()
    rows, positions = torch.tensor(list(rolled)).T.to(update.device)
    update, base = update[rows, positions].float(), base[rows, positions].float()
    effect, change = (update - base).norm(dim=-1), (states - update).norm(dim=-1)
    is_seen = ~(effect < LEAST_EFFECT * update.norm(dim=-1))  # less is hardly more than rounding
    if 2 * is_seen.sum() < len(is_seen):
        return
    share = (change / effect)[is_seen].median().item()
    if not share <= ADAPTER_LIMIT:
        raise Failed(f"rollout and update differ in what the adapter does, by {share:.0%} of it")


def runs(what: str, way: Callable[[], Any]) -> Any:
    """Returns the result of one way; whatever breaks in the code of an architecture is told as that, with its cause."""
    try:
        return way()
    except (Failed, UserError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        reason = (" ".join(str(error).split()) or repr(error))[:120]
        raise Failed(f"{what} does not run ({type(error).__name__}: {reason})") from error


@contextmanager
def told(policy: Any) -> Iterator[None]:
    """Turns what fails inside into the one sentence that names the family."""
    try:
        yield
    except Failed as failed:
        raise unsupported(policy.config, str(failed)) from failed


@contextmanager
def numbers_in_adapter(policy: Any) -> Iterator[None]:
    """Moves an adapter's weights at random inside: a fresh one computes 0, whatever is wrong with it."""
    named = policy.model.named_parameters() if policy.has_adapter else ()
    moved = [(name, weight, weight.data) for name, weight in named if weight.requires_grad]
    generator = torch.Generator().manual_seed(0)
    try:
        for name, weight, numbers in moved:
            noise = torch.empty(weight.shape).normal_(0, spread(policy, name, weight), generator=generator)
            weight.data = numbers + noise.to(weight.device, weight.dtype)
        yield
    finally:
        for _, weight, numbers in moved:
            weight.data = numbers


def spread(policy: Any, name: str, weight: Tensor) -> float:
    """Returns how far a weight's numbers are moved: a layer then adds about as much at any width, rank and alpha."""
    lora = policy.model.peft_config[ADAPTER]
    return JOLT / weight.shape[-1] ** 0.5 / (lora.lora_alpha / lora.r if ".lora_B." in name else 1)
