"""Drives many methods at once: their turns through one decoder, their searches through one retriever call."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from searchr1_mini.core import interrupt, methods, progress
from searchr1_mini.core.decoder import Decoder, Turn
from searchr1_mini.core.distributed import gather, share
from searchr1_mini.core.encoding import foreign_ids, observation_ids
from searchr1_mini.core.errors import UserError, is_out_of_memory
from searchr1_mini.core.prompts import INVALID_ACTION, Form
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Hit, Passage, Retriever, ask
from searchr1_mini.core.rollout_stats import RolloutStats, sum_stats, usual_loop_tokens
from searchr1_mini.core.trajectory import Segment, Trajectory

if TYPE_CHECKING:
    from searchr1_mini.core.policy import Policy


@dataclass(frozen=True)
class RolloutLimits:
    """What bounds a rollout.

    Attributes:
        n_rows: conversations decoded at a time.
        max_total_tokens: a trajectory ends cleanly (finish reason `length`) before it would hold more.
        max_observation_tokens: most tokens of one observation; longer ones are cut inside.
        overlap_search: decode on while the retriever works. Worth it for a remote one; which rows share a batch, and
            so the last bits of their log-probs, then depend on its speed.
        form: of observations, see `render_observation`.
    """

    n_rows: int
    max_total_tokens: int
    max_observation_tokens: int
    overlap_search: bool = False
    form: Form = "plain"


@dataclass
class _Conversation:
    method: methods.Method
    trajectory: Trajectory
    prompt: list[int]
    mark: tuple[int, list[int]] | None = None  # where an aside left the context


class _Engine:
    """One rollout: starts conversations as rows get free, and advances each when what it waits for arrives."""

    def __init__(
        self,
        decoder: Decoder,
        policy: Policy,
        retriever: Retriever,
        limits: RolloutLimits,
        on_segment: Callable[[str, str], None] | None,
    ) -> None:
        self.decoder, self.retriever, self.limits = decoder, retriever, limits
        self.tokenizer, self.encode_prompt = policy.tokenizer, policy.encode_prompt
        self.on_segment = on_segment
        self.live: dict[int, _Conversation] = {}
        self.searches: list[tuple[int, methods.Search]] = []

    def open(self, example: Example, make_method: methods.MakeMethod) -> _Conversation:
        """Runs a method up to its prompt."""
        method = make_method(example.question)
        opening = method.send(None)
        prompt = list(opening.token_ids) or self.encode_prompt(opening.text)
        if len(prompt) >= self.limits.max_total_tokens:
            raise UserError(
                f"question {example.id} is {len(prompt)} tokens long with its prompt, but --max-total-tokens is "
                f"{self.limits.max_total_tokens}; raise it or leave the question out"
            )
        trajectory = Trajectory(example.id, [])
        self.record(trajectory, Segment("prompt", prompt, text=self.tokenizer.decode(prompt)))
        return _Conversation(method, trajectory, prompt)

    def record(self, trajectory: Trajectory, segment: Segment) -> None:
        """Adds a segment to its trajectory."""
        trajectory.segments.append(segment)
        if self.on_segment:
            self.on_segment(segment.kind, segment.text)

    def watch(self, on_token: Callable[[str], None]) -> None:
        """Lets the decoder tell each turn's text as it grows, less a character that has only begun."""
        live = self.live  # not the engine, which holds the decoder: the cycle would keep the KV cache

        def tell(key: int, written: bytes) -> None:
            is_aside = live[key].mark is not None
            on_token("" if is_aside else codecs.getincrementaldecoder("utf-8")("replace").decode(written))

        self.decoder.on_token = tell

    def start(self, key: int, conversation: _Conversation) -> None:
        """Gives a conversation its row."""
        self.live[key] = conversation
        self.decoder.start(key, conversation.prompt)
        self.advance(key, None)

    def advance(self, key: int, value: Any) -> None:
        """Resumes a method with a result and serves its requests until it waits for the policy or the retriever."""
        conversation = self.live[key]
        while True:
            match conversation.method.send(value):
                case methods.Generate(stop, max_new_tokens):
                    left = self.limits.max_total_tokens - self.decoder.length(key)
                    if left < 1:
                        return self.finish(key, None, "length")
                    return self.decoder.generate(key, stop, min(max_new_tokens, left))
                case methods.Search() as search:
                    conversation.trajectory.queries.append(search.query)
                    return self.searches.append((key, search))
                case methods.Observe() as observe:
                    if not self.observe(key, observe):
                        return self.finish(key, None, "length")
                    value = None
                case methods.Aside() as aside:
                    return self.step_aside(key, aside)
                case methods.Finish(answer, reason, is_invalid):
                    conversation.trajectory.invalid_actions += is_invalid
                    is_full = self.decoder.length(key) >= self.limits.max_total_tokens
                    return self.finish(key, answer, "length" if is_full and answer is None else reason)

    def room(self, key: int) -> int:
        """Returns the tokens that the context has left for an observation, with one to spare for the policy."""
        return self.limits.max_total_tokens - self.decoder.length(key) - 1

    def observe(self, key: int, observe: methods.Observe) -> bool:
        """Appends an observation; False if the context has no room for it and a token after it."""
        trajectory = self.live[key].trajectory
        if observe.passages is not None:
            cut = self.passages_ids(key, observe.passages, self.room(key) - len(observe.then))
            if cut is None:
                return False
            ids, text = cut[0] + list(observe.then), cut[1] + self.tokenizer.decode(list(observe.then))
        else:
            ids, text = foreign_ids(observe.text, self.tokenizer), observe.text
            trajectory.invalid_actions += text == INVALID_ACTION
        if len(ids) > self.room(key):
            return False
        self.record(trajectory, Segment("observation", ids, text=text))
        self.decoder.append(key, ids)
        return True

    def passages_ids(self, key: int, passages: Sequence[Passage], room: int) -> tuple[list[int], str] | None:
        """Encodes passages as the policy will read them, see `observation_ids`; what it was shown is kept."""
        most = min(room, self.limits.max_observation_tokens)
        cut = observation_ids(passages, self.tokenizer, most, self.limits.form)
        if cut is not None:
            self.live[key].trajectory.retrieved.append(cut[1])
        return cut

    def step_aside(self, key: int, aside: methods.Aside) -> None:
        """Lets the policy read and write beside its context, which is then as it was before."""
        instruction = foreign_ids(aside.text, self.tokenizer)
        cut = self.passages_ids(key, aside.passages, self.room(key) - len(instruction))
        if cut is None:
            return self.finish(key, None, "length")
        conversation = self.live[key]
        conversation.mark = self.decoder.mark(key)
        ids = cut[0] + instruction
        conversation.trajectory.asides.append(Segment("observation", ids, text=cut[1] + aside.text))
        self.decoder.append(key, ids)
        left = self.limits.max_total_tokens - self.decoder.length(key)
        self.decoder.generate(key, aside.stop, min(aside.max_new_tokens, left))

    def receive(self, key: int, turn: Turn) -> None:
        """Records a finished turn, token for token, and resumes the method with its text."""
        conversation = self.live[key]
        segment = Segment("policy", turn.token_ids, turn.logprobs, turn.text)
        if conversation.mark is None:
            self.record(conversation.trajectory, segment)
        else:
            conversation.trajectory.asides.append(segment)
            self.decoder.rewind(key, conversation.mark)
            conversation.mark = None
        self.advance(key, turn.text)

    def finish(self, key: int, answer: str | None, reason: str) -> None:
        """Closes a conversation and frees its row."""
        conversation = self.live.pop(key)
        conversation.method.close()
        conversation.trajectory.answer, conversation.trajectory.finish_reason = answer, reason
        self.decoder.close(key)

    def ask_retriever(self, pool: ThreadPoolExecutor) -> tuple[list[int], Future]:
        """Sends the waiting searches of the first one's topk in one call; others wait for the next."""
        topk = self.searches[0][1].topk
        batch = [asked for asked in self.searches if asked[1].topk == topk]
        self.searches = [asked for asked in self.searches if asked[1].topk != topk]
        keys, queries = [key for key, _ in batch], [search.query for _, search in batch]
        ids = [self.live[key].trajectory.example_id for key in keys]
        return keys, pool.submit(ask, self.retriever, queries, ids, topk)

    def receive_hits(self, keys: Sequence[int], found: Sequence[Sequence[Hit]]) -> None:
        """Resumes every method that searched with its passages."""
        for key, hits in zip(keys, found, strict=True):
            passages = [hit.passage for hit in hits]
            self.live[key].trajectory.titles.append([passage.title for passage in passages])
            self.advance(key, passages)


