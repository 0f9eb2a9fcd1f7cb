"""What the model's own tokenizer and chat template make of a message: ids of a prompt, and ids that end a turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.encoding import break_added_tokens, foreign_ids
from searchr1_mini.core.trajectory import opened_by
from searchr1_mini.models.chat_template import answer_end, rendered, template_of

# at the end of a message: what the policy's own turn begins with, a thought or a tag
_BEGUN = re.compile(r"(?:<think>[^<]*</think>\s*)?<(?:think|answer)>\Z")
_PLACE = "PLACE-4711"  # stands in a rendered message for what is put there later


def prompt_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, day: date, before: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """Encodes the first message: through the tokenizer's chat template when it has one, else as it stands.

    They begin once with what the tokenizer itself begins every text with (BOS), whether or not the template writes it.

    A tag that the message ends with is the beginning of the answer: in a chat it stands in the assistant's turn.

    Args:
        day: what a chat template with a date takes for today.
        before: earlier turns of the chat, as (message, answer); only for a template that `takes_turns`.

    Raises:
        UserError: the chat template refuses the message.
    """
    template = template_of(tokenizer, "the model")
    if template is None:
        ids = foreign_ids(text, tokenizer)
    else:
        begun = match[0] if (match := _BEGUN.search(text)) else ""
        message = break_added_tokens(text.removesuffix(begun), tokenizer)
        prompt = rendered(template, tokenizer, message, day, _harmless(before, tokenizer))
        prompt += begun.removeprefix("<think>") if opened_by(prompt) else begun
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return _with_own_prefix(ids, tokenizer)


def open_message_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, day: date, before: Sequence[tuple[str, str]] = ()
) -> tuple[list[int], list[int]]:
    """Encodes a first message that is not at its end yet: the ids up to there, and those that end it in a chat.

    Passages that come between them stand in the user's message, as a chat model expects what it is to read. Without a
    chat template nothing follows. Arguments and errors are those of `prompt_ids`.
    """
    template = template_of(tokenizer, "the model")
    if template is None:
        return prompt_ids(text, tokenizer, day), []
    message = break_added_tokens(text, tokenizer) + _PLACE
    head, _, tail = rendered(template, tokenizer, message, day, _harmless(before, tokenizer)).rpartition(_PLACE)
    ids, end = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (head, tail))
    return _with_own_prefix(ids, tokenizer), end


def _harmless(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Earlier turns without control tokens."""
    return [(break_added_tokens(asked, tokenizer), break_added_tokens(said, tokenizer)) for asked, said in turns]


def _with_own_prefix(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Puts what the tokenizer begins every text with before the ids, once."""
    prefix = list(own_prefix(tokenizer))
    while prefix and ids[: len(prefix)] == prefix:
        ids = ids[len(prefix) :]
    return prefix + ids


@lru_cache(maxsize=8)
def own_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the ids that the tokenizer puts before every text by itself: BOS, or none."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    return tuple(whole[:start])


def eos_ids(tokenizer: PreTrainedTokenizerBase, *configs) -> set[int]:
    """Returns every id that ends a turn: EOS of the tokenizer and the model's configs, and the template's end."""
    named = [config.eos_token_id for config in configs if config is not None]
    from_configs = [id_ for ids in named for id_ in (ids if isinstance(ids, list) else [ids])]
    return {id_ for id_ in (tokenizer.eos_token_id, *from_configs, _end_of_chat_turn(tokenizer)) if id_ is not None}


def _end_of_chat_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template writes after an answer; a base model's EOS can be another."""
    template = template_of(tokenizer, "the model")
    if template is None:
        return None
    after = answer_end(template, tokenizer)
    ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
