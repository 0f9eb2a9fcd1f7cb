"""The decode engine against the obvious implementation: transformers' `generate`, one row at a time."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from helpers.models import CPU
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config

from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.stops import StopMatcher, token_bytes
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.prompting import eos_ids


def make_decoder(policy, *, n_rows=16, max_length=512, temperature=0.0, seed=0, chunk_tokens=8192) -> Decoder:
    return Decoder(
        policy,
        n_rows=n_rows,
        max_length=max_length,
        temperature=temperature,
        seed=seed,
        chunk_tokens=chunk_tokens,
    )


def run_all(decoder: Decoder, jobs: list[tuple[list[int], list[int], tuple[str, ...]]], n_new: int):
    """Every job: a prompt, a turn, an observation, a turn. Rows are reused as they get free, as in a rollout."""
    waiting, second, turns = list(range(len(jobs))), set(), {index: [] for index in range(len(jobs))}
    decoder.expect([prompt for prompt, _, _ in jobs])
    while waiting or decoder.rows:
        while waiting and decoder.has_room:
            key = waiting.pop(0)
            decoder.start(key, jobs[key][0])
            decoder.generate(key, jobs[key][2], n_new)
        for key, turn in decoder.step():
            turns[key].append(turn)
            if key in second:
                decoder.close(key)
            else:
                second.add(key)
                decoder.append(key, jobs[key][1])
                decoder.generate(key, jobs[key][2], n_new)
    return turns


def reference_turn(policy, ids: list[int], stops: tuple[str, ...], n_new: int) -> list[int]:
    with torch.no_grad():
        out = policy.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=n_new,
            do_sample=False,
            pad_token_id=policy.tokenizer.pad_token_id,
            stop_strings=list(stops) or None,
            tokenizer=policy.tokenizer,
        )
    return out[0, len(ids) :].tolist()


def test_greedy_decode_equals_transformers_generate(random_policy):
    """200 ragged prompts with repeats (shared prefixes), stops that do occur, observations in between.

    Prompts and observations end in a newline: `generate` would also match a stop that began in them.
    """
    rng = random.Random(0)
    (newline,) = random_policy.tokenizer("\n")["input_ids"]

    def some_ids(most: int) -> list[int]:
        return [rng.randrange(1, len(random_policy.tokenizer)) for _ in range(rng.randint(0, most))] + [newline]

    stops = [("er", "zz"), ("a",), ("in", "on"), ("ar", "S"), ("</search>", "</answer>")]
    prompts = [some_ids(40) for _ in range(120)]
    prompts += [rng.choice(prompts) for _ in range(80)]
    jobs = [(prompt, some_ids(30), rng.choice(stops)) for prompt in prompts]
    turns = run_all(make_decoder(random_policy, n_rows=24), jobs, n_new=8)
    finishes = set()
    for index, (prompt, observation, stops) in enumerate(jobs):
        first, second = turns[index]
        assert first.token_ids == reference_turn(random_policy, prompt, stops, 8)
        context = prompt + first.token_ids + observation
        assert second.token_ids == reference_turn(random_policy, context, stops, 8)
        finishes |= {first.finish, second.finish}
    assert {"stop", "length"} <= finishes


@pytest.mark.parametrize("chunk_tokens", [7, 64, 8192])
def test_sampled_logprobs_equal_a_fresh_forward(random_policy, chunk_tokens):
    rng = random.Random(1)
    jobs = [
        ([rng.randrange(1, 1000) for _ in range(rng.randint(1, 30))], [5] * rng.randint(1, 20), ()) for _ in range(20)
    ]
    decoder = make_decoder(random_policy, n_rows=6, temperature=0.7, chunk_tokens=chunk_tokens)
    for index, (first, second) in run_all(decoder, jobs, n_new=8).items():
        prompt, observation, _ = jobs[index]
        ids = prompt + first.token_ids + observation + second.token_ids
        with torch.no_grad():
            logits = random_policy.lm_head(random_policy.hidden(input_ids=torch.tensor([ids])))[0]
        logprobs = (logits.float() / 0.7).log_softmax(-1)
        for turn, start in ((first, len(prompt)), (second, len(ids) - len(second.token_ids))):
            for offset, (id_, logprob) in enumerate(zip(turn.token_ids, turn.logprobs, strict=True)):
                assert abs(logprobs[start + offset - 1, id_].item() - logprob) < 1e-3


def test_no_token_is_fed_twice_and_a_shared_prompt_once(random_policy):
    prompt = list(range(1, 31))
    decoder = make_decoder(random_policy, n_rows=4)
    turns = run_all(decoder, [(prompt, [7, 8, 9], ())] * 10, n_new=5)
    sampled = sum(len(turn.token_ids) for pair in turns.values() for turn in pair)
    last_of_rows, shared = 10, 9 * (len(prompt) - 1)
    assert decoder.tokens_fed == 10 * len(prompt) - shared + 10 * 3 + sampled - last_of_rows


def test_sampling_follows_the_seed(random_policy):
    jobs = [([index + 1, 2, 3], [4], ()) for index in range(6)]
    first, again, other = (
        run_all(make_decoder(random_policy, temperature=1.0, seed=seed), jobs, 10) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_row_samples_the_same_whichever_rows_share_its_batch(random_policy):
    jobs = [([index + 1, 2, 3], [4] * (index % 3 + 1), ("er",)) for index in range(12)]
    all_at_once, two_at_a_time = (
        run_all(make_decoder(random_policy, temperature=1.0, n_rows=n_rows), jobs, 10) for n_rows in (12, 2)
    )
    assert {key: [t.token_ids for t in turns] for key, turns in all_at_once.items()} == {
        key: [t.token_ids for t in turns] for key, turns in two_at_a_time.items()
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_told(random_policy, temperature):
    decoder = make_decoder(random_policy, temperature=temperature)
    decoder.lm_head = lambda hidden: torch.full((*hidden.shape[:-1], 50), torch.nan)
    decoder.start(0, [5, 6])
    decoder.generate(0, ("x",), 10)
    with pytest.raises(UserError, match="not finite"):
        decoder.step()


def test_sampling_matches_the_distribution(random_policy):
    """First tokens of 4,000 rows against the softmax, on the likeliest ids (5 standard errors)."""
    decoder = make_decoder(random_policy, n_rows=4000, temperature=1.5)
    turns = run_all(decoder, [([11, 12, 13], [1], ())] * 4000, n_new=1)
    with torch.no_grad():
        logits = random_policy.lm_head(random_policy.hidden(input_ids=torch.tensor([[11, 12, 13]])))[0, -1]
    probabilities = (logits.float() / 1.5).softmax(-1)
    for id_ in probabilities.topk(5).indices.tolist():
        share = sum(pair[0].token_ids[0] == id_ for pair in turns.values()) / 4000
        expected = probabilities[id_].item()
        assert abs(share - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5


def test_eos_ends_a_turn_and_is_kept(random_policy):
    eos = random_policy.tokenizer.eos_token_id
    decoder = make_decoder(random_policy)
    decoder.lm_head = lambda hidden: torch.nn.functional.one_hot(
        torch.full(hidden.shape[:-1], eos), len(random_policy.tokenizer)
    ).float()
    decoder.expect([[5, 6]])
    decoder.start(0, [5, 6])
    decoder.generate(0, ("x",), 10)
    ((_, turn),) = decoder.step()
    assert (turn.token_ids, turn.finish, turn.text) == ([eos], "eos", "")


def test_a_stop_ending_inside_a_token_cuts_only_the_text(tiny_policy):
    """In Qwen's splitting `>\\n\\n` is one token: the stop string ends inside it."""
    tokenizer = tiny_policy.tokenizer
    ids = tokenizer("</search>\n\n")["input_ids"]
    assert tokenizer.decode(ids[-1:]) == ">\n\n"
    matcher = StopMatcher(["</search>", "</answer>"])
    table = token_bytes(tokenizer)
    ends = [matcher.feed(table[id_]) for id_ in ids]
    assert ends[:-1] == [None] * (len(ids) - 1)
    assert bytes(matcher.seen[: ends[-1]]).decode() == "</search>"