@contextmanager
def out_of_memory_told(policy: Policy) -> Iterator[None]:
    """Turns memory that runs out inside into an error that tells the user what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        way = "add --rollout-weights base, or " if policy.dequantize else ""  # an unpacked base is most of the memory
        raise UserError(f"out of memory in a rollout; {way}lower --rollout-batch-size or --max-total-tokens") from error


def rollout(
    examples: Sequence[Example],
    make_method: methods.MakeMethod,
    policy: Policy,
    retriever: Retriever,
    limits: RolloutLimits,
    *,
    temperature: float,
    seed: int,
    on_segment: Callable[[str, str], None] | None = None,
    on_token: Callable[[str], None] | None = None,
) -> tuple[list[Trajectory], RolloutStats]:
    """Rolls out one trajectory for each example, in order; repeat an example G times for a group.

    Several processes share the work; each gets all trajectories.

    Args:
        examples: the questions; equal prompts are prefilled once.
        make_method: question -> generator, see `methods.py`.
        temperature: 0 decodes greedily.
        seed: of the sampling.
        on_segment: told (kind, text) of every segment as it is complete, to show a rollout live.
        on_token: told the text of the turn so far at every token, "" in an aside; may raise to break the rollout off.

    Raises:
        UserError: a question does not fit into the context, memory ran out, or the retriever failed.
        Stopped: the user asked a training run to stop.
    """
    began = time.perf_counter()
    own = share(len(examples))
    decoder = Decoder(
        policy,
        n_rows=min(limits.n_rows, own.stop - own.start),
        max_length=limits.max_total_tokens,
        temperature=temperature,
        seed=seed,
    )
    engine = _Engine(decoder, policy, retriever, limits, on_segment)
    if on_token:
        engine.watch(on_token)
    conversations = [engine.open(example, make_method) for example in examples[own]]
    decoder.expect([conversation.prompt for conversation in conversations])
    waiting = deque(enumerate(conversations, start=own.start))
    asked: tuple[list[int], Future] | None = None
    with out_of_memory_told(policy), policy.for_rollouts(), ThreadPoolExecutor(1) as pool:
        while waiting or engine.live:
            interrupt.check()
            rate, n = decoder.tokens_fed / (time.perf_counter() - began), len(conversations)
            progress.tell("rollouts", n - len(waiting) - len(engine.live), n, f"{rate:.0f} tokens/s")
            while waiting and decoder.has_room:
                engine.start(*waiting.popleft())
            if engine.searches and asked is None:
                asked = engine.ask_retriever(pool)
            is_idle = asked and len(asked[0]) + len(engine.searches) == len(engine.live)
            if asked and (not limits.overlap_search or asked[1].done() or is_idle):
                (keys, found), asked = asked, None
                engine.receive_hits(keys, found.result())
            for key, turn in decoder.step():
                engine.receive(key, turn)
    trajectories = [conversation.trajectory for conversation in conversations]
    total = sum(len(t.token_ids) + sum(len(aside.token_ids) for aside in t.asides) for t in trajectories)
    sampled = sum(trajectory.n_policy_tokens for trajectory in trajectories)
    saved = sum(map(usual_loop_tokens, trajectories)) - decoder.tokens_fed
    trajectories = gather(trajectories)
    stats = sum_stats(gather([RolloutStats(decoder.tokens_fed, total, sampled, saved, 0.0)]))
    return trajectories, replace(stats, seconds=time.perf_counter() - began)
