"""Text into ids: prompts through the chat template, foreign text without control tokens, observations cut to fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from searchr1_mini.prompts import neutralise_tags, render_observation
from searchr1_mini.retrieval import Passage

MOST_CHARS_A_TOKEN = 16  # of a passage, on average; prose has about 4. What is longer is cut before it is tokenised
MOST_TITLE = 256  # characters; Wikipedia's titles are at most 255 bytes


def break_added_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Splits every control token that is spelled out in foreign text, `<|im_end|>` -> `< |im_end|>`.

    `split_special_tokens` alone is not enough: added tokens that are not special would still be parsed. Tokens of
    blanks, which some tokenizers add, are left alone, and so are our own tags (Qwen3 has `<think>` as a token).
    """
    added = {token.strip() for token in tokenizer.get_added_vocab() if neutralise_tags(token) == token}
    tokens = sorted((token for token in added if len(token) > 1), key=len, reverse=True)
    while any(token in text for token in tokens):
        for token in tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def foreign_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of text that the policy did not write; none of them is a control token."""
    broken = break_added_tokens(text, tokenizer)
    return tokenizer(broken, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the first message: through the tokenizer's chat template when it has one, else as it stands."""
    if not tokenizer.chat_template:
        return foreign_ids(text, tokenizer)
    message = [{"role": "user", "content": break_added_tokens(text, tokenizer)}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]


def first_tokens(text: str, n: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the first `n` tokens of foreign text spell; all of it as it stands if it has no more."""
    ids = foreign_ids(text, tokenizer)
    return text if len(ids) <= n else tokenizer.decode(ids[:n]).rstrip("\ufffd")


def observation_ids(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[int], str] | None:
    """Ids and text of an observation of at most `max_tokens` tokens; None if not even its tags fit.

    Too long an observation is cut inside: every passage's text gets the same share, all titles together half of the
    room at most, and the closing tag always stays. The work is bounded by `max_tokens`, however long a passage is.
    """
    most_chars = MOST_CHARS_A_TOKEN * max_tokens
    passages = [replace(p, title=p.title[:MOST_TITLE], text=p.text[:most_chars]) for p in passages]
    text = render_observation(passages)
    ids = foreign_ids(text, tokenizer)
    if len(ids) <= max_tokens:
        return ids, text
    title_tokens = max_tokens // (2 * max(len(passages), 1))
    passages = [replace(p, title=first_tokens(p.title, title_tokens, tokenizer)) for p in passages]
    text = render_observation(passages)
    ids = foreign_ids(text, tokenizer)
    texts = [foreign_ids(passage.text, tokenizer) for passage in passages]
    share = max(map(len, texts), default=0)
    while len(ids) > max_tokens:
        if share == 0:
            return observation_ids(passages[:-1], tokenizer, max_tokens) if passages else None
        share = max(0, min(share - 1, share - (len(ids) - max_tokens) // max(len(passages), 1)))
        kept = [tokenizer.decode(piece[:share]).rstrip("\ufffd") for piece in texts]
        text = render_observation([replace(passage, text=cut) for passage, cut in zip(passages, kept, strict=True)])
        ids = foreign_ids(text, tokenizer)
    return ids, text
