"""Stop strings in streams of tokens: found where decoding everything from scratch finds them, 10,000 streams each."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from searchr1_mini.core.prompts import STOP_STRINGS
from searchr1_mini.core.stops import StopMatcher, token_bytes

N_STREAMS = 10_000
STOPS = [STOP_STRINGS, ("</answer>",), ("</think>",), ("\n", "</answer>")]  # of the methods
BITS = [
    *STOP_STRINGS,
    "</think>",
    "</",
    "<",
    ">",
    "</searc",
    "</answer",
    "</</search>",
    "</answer>\n\n",
    "é",
    "東",
    "🏴",
    "\n",
]


class Streams:
    """Draws streams of ids: any ids of the vocabulary, and texts with stops spelled by odd tokens."""

    def __init__(self, table: list[bytes], seed: int) -> None:
        self.rng, self.table = random.Random(seed), table
        self.by_first: dict[int, list[int]] = defaultdict(list)
        for id_, spelled in enumerate(table):
            if spelled:
                self.by_first[spelled[0]].append(id_)
        self.ids_of: dict[bytes, int] = {spelled: id_ for id_, spelled in enumerate(table) if spelled}

    def spell(self, raw: bytes) -> list[int]:
        """Ids whose bytes are `raw`, cut anywhere that the vocabulary allows, also inside of a character."""
        ids, at = [], 0
        while at < len(raw):
            cuts = [raw[at:end] for end in range(at + 1, min(at + 12, len(raw)) + 1) if raw[at:end] in self.ids_of]
            piece = self.rng.choice(cuts)
            ids.append(self.ids_of[piece])
            at += len(piece)
        return ids

    def any_ids(self, most: int) -> list[int]:
        """Up to `most` ids of the whole vocabulary, control tokens and halves of characters among them."""
        return self.rng.choices(range(len(self.table)), k=self.rng.randint(0, most))

    def draw(self, stops: tuple[str, ...]) -> list[int]:
        """One stream; half of them hold a stop string, whole or in pieces, among other pieces."""
        if self.rng.random() < 0.5:
            return self.any_ids(16)
        bits = "".join(self.rng.choices([*BITS, *stops * 4], k=self.rng.randint(1, 4))).encode()
        before = self.any_ids(4)
        if self.rng.random() < 0.3:  # a character that is cut off in the middle
            before += self.spell("東".encode()[: self.rng.randint(1, 2)])
        return before + self.spell(bits) + self.any_ids(3)


def found_at(table: list[bytes], ids: list[int], stops: tuple[str, ...]) -> int | None:
    """The index of the token at which the decode engine's matcher stops."""
    matcher = StopMatcher(stops)
    return next((at for at, id_ in enumerate(ids) if matcher.feed(table[id_]) is not None), None)


@pytest.mark.parametrize("name", ["tokenizer", "qwen_tokenizer"])
def test_a_stop_is_found_where_decoding_from_scratch_finds_it(request, name):
    tokenizer = request.getfixturevalue(name)
    table = token_bytes(tokenizer)
    streams, n_found, n_odd = Streams(table, seed=0), 0, 0
    for number in range(N_STREAMS):
        stops = STOPS[number % len(STOPS)]
        ids = streams.draw(stops)
        prefixes = [ids[: end + 1] for end in range(len(ids))]
        texts = tokenizer.backend_tokenizer.decode_batch(prefixes, skip_special_tokens=False)
        expected = next((at for at, text in enumerate(texts) if any(stop in text for stop in stops)), None)
        assert found_at(table, ids, stops) == expected, (ids, stops)
        if expected is not None:
            n_found += 1
            usual = tokenizer(texts[expected], add_special_tokens=False)["input_ids"]
            n_odd += usual != ids[: expected + 1]
    assert n_found > N_STREAMS / 5 and n_odd > N_STREAMS / 10  # there was something to find, and in unusual tokens
