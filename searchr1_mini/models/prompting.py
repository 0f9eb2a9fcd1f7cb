"""What the model's own tokenizer and chat template make of a message: ids of a prompt, and ids that end a turn."""

from __future__ import annotations

from datetime import date
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from searchr1_mini.core.encoding import break_added_tokens, foreign_ids
from searchr1_mini.models.chat_template import answer_end, rendered, template_of


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase, day: date) -> list[int]:
    """Encodes the first message: through the tokenizer's chat template when it has one, else as it stands.

    They begin once with what the tokenizer itself begins every text with (BOS), whether or not the template writes it.

    Args:
        day: what a chat template with a date takes for today.

    Raises:
        UserError: the chat template refuses the message.
    """
    template = template_of(tokenizer, "the model")
    if template is None:
        ids = foreign_ids(text, tokenizer)
    else:
        prompt = rendered(template, tokenizer, break_added_tokens(text, tokenizer), day)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
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


def eos_ids(tokenizer: PreTrainedTokenizerBase, config) -> set[int]:
    """Returns every id that ends a turn: EOS of the tokenizer and the model's config, and the template's end."""
    from_config = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return {id_ for id_ in (tokenizer.eos_token_id, *from_config, _end_of_chat_turn(tokenizer)) if id_ is not None}


def _end_of_chat_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template writes after an answer; a base model's EOS can be another."""
    template = template_of(tokenizer, "the model")
    if template is None:
        return None
    after = answer_end(template, tokenizer)
    ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
