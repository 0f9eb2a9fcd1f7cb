"""Where a turn ends: stop strings, matched on bytes, and the ids that end one by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.errors import UserError


def byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's letters for bytes: printable ones as they are, the others as code points from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


@lru_cache(maxsize=2)  # every rollout asks
def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Returns the bytes of every id: byte-level BPE through its alphabet, added tokens as they are written.

    Raises:
        UserError: the tokenizer is not a byte-level BPE, as those of Qwen2.5 and Llama 3 are.
    """
    no_byte = dict.fromkeys(range(256), "\uffff")  # what Latin-1 cannot encode
    bytes_of = no_byte | {ord(letter): byte for letter, byte in byte_alphabet().items()}
    added = {id_: text for text, id_ in tokenizer.get_added_vocab().items()}
    vocabulary = tokenizer.get_vocab()
    table = [b""] * (max(vocabulary.values()) + 1)  # ids may have gaps
    for token, id_ in vocabulary.items():
        try:
            table[id_] = added[id_].encode() if id_ in added else token.translate(bytes_of).encode("latin-1")
        except UnicodeEncodeError:
            raise UserError(
                f"the tokenizer of this model is not a byte-level BPE (token {token!r}); stop strings are matched on "
                "bytes, so use a model of the Qwen2, Qwen2.5, Qwen3 or Llama 3 families"
            ) from None
    return table


class StopMatcher:
    """Finds the first stop string in a stream of bytes at the token that completes it, in bounded work per token."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop.encode() for stop in stops]
        self.keep = max((len(stop) for stop in self.stops), default=1) - 1
        self.seen = bytearray()

    def feed(self, piece: bytes) -> int | None:
        """Takes the bytes of one token; the length of the text up to and including a stop, once there is one."""
        start = max(0, len(self.seen) - self.keep)
        self.seen += piece
        ends = [at + len(stop) for stop in self.stops if (at := self.seen.find(stop, start)) >= 0]
        return min(ends) if ends else None
