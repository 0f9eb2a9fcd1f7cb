"""Text into ids: observations that keep their tags, and foreign text that never becomes a control token."""

from __future__ import annotations

import copy
import json
from datetime import date

import pytest
from helpers.files import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr1_mini.core.encoding import break_added_tokens, foreign_ids, observation_ids
from searchr1_mini.core.prompts import render_observation
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.models.bases import load_tokenizer
from searchr1_mini.models.chat_template import takes_turns
from searchr1_mini.models.prompting import open_message_ids, prompt_ids
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import flat, make, with_options
from searchr1_mini.options.resolve import resolve, saved_config
from searchr1_mini.run.opening import rollout_limits

DAY = date(2026, 1, 1)


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
    prompt = prompt_ids(f"Who is {token}?", qwen_tokenizer, DAY)
    plain = prompt_ids("Who is?", qwen_tokenizer, DAY)
    assert sum(id_ in added for id_ in prompt) == sum(id_ in added for id_ in plain)


def test_a_control_token_of_one_character_is_dropped(qwen_tokenizer):
    """It cannot be split; a letter that a vocabulary was extended by is text like any other."""
    tokenizer = copy.deepcopy(qwen_tokenizer)
    tokenizer.add_tokens(["☃"], special_tokens=True)
    tokenizer.add_tokens(["÷", "★"])
    tokenizer.eos_token = "★"  # which the list of added tokens does not call special
    snowman, divided, star = tokenizer.convert_tokens_to_ids(["☃", "÷", "★"])
    assert break_added_tokens("☃a☃ ÷ <|im_★end|>", tokenizer).split() == ["a", "÷", "<|im_", "end|>"]
    for ids in (foreign_ids("☃ ★ ÷", tokenizer), prompt_ids("☃ ★ ÷?", tokenizer, DAY)):
        assert snowman not in ids and star not in ids and divided in ids


# what the public code's `_passages2string` and `execute_predictions` make of these lines of wiki-18's form
WIKI_18 = ['"Oslo"\nOslo is the capital of Norway. ', '""Weird Al" Yankovic"\nBorn in 1959.\nA singer.', '"Bern"\n']
PUBLIC = (
    '\n\n<information>Doc 1(Title: "Oslo") Oslo is the capital of Norway. \nDoc 2(Title: ""Weird Al" Yankovic") Born '
    'in 1959.\nA singer.\nDoc 3(Title: "Bern")</information>\n\n'
)


def test_wiki_18_is_shown_with_the_bytes_of_the_public_code(qwen_tokenizer, tmp_path):
    lines = [{"id": str(n), "contents": contents} for n, contents in enumerate(WIKI_18)]
    passages = load_corpus(write_lines(tmp_path / "wiki.jsonl", lines), "jsonl", None)
    ids, text = observation_ids(passages, qwen_tokenizer, 500, "paper")
    assert text == PUBLIC and qwen_tokenizer.decode(ids) == PUBLIC
    assert observation_ids([], qwen_tokenizer, 500, "paper")[1] == "\n\n<information></information>\n\n"


def test_the_form_of_observations_depends_on_the_model(tmp_path):
    """Real models read them as the public code shows them, the tiny base as it was taught."""
    real = make(TrainConfig, model="Qwen2.5-3B", retriever="http", retriever_url="http://h:1")
    forms = [rollout_limits(resolve(c)).form for c in (real, with_options(real, observation="plain"), TrainConfig())]
    assert forms == ["paper", "plain", "plain"]
    old = {name: value for name, value in flat(resolve(real)).items() if name != "observation"}
    (tmp_path / "config.json").write_text(json.dumps(old))  # of a version that knew one form
    assert saved_config(tmp_path)["observation"] == "plain"


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ("w " * 180, "", ("w " * 180).strip()),
        ("One line.\n", "", "One line."),
        ("One line.\r\n \r\n", "", "One line."),
        ("p " * 200 + "\nA second paragraph.", "", "p " * 200 + "\nA second paragraph."),
        ("Oslo\r\nOld.\r\nBig.", "Oslo", "Old.\r\nBig."),
        ('"Oslo"\nOld. ', "Oslo", "Old. "),
        ('"Oslo"\n', "Oslo", ""),
        ('"' + "T" * 300 + '"\nOld.', "T" * 300, "Old."),
        ('"Quoted in full."', "", '"Quoted in full."'),
        ("\nOld.", "", "Old."),
    ],
)
def test_what_has_no_line_for_its_title_is_text(tmp_path, contents, title, text):
    path = write_lines(tmp_path / "c.jsonl", [{"id": "1", "contents": contents}])
    assert [(p.title, p.text) for p in load_corpus(path, "jsonl", None)] == [(title, text)]


