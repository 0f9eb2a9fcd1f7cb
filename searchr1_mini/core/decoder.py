"""Batched decoding for many conversations at once: per-row KV cache, chunked prefill, shared prompts, stop strings.

A row of the cache is one conversation. Every row has its own length, so rows of different lengths share a batch with no
holes, and what was fed to the model once is never fed again: a turn goes on where the row's cache ends, an observation
is appended as one chunk, and a prompt that several rows share is prefilled once and copied.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.kv_cache import RowCache
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.stops import StopMatcher, token_bytes

BLOCK = 256  # ids in a block of `draw`


@dataclass
class Turn:
    """One finished policy turn.

    Attributes:
        token_ids: every sampled id, the one that holds the stop string (or EOS) included, whole.
        logprobs: log pi of each under the distribution that it was sampled from.
        text: the bytes of the ids decoded, up to and including the stop string; without EOS.
        finish: "stop", "eos" or "length".
    """

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish: str


@dataclass
class _Row:
    """State of one conversation: what is in the cache, what waits to be fed, and the turn in progress."""

    key: int
    random: random.Random
    length: int = 0
    pending: list[int] = field(default_factory=list)
    turn: Turn | None = None
    stop: StopMatcher | None = None
    room: int = 0


class Decoder:
    """Runs turns of many conversations in one decode loop.

    Args:
        policy: has `cached_hidden`, `lm_head` (hidden (.., H) -> logits (.., V)), the model's `config`, a byte-level
            `tokenizer`, `eos_ids` that end a turn, `device`, and `dtype` (of the cache).
        n_rows: conversations at a time.
        max_length: tokens that a row may hold.
        temperature: 0 is greedy; the log-probs are then those of temperature 1.
        seed: of the sampling; each row draws from a stream of its own, by seed and key, whichever rows share its batch.
        chunk_tokens: most ids of one prefill forward, padding included.

    Raises:
        UserError: the tokenizer is no byte-level BPE.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        n_rows: int,
        max_length: int,
        temperature: float,
        seed: int,
        chunk_tokens: int = 8192,
    ) -> None:
        self.cached_hidden, self.lm_head = policy.cached_hidden, policy.lm_head
        self.temperature, self.seed = temperature, seed
        self.device, self.n_rows, self.chunk_tokens = policy.device, n_rows, chunk_tokens
        self.cache = RowCache(policy.config.num_hidden_layers, n_rows, max_length, policy.device, policy.dtype)
        self.bytes_of, self.eos_ids = token_bytes(policy.tokenizer), policy.eos_ids
        self.rows: list[_Row] = []  # in the order of the cache's rows
        self.where: dict[int, int] = {}  # key -> index in `rows`
        self.shared: dict[tuple[int, ...], tuple[list[tuple[Tensor, Tensor]], Tensor]] = {}
        self.waiting: Counter[tuple[int, ...]] = Counter()
        self.tokens_fed, self.is_held = 0, False
        self.on_token: Callable[[int, bytes], None] | None = None  # told key and bytes of the turn so far, each token

    @property
    def has_room(self) -> bool:
        """Whether another conversation can start."""
        return len(self.rows) < self.n_rows

    def expect(self, prompts: Sequence[Sequence[int]]) -> None:
        """Announces the prompts to come, so that one that comes several times is kept until its last use."""
        self.waiting.update(tuple(prompt) for prompt in prompts)

    @torch.no_grad()
    def start(self, key: int, prompt: Sequence[int]) -> None:
        """Opens a row named `key`; its prompt, less the last id, comes from the shared store or is prefilled now."""
        row, prefix, index = _Row(key, random.Random(f"{self.seed}/{key}")), tuple(prompt), len(self.rows)
        self.rows.append(row)
        self.where[key] = index
        self.waiting[prefix] -= 1
        row.pending = list(prompt)
        if len(prompt) > 1 and (self.waiting[prefix] > 0 or prefix in self.shared):
            if prefix not in self.shared:
                row.pending = list(prompt[:-1])
                while row.pending:
                    self._prefill([row])
                self.shared[prefix] = self.cache.snapshot(index, row.length)
            else:
                self.cache.restore(index, self.shared[prefix])
            row.length, row.pending = len(prompt) - 1, [prompt[-1]]
        if self.waiting[prefix] <= 0:
            self.shared.pop(prefix, None)

    def append(self, key: int, token_ids: Sequence[int]) -> None:
        """Queues foreign ids (an observation) on a row; they are fed as one chunk before its next turn."""
        self._find(key).pending += token_ids

    def generate(self, key: int, stops: Sequence[str], max_new_tokens: int) -> None:
        """Begins a turn on a row that has none.

        Raises:
            UserError: nothing was fed to the row, so that there is nothing to go on from.
        """
        row = self._find(key)
        if not row.pending:
            raise UserError("a conversation without tokens cannot be continued: the tokenizer gave no ids for it")
        row.turn, row.stop, row.room = Turn([], [], "", "length"), StopMatcher(stops), max_new_tokens

    def close(self, key: int) -> None:
        """Ends a conversation; the last row takes its place in the cache."""
        index, last = self.where.pop(key), self.rows.pop()
        if index < len(self.rows):
            self.cache.move(len(self.rows), index, last.length)
            self.rows[index], self.where[last.key] = last, index

    def length(self, key: int) -> int:
        """Returns the number of tokens of a row so far, fed or waiting to be fed."""
        row = self._find(key)
        return row.length + len(row.pending)

    def mark(self, key: int) -> tuple[int, list[int]]:
        """Returns where a row stands, for `rewind`."""
        row = self._find(key)
        return row.length, list(row.pending)

    def rewind(self, key: int, mark: tuple[int, list[int]]) -> None:
        """Forgets all that a row was fed or sampled since `mark`; what stands in the cache is written over."""
        row = self._find(key)
        row.length, row.pending = mark

    @torch.no_grad()
    def step(self) -> list[tuple[int, Turn]]:
        """Samples one token for every row with a turn in progress; returns the turns that it finished, by key."""
        active = [row for row in self.rows if row.turn is not None]
        sampled = [row for row in active if len(row.pending) == 1]
        chunked = [row for row in active if len(row.pending) > 1]
        self.is_held = bool(chunked and sampled and not self.is_held)
        if self.is_held:  # observations wait for those of the next step, and are then fed together
            chunked = []
        logits = [self._decode(sampled)] if sampled else []
        for batch in self._chunks(chunked):
            hidden = self._prefill(batch)
            done = [index for index, row in enumerate(batch) if not row.pending]
            sampled += [batch[index] for index in done]
            logits.append(self.lm_head(hidden[done]))
        if not sampled:
            return []
        ids, logprobs = sample(torch.cat(logits), [row.random.random() for row in sampled], self.temperature)
        return [
            (row.key, turn)
            for row, id_, logprob in zip(sampled, ids, logprobs, strict=True)
            if (turn := self._accept(row, id_, logprob))
        ]

    def _find(self, key: int) -> _Row:
        return self.rows[self.where[key]]

    def _chunks(self, rows: list[_Row]) -> list[list[_Row]]:
        """Rows with long pending chunks, those of like length together, each batch within the token budget."""
        batches: list[list[_Row]] = []
        for row in sorted(rows, key=lambda row: len(row.pending)):
            if not batches or (len(batches[-1]) + 1) * len(row.pending) > self.chunk_tokens:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _decode(self, rows: list[_Row]) -> Tensor:
        """Feeds the one pending id of each; idle rows up to the last ride along, so that the cache is read in place."""
        indices = [self.where[row.key] for row in rows]
        n = max(indices) + 1
        ids = torch.zeros(n, 1, dtype=torch.long)
        positions = torch.zeros(n, 1, dtype=torch.long)
        is_real = torch.zeros(n, 1, dtype=torch.bool)
        ids[indices, 0] = torch.tensor([row.pending[0] for row in rows])
        positions[indices, 0] = torch.tensor([row.length for row in rows])
        is_real[indices] = True
        hidden = self._forward(torch.arange(n), ids, positions, is_real)
        for row in rows:
            row.length, row.pending = row.length + 1, []
        return self.lm_head(hidden[indices, 0])

    def _prefill(self, rows: list[_Row]) -> Tensor:
        """Feeds the pending ids of each row, at most `chunk_tokens`; returns the last hidden state of each (n, H)."""
        taken = [row.pending[: self.chunk_tokens] for row in rows]
        width = max(map(len, taken))
        ids = torch.tensor([chunk + [0] * (width - len(chunk)) for chunk in taken])
        lengths = torch.tensor([len(chunk) for chunk in taken])
        columns = torch.arange(width)
        positions = torch.tensor([row.length for row in rows])[:, None] + columns
        indices = torch.tensor([self.where[row.key] for row in rows])
        hidden = self._forward(indices, ids, positions, columns < lengths[:, None])
        for row, chunk in zip(rows, taken, strict=True):
            row.length, row.pending = row.length + len(chunk), row.pending[len(chunk) :]
        return hidden[torch.arange(len(rows)), lengths - 1]

    def _forward(self, rows: Tensor, ids: Tensor, positions: Tensor, is_real: Tensor) -> Tensor:
        self.tokens_fed += int(is_real.sum())
        return self.cached_hidden(rows, ids, positions, is_real, self.cache)

    def _accept(self, row: _Row, id_: int, logprob: float) -> Turn | None:
        """Adds a sampled id to the row's turn; returns the turn if that ended it."""
        turn, stop = row.turn, row.stop
        turn.token_ids.append(id_)
        turn.logprobs.append(logprob)
        row.pending.append(id_)
        end = None
        if id_ in self.eos_ids:
            turn.finish, end = "eos", len(stop.seen)
        elif (end := stop.feed(self.bytes_of[id_] if id_ < len(self.bytes_of) else b"")) is not None:
            turn.finish = "stop"
        elif len(turn.token_ids) >= row.room:
            end = len(stop.seen)
        if self.on_token:
            self.on_token(row.key, bytes(stop.seen[:end]))
        if end is None:
            return None
        turn.text = bytes(stop.seen[:end]).decode("utf-8", errors="replace")
        row.turn = row.stop = None
        return turn


