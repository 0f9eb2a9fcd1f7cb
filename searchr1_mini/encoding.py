"""Text into ids: prompts through the chat template, foreign text without control tokens, observations cut to fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from searchr1_mini.prompts import render_observation
from searchr1_mini.retrieval import Passage


def break_added_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Splits every control token that is spelled out in foreign text, `<|im_end|>` -> `< |im_end|>`.

    `split_special_tokens` alone is not enough: added tokens that are not special would still be parsed.
    """
    added = [token for token in tokenizer.get_added_vocab() if len(token) > 1]
    if not added:
        return text
    pattern = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))
    while (broken := re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = broken
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


def observation_ids(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[int], str] | None:
    """Ids and text of an observation of at most `max_tokens` tokens; None if not even its tags fit.

    Too long an observation is cut inside: every passage's text gets the same share, the closing tag always stays.
    """
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