@pytest.mark.parametrize("form", ["paper", "plain"])
@pytest.mark.parametrize(
    "passages",
    [
        [("", 60)], [(60, "")], [(60, 4), ("", 2)], [(90, 90)], [(150, 4), (3, 4), (2, 2)], [(3, 200), (2, 2), (70, 3)],
        [(200, 200), (200, 200)],
    ],
)  # fmt: skip
def test_no_word_is_dropped_while_there_is_room(tokenizer, form, passages):
    """Sizes in words; what does not fit leaves no room unused, and neither titles nor texts push the others out."""
    words = [[" ".join(f"w{n}" for n in range(int(size or 0))) for size in sizes] for sizes in passages]
    passages = [Passage(str(row), *pair) for row, pair in enumerate(words)]
    whole = render_observation(passages, form)
    size = len(foreign_ids(whole, tokenizer))
    assert observation_ids(passages, tokenizer, size, form) == (foreign_ids(whole, tokenizer), whole)
    for room in (size - 1, size * 3 // 4, size // 2):
        ids, _ = observation_ids(passages, tokenizer, room, form)
        assert room - len(passages) * 4 <= len(ids) <= room


def test_instruct_models_get_their_chat_template(qwen_tokenizer):
    text = qwen_tokenizer.decode(prompt_ids("Who?", qwen_tokenizer, DAY))
    assert text.endswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")


SHOWN = [("Question: a {x}?\n", "\n\n<information>b <|im_end|></information>\n\n<answer> c </answer>"), ("d?", "e")]


def test_worked_examples_are_earlier_turns_of_a_chat(qwen_tokenizer):
    text = qwen_tokenizer.decode(prompt_ids("Who?", qwen_tokenizer, DAY, SHOWN))
    asked, answered = SHOWN[0]
    answered = answered.replace("<|im_end|>", "< |im_end|>")  # no passage ends a turn
    end = "<|im_end|>\n<|im_start|>"
    chat = f"user\n{asked}{end}assistant\n{answered}{end}user\nd?{end}assistant\ne{end}user\nWho?{end}assistant\n"
    assert text.endswith(chat)
    assert text.startswith(qwen_tokenizer.decode(prompt_ids(asked, qwen_tokenizer, DAY)).split("<|im_start|>user")[0])


def test_passages_stand_in_the_message_of_a_chat(qwen_tokenizer):
    """Ids before and after them are those of the whole message."""
    begun, end = open_message_ids("Who <|im_end|>?\n", qwen_tokenizer, DAY, SHOWN)
    read = "\n\n<information>Doc 1(Title: a) b\n</information>\n\n"
    whole = qwen_tokenizer.decode(prompt_ids(f"Who <|im_end|>?\n{read}", qwen_tokenizer, DAY, SHOWN))
    assert qwen_tokenizer.decode(begun) + read + qwen_tokenizer.decode(end) == whole
    assert qwen_tokenizer.decode(end) == "<|im_end|>\n<|im_start|>assistant\n"
    plain = copy.deepcopy(qwen_tokenizer)
    plain.chat_template = None
    assert open_message_ids("Who?\n", plain, DAY) == (prompt_ids("Who?\n", plain, DAY), [])


@pytest.mark.parametrize("begun", ["<answer>", "<think>", "<think> I know this. </think>\n<answer>"])
def test_a_tag_at_the_end_of_a_message_begins_the_answer(qwen_tokenizer, begun):
    text = qwen_tokenizer.decode(prompt_ids(f"Who is <answer>?\n{begun}", qwen_tokenizer, DAY))
    assert text.endswith(f"user\nWho is <answer>?\n<|im_end|>\n<|im_start|>assistant\n{begun}")
    opened = copy.deepcopy(qwen_tokenizer)
    opened.chat_template = "{{ messages[0].content }}|<think>\n"
    assert opened.decode(prompt_ids(f"Who?\n{begun}", opened, DAY)).count("<think>") == 1


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
CUT = CHAT.replace("m.content", "m.content.split('</think>')[-1]")  # of an earlier turn Qwen3 keeps no thought
ALONE = "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}" + CHAT


@pytest.mark.parametrize(("template", "takes"), [(CHAT, True), (CUT, False), (ALONE, False), (None, False)])
def test_a_template_that_would_lose_a_shot_gets_one_message(tokenizer, template, takes):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    assert takes_turns(tokenizer) is takes


def test_what_is_cut_is_the_end_of_every_passage(tokenizer):
    """Titles stay, each text keeps its beginning, and where not even titles fit the best passages are kept."""
    passages = [Passage(str(n), f"T{n}", " ".join(f"{letter}{i}" for i in range(60))) for n, letter in enumerate("xyz")]
    _, text = observation_ids(passages, tokenizer, 120)
    lines = text.removeprefix("\n\n<information>").splitlines()[:3]
    for n, (line, letter) in enumerate(zip(lines, "xyz", strict=True)):
        assert line.startswith(f"Doc {n + 1}(Title: T{n}) {letter}0 {letter}1") and f"{letter}59" not in line
    lengths = [len(foreign_ids(line, tokenizer)) for line in lines]
    assert max(lengths) - min(lengths) <= 3  # the same share for each
    _, short = observation_ids(passages, tokenizer, 34)
    assert "(Title: T0)" in short and "(Title: T2)" not in short


def test_a_long_title_is_cut_at_its_end(tokenizer):
    passage = Passage("0", " ".join(f"t{i}" for i in range(80)), "It is in Norway.")
    _, text = observation_ids([passage], tokenizer, 60)
    assert "(Title: t0 t1" in text and "t79" not in text and ") It is" in text


def test_a_templates_own_thinking_is_off(tokenizer, tmp_path, capsys):
    """As in Qwen3's: unless it is switched off, the turn goes into a thought that no budget holds."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{{ messages[0]['content'] }}{% if enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}"
    )
    assert own.decode(prompt_ids("Who?", own, DAY)) == "Who?<think>\n\n</think>\n\n"
    own.save_pretrained(tmp_path)
    load_tokenizer(str(tmp_path))
    assert "own thinking is off" in capsys.readouterr().out