def sample(logits: Tensor, uniform: list[float], temperature: float) -> tuple[list[int], list[float]]:
    """Samples ids and their log-probs from logits (n, V) and a number in [0, 1) per row, by inverse transform.

    Raises:
        UserError: the logits are not finite.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    ids = logprobs.argmax(-1) if temperature == 0 else draw(logprobs.exp(), uniform)
    chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    if any(map(math.isnan, chosen)):
        raise UserError(
            "the model's logits are not finite, so nothing can be sampled; use --dtype float32, or sound weights"
        )
    return ids.tolist(), chosen


def draw(probabilities: Tensor, uniform: list[float]) -> Tensor:
    """Draws ids (n,) from probabilities (n, V): first a block of ids by its sum, then one in it, so no sum is long."""
    exact = torch.float32 if probabilities.device.type == "mps" else torch.float64  # MPS has no float64
    blocks = nn.functional.pad(probabilities, (0, -probabilities.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = blocks.sum(-1, dtype=exact).cumsum(-1)
    points = torch.tensor(uniform, dtype=exact).to(ends.device)[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, points, right=True).clamp(max=ends.shape[1] - 1)
    inner = blocks[torch.arange(len(blocks), device=ends.device), block[:, 0]].cumsum(-1, dtype=exact)
    points = points - torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0)
    within = torch.searchsorted(inner, torch.minimum(points, inner[:, -1:] * (1 - 1e-6)), right=True)
    return (block * BLOCK + within)[:, 0].clamp(max=probabilities.shape[1] - 1)
