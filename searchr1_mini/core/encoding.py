"""Text into ids: prompts through the chat template, foreign text without control tokens, observations cut to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.prompts import Form, neutralize_tags, render_observation
from searchr1_mini.core.retrieval import Passage

MOST_CHARS_A_TOKEN = 16  # of a passage, on average; prose has about 4. What is longer is cut before it is tokenized


def break_added_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Splits every control token that is spelled out in foreign text, `<|im_end|>` -> `< |im_end|>`.

    `split_special_tokens` misses those not called special. Left alone: blanks, our tags (Qwen3's `<think>`), letters.
    """
    added = {token.content.strip(): token.special for token in tokenizer.added_tokens_decoder.values()}
    special = {*map(str.strip, tokenizer.all_special_tokens), *(token for token in added if added[token])}
    tokens = {t for t in added if (len(t) > 1 or t in special) and neutralize_tags(t) == t} - {""}
    while any(token in text for token in tokens):
        for token in sorted(tokens, key=len, reverse=True):
            text = text.replace(token, f"{token[0]} {token[1:]}" if token[1:] else " ")
    return text


def foreign_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encodes text that the policy did not write; none of the ids is a control token."""
    broken = break_added_tokens(text, tokenizer)
    return tokenizer(broken, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def observation_ids(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, max_tokens: int, form: Form = "plain"
) -> tuple[list[int], str] | None:
    """Returns ids and text of an observation of at most `max_tokens` tokens; None if not even its tags fit.

    Too long an observation is cut inside: each text gets the same share, all titles together half of the room, or what
    the texts leave of it; the closing tag stays. The work is bounded by `max_tokens`, however long a passage is.

    Args:
        passages: best first.
        max_tokens: of the observation, its tags included.
        form: see `render_observation`.
    """
    most_chars = MOST_CHARS_A_TOKEN * max_tokens
    passages = [replace(p, title=p.title[:most_chars], text=p.text[:most_chars]) for p in passages]
    text = render_observation(passages, form)
    ids = foreign_ids(text, tokenizer)
    if len(ids) <= max_tokens or not passages:
        return (ids, text) if len(ids) <= max_tokens else None
    titles, texts = ([foreign_ids(getattr(p, part), tokenizer) for p in passages] for part in ("title", "text"))
    longest = max(map(len, texts))

    def spelled(text: str, ids: list[int], n: int) -> str:
        return text if len(ids) <= n else tokenizer.decode(ids[:n]).rstrip("\ufffd")

    def cut(most_title: int, most_text: int) -> tuple[list[int], str]:
        pieces = [
            replace(p, title=spelled(p.title, title, most_title), text=spelled(p.text, words, most_text))
            for p, title, words in zip(passages, titles, texts, strict=True)
        ]
        shown = render_observation(pieces, form)
        return foreign_ids(shown, tokenizer), shown

    def largest(most: int, make: Callable[[int], tuple[list[int], str]]) -> tuple[int, tuple[list[int], str] | None]:
        """Returns the largest share, from `most` down, with which the observation fits, and that observation."""
        while True:
            found = make(most)
            if len(found[0]) <= max_tokens:
                return most, found
            if most == 0:
                return 0, None
            most = max(0, min(most - 1, most - (len(found[0]) - max_tokens) // len(passages)))

    share, found = largest(longest, lambda share: cut(max_tokens // (2 * len(passages)), share))
    if found is None:
        return observation_ids(passages[:-1], tokenizer, max_tokens, form)
    if share == longest:  # the texts are whole: titles were cut, and may have more
        found = largest(max(map(len, titles)), lambda most: cut(most, longest))[1]
    return found
