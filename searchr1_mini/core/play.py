"""The slow path: one conversation, token by token, without batch or cache; what rollout.py does for many at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from searchr1_mini.core.decoder import Turn, sample
from searchr1_mini.core.encoding import foreign_ids, observation_ids
from searchr1_mini.core.methods import Aside, Finish, Generate, MakeMethod, Observe, Prompt, Search
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.prompts import INVALID_ACTION
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage, Retriever, ask
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.core.stops import StopMatcher, token_bytes
from searchr1_mini.core.trajectory import Segment, Trajectory

Write = Callable[[list[int], Sequence[str], int], Turn]  # context, stop strings, most new tokens -> a turn


def play(
    example: Example, make_method: MakeMethod, policy: Policy, retriever: Retriever, limits: RolloutLimits, write: Write
) -> Trajectory:
    """Plays Algorithm 1 of the paper for one question: the method asks, and is resumed with what it asked for.

    Args:
        make_method: question -> generator of requests, see methods.py.
        policy: whose tokenizer and prompts are used.
        write: writes the policy's turns: `sampler`, or a script.
    """
    method, trajectory = make_method(example.question), Trajectory(example.id, [])
    context, value = [], None
    while True:
        request, value = method.send(value), None
        room = limits.max_total_tokens - len(context)
        match request:
            case Prompt(text, token_ids):
                context = context + (list(token_ids) or policy.encode_prompt(text))
                trajectory.segments.append(Segment("prompt", context, text=policy.tokenizer.decode(context)))
            case Generate(stop, max_new_tokens) if room >= 1:
                turn = write(context, stop, min(max_new_tokens, room))
                trajectory.segments.append(Segment("policy", turn.token_ids, turn.logprobs, turn.text))
                context, value = context + turn.token_ids, turn.text
            case Search(query, topk):
                value = [hit.passage for hit in ask(retriever, [query], [example.id], topk)[0]]
                trajectory.queries.append(query)
                trajectory.titles.append([passage.title for passage in value])
            case Observe() if (seen := observed(request, room - 1, trajectory, policy, limits)) is not None:
                trajectory.segments.append(seen)
                context = context + seen.token_ids
            case Aside() if (value := written_beside(request, context, trajectory, policy, limits, write)) is not None:
                pass  # the context stays as it is
            case Finish(answer, reason, is_invalid):
                trajectory.invalid_actions += is_invalid
                return finished(trajectory, answer, "length" if room < 1 and answer is None else reason)
            case _:  # there is no room for it
                return finished(trajectory, None, "length")


def read(
    passages: Sequence[Passage], most: int, trajectory: Trajectory, policy: Policy, limits: RolloutLimits
) -> tuple[list[int], str] | None:
    """Returns ids and text of passages in at most so many tokens, and notes them; None where not even the tags fit."""
    cut = observation_ids(passages, policy.tokenizer, min(most, limits.max_observation_tokens), limits.form)
    trajectory.retrieved += [cut[1]] if cut else []
    return cut


def observed(
    request: Observe, most: int, trajectory: Trajectory, policy: Policy, limits: RolloutLimits
) -> Segment | None:
    """Returns what the policy reads next, passages or a text, in at most so many tokens; None where it does not fit."""
    tokenizer, then = policy.tokenizer, list(request.then)
    if request.passages is None:
        trajectory.invalid_actions += request.text == INVALID_ACTION
        ids, text = foreign_ids(request.text, tokenizer), request.text
    elif cut := read(request.passages, most - len(then), trajectory, policy, limits):
        ids, text = cut[0] + then, cut[1] + tokenizer.decode(then)
    else:
        return None
    return Segment("observation", ids, text=text) if len(ids) <= most else None


def written_beside(
    request: Aside, context: list[int], trajectory: Trajectory, policy: Policy, limits: RolloutLimits, write: Write
) -> str | None:
    """Returns what the policy writes about passages that it reads beside the context; None where they do not fit."""
    room, instruction = limits.max_total_tokens - len(context), foreign_ids(request.text, policy.tokenizer)
    cut = read(request.passages, room - 1 - len(instruction), trajectory, policy, limits)
    if cut is None:
        return None
    beside = cut[0] + instruction
    turn = write(context + beside, request.stop, min(request.max_new_tokens, room - len(beside)))
    trajectory.asides.append(Segment("observation", beside, text=cut[1] + request.text))
    trajectory.asides.append(Segment("policy", turn.token_ids, turn.logprobs, turn.text))
    return turn.text


def finished(trajectory: Trajectory, answer: str | None, reason: str) -> Trajectory:
    """Returns the trajectory with how it ended."""
    trajectory.answer, trajectory.finish_reason = answer, reason
    return trajectory


def sampler(policy: Policy, temperature: float = 0.0, seed: int = 0, key: int = 0) -> Write:
    """Writes turns by sampling from the policy; seed and key (the number of the conversation) are those of `rollout`.

    Every token costs a forward over the whole context. Temperature 0 is greedy.
    """
    stream, bytes_of = random.Random(f"{seed}/{key}"), token_bytes(policy.tokenizer)

    @torch.no_grad()
    def write(context: list[int], stops: Sequence[str], most: int) -> Turn:
        turn, stop, end = Turn([], [], "", "length"), StopMatcher(stops), None
        while end is None and len(turn.token_ids) < most:
            ids = torch.tensor([context + turn.token_ids], device=policy.device)
            logits = policy.lm_head(policy.hidden(input_ids=ids)[:, -1])
            (token,), (logprob,) = sample(logits, [stream.random()], temperature)
            turn.token_ids.append(token)
            turn.logprobs.append(logprob)
            if token in policy.eos_ids:
                turn.finish, end = "eos", len(stop.seen)
            elif (end := stop.feed(bytes_of[token] if token < len(bytes_of) else b"")) is not None:
                turn.finish = "stop"
        turn.text = bytes(stop.seen[:end]).decode("utf-8", errors="replace")
        return turn

    return write