@given(
    st.text(alphabet="ab<>é", max_size=30),
    st.lists(st.text(alphabet="ab<é", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_stop_is_found_at_the_first_piece_that_completes_it(text, stops, data):
    """However the bytes are cut into tokens, the end is that of a plain search in the text so far."""
    raw = text.encode()
    matcher, position = StopMatcher(stops), 0
    while position < len(raw):
        size = data.draw(st.integers(1, 5))
        piece = raw[position : position + size]
        position += size
        end = matcher.feed(piece)
        so_far = raw[:position]
        expected = [so_far.find(s.encode()) + len(s.encode()) for s in stops if s.encode() in so_far]
        assert end == (min(expected) if expected else None)
        if end is not None:
            break


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
@example("\uf900")
def test_token_bytes_spell_the_text(tokenizer, text):
    """Qwen2's tokenizers compose characters (NFC) before they split."""
    table = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(table[id_] for id_ in ids) == unicodedata.normalize("NFC", text).encode()


def test_a_tokenizer_without_bytes_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"▁hello": 0, "[UNK]": 1}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="byte-level"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=plain))


def test_the_end_of_a_chat_turn_ends_a_turn(qwen_tokenizer):
    """A base model's EOS is another token than the one that its chat template writes after an answer."""
    config = Qwen2Config(eos_token_id=qwen_tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    ends = qwen_tokenizer.convert_ids_to_tokens(sorted(eos_ids(qwen_tokenizer, config)))
    assert set(ends) == {"<|endoftext|>", "<|im_end|>"}


def test_without_a_chat_template_eos_alone_ends_a_turn(tokenizer):
    assert eos_ids(tokenizer, Qwen2Config(eos_token_id=None)) == {tokenizer.eos_token_id}


def test_what_a_model_stops_at_in_generate_ends_a_turn(random_qwen2, tmp_path):
    """Qwen2.5-Instruct names a second end in generation_config.json alone."""
    folder = Path(shutil.copytree(random_qwen2, tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    policy = load_policy(str(folder), lora_rank=2, lora_alpha=4, load_in_4bit=False, dtype=torch.float32, device=CPU)
    assert {3, 7, policy.tokenizer.eos_token_id} <= policy.eos_ids
