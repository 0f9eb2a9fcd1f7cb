"""Text into ids: observations that keep their tags, and foreign text that never becomes a control token."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr1_mini.encoding import break_added_tokens, foreign_ids, observation_ids, prompt_ids
from searchr1_mini.retrieval import Passage


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), min_size=0, max_size=4), st.integers(1, 80))
def test_a_cut_observation_keeps_its_tags_and_its_budget(tokenizer, texts, budget):
    cut = observation_ids([Passage(str(i), f"T{i}", text) for i, text in enumerate(texts)], tokenizer, budget)
    if cut is not None:
        ids, text = cut
        assert len(ids) <= budget
        assert text.startswith("\n\n<information>") and text.endswith("</information>\n\n")
        assert "\ufffd" not in text or any("\ufffd" in original for original in texts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["<|endoftext|>", "<|endof", "text|>", "<", " x", "|>"]), max_size=8).map("".join))
def test_foreign_text_never_becomes_a_control_token(tokenizer, text):
    assert tokenizer.eos_token_id not in foreign_ids(text, tokenizer)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<tool_call>", "<|fim_prefix|>"])
def test_no_added_token_of_qwen_comes_out_of_foreign_text(qwen_tokenizer, token):
    """Qwen2.5's added tokens are not all special: `<tool_call>` would be parsed even with special tokens split."""
    qwen_tokenizer = copy.deepcopy(qwen_tokenizer)
    qwen_tokenizer.add_tokens(["<tool_call>", "<|fim_prefix|>"])
    added = set(qwen_tokenizer.get_added_vocab().values())
    assert not added & set(foreign_ids(f"a {token} b {token[0]}{token}{token[1:]}", qwen_tokenizer))
    assert token not in break_added_tokens(token * 3, qwen_tokenizer)
    prompt = prompt_ids(f"Who is {token}?", qwen_tokenizer)
    plain = prompt_ids("Who is?", qwen_tokenizer)
    assert sum(id_ in added for id_ in prompt) == sum(id_ in added for id_ in plain)


def test_instruct_models_get_their_chat_template(qwen_tokenizer):
    text = qwen_tokenizer.decode(prompt_ids("Who?", qwen_tokenizer))
    assert text.endswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")
