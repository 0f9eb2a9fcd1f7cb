"""What must hold of a tokenizer and its chat template before a run, seen by what they do."""

from __future__ import annotations

from datetime import date
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.stops import token_bytes
from searchr1_mini.models.chat_template import QUESTION, check_template, template_of
from searchr1_mini.models.prompting import own_prefix, prompt_ids


def check_tokenizer(tokenizer: Any, source: str, n_embeddings: int, day: date) -> None:
    """Refuses a tokenizer that a run would hang or go astray on.

    It gives ids for text, each with a row of the embedding; it is byte-level and puts no blank before a text; it knows
    an end of text; its chat template gives a prompt with the message in it, in bounded time; its own first ids (BOS)
    stand at the prompt's start once.

    Args:
        source: how the errors call the model.
        n_embeddings: rows of the model's embedding.
        day: what the chat template takes for today.

    Raises:
        UserError: names what is wrong and the remedy.
    """
    ids = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise UserError(
            f"{source} has no tokenizer that knows text ({QUESTION!r} becomes {len(set(ids))} different ids); put "
            "tokenizer.json and tokenizer_config.json of the model that it was made from into its folder"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= n_embeddings:
        raise UserError(
            f"the tokenizer of {source} has ids up to {largest}, but the model embeds {n_embeddings} of them (0 to "
            f"{n_embeddings - 1}); take the tokenizer that belongs to it, or save the model anew after "
            f"`model.resize_token_embeddings({largest + 1})`"
        )
    if token_bytes(tokenizer)[ids[0]][:1].isspace():  # every passage and every turn is tokenized by itself
        raise UserError(
            f"the tokenizer of {source} puts a blank before every text, so before every passage; set add_prefix_space "
            "to false in its tokenizer.json (at ByteLevel in pre_tokenizer) and tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {source} names no end of text; add the token as eos_token to its tokenizer_config.json"
        )
    template = template_of(tokenizer, source)
    if template is not None:
        check_template(template, tokenizer, source, day)
    prompt, prefix = prompt_ids(QUESTION, tokenizer, day), own_prefix(tokenizer)
    if not prompt or prompt[: len(prefix)] != list(prefix):
        raise UserError(f"the tokenizer of {source} begins a prompt with {prompt[:4]}, not with its own {list(prefix)}")
