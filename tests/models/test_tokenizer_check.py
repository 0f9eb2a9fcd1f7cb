"""Tokenizers and chat templates of strangers, saved to disk: right, or refused in one sentence before any work."""

from __future__ import annotations

import copy
import json
import random
import shutil
from datetime import date, datetime
from pathlib import Path

import pytest
from helpers.dictated import Dictated
from helpers.guards import told
from helpers.models import save_random_qwen2
from helpers.sessions import collect
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from searchr1_mini import evaluate
from searchr1_mini.core.decoder import Decoder
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.models import chat_template
from searchr1_mini.models.bases import check_source
from searchr1_mini.models.prompting import eos_ids, prompt_ids
from searchr1_mini.options import eval_config
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrievers.probes import EmptyRetriever
from searchr1_mini.run.imitation import gold_demonstration
from searchr1_mini.run.methods import make_method
from searchr1_mini.run.metrics import empty_think
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.rewards import reward
from searchr1_mini.run.training import train

DAY = date(2026, 1, 5)
BOS = "<|begin_of_text|>"
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
OPENED = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SMALL = {
    "dataset": "world", "questions_per_step": 2, "mini_batches": 1, "eval_questions": 2, "tensorboard": False,
    "memory_check": False, "max_new_tokens": 8, "max_total_tokens": 700,
    "load_in_4bit": False, "rollout_batch_size": 4,
}  # fmt: skip


def with_bos(tokenizer, pattern: str = f"{BOS} $A", template: str | None = None):
    """A copy that begins every text with BOS by itself, as Llama 3's does."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"bos_token": BOS})
    names = [BOS, tokenizer.eos_token]
    ids = list(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=ids)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    """A model with room for BOS, to be copied with another tokenizer."""
    return save_random_qwen2(tmp_path_factory.mktemp("base"), with_bos(tokenizer))


def model_with(base: Path, folder: Path, tokenizer) -> Path:
    """The model with that tokenizer in place of its own."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("token*", "chat*", "special*"))
    tokenizer.save_pretrained(folder)
    return folder


def model_with_template(base: Path, folder: Path, tokenizer, template) -> Path:
    """The model with that chat template, in tokenizer_config.json as it came."""
    model_with(base, folder, tokenizer)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


BOS_FORMS = {
    "no template": (f"{BOS} $A", None),
    "no template, EOS after it": (f"{BOS} $A <|endoftext|>", None),
    "the template writes it": (f"{BOS} $A", "{{ bos_token }}" + CHAT + OPENED),
    "the template leaves it out": (f"{BOS} $A", CHAT + OPENED),
    "only the template writes it": ("$A", "{{ bos_token }}" + CHAT + OPENED),
}


@pytest.mark.parametrize("form", BOS_FORMS)
def test_a_prompt_begins_with_bos_once_wherever_it_is_made(base, tmp_path, tokenizer, form):
    pattern, template = BOS_FORMS[form]
    folder = model_with(base, tmp_path / "model", with_bos(tokenizer, pattern, template))
    settings = SMALL | {"model": str(folder), "template": "short", "group_size": 1, "algorithm": "sft"}
    run = open_run(resolve(make(TrainConfig, **settings, output_dir=str(tmp_path / "run"))))
    run.tracker.__exit__()
    text = run.make_method("Who?").send(None).text
    own = AutoTokenizer.from_pretrained(folder)
    plain = own(text, add_special_tokens=False)["input_ids"]
    if template is None:
        wanted = [own.bos_token_id, *plain]
    else:
        message, begun = text[: text.index("<think>")], text[text.index("<think>") :]  # of the assistant's turn
        asked = [{"role": "user", "content": message}]
        chat = own.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) + begun
        chat = own(chat, add_special_tokens=False)["input_ids"]
        wanted = [own.bos_token_id] * (chat[0] != own.bos_token_id) + chat
    assert prompt_ids(text, run.policy.tokenizer, DAY) == wanted
    sampled = collect(run, 1).trajectories[0].segments[0].token_ids
    shown = gold_demonstration(run, run.train.examples[0]).segments[0].token_ids
    for ids in (wanted, sampled, shown):
        assert ids[0] == own.bos_token_id and ids.count(own.bos_token_id) == 1 and own.eos_token_id not in ids


NEVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
FAULTS = {  # a template, and what is said of it
    "syntax": ("{% for", "TemplateSyntaxError"),
    "raises": ("{{ raise_exception('no such role') }}", "TemplateError: no such role"),
    "forbidden": ("{{ messages.append(1) }}", "SecurityError"),
    "types": ("{{ 1 + 'a' }}", "TypeError"),
    "long range": ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
    "memory": ("{{ 'a' * 10 ** 11 }}", "takes more memory"),
    "nothing": ("{% if false %}x{% endif %}", "gives nothing"),
    "drops the message": ("<|user|>Hello", "without its text"),
    "an address": ("{{ raise_exception }}" + CHAT, "does not give the same prompt twice"),
    "much": ("{{ 'a' * 10 ** 6 }}" + CHAT, "1,000,0"),
    "never ends": (NEVER, "does not end"),
    "never ends with earlier turns": (CHAT + "{% if messages | length > 2 %}" + NEVER + "{% endif %}", "does not end"),
    "never compiles": ("{{ 9 ** (9 ** 9) }}", "does not end"),
    "no text": (5, "template"),
    "names without a default": (
        [{"name": "rag", "template": CHAT}, {"name": "tool_use", "template": CHAT}],
        "2 chat templates (rag, tool_use) and none is named default",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_template_that_gives_no_prompt_ends_in_one_sentence(base, tmp_path, tokenizer, capsys, monkeypatch, fault):
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    template, said = FAULTS[fault]
    folder = model_with_template(base, tmp_path / "model", with_bos(tokenizer), template)
    run = tmp_path / "run"
    sentence = told(lambda: train(resolve(make(TrainConfig, **SMALL, model=str(folder), output_dir=str(run)))), capsys)
    assert said in sentence and str(folder) in sentence and len(sentence) < 500 and not run.exists()


def test_of_several_templates_the_default_is_used(base, tmp_path, tokenizer):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHAT + OPENED}]
    own = check_source(str(model_with_template(base, tmp_path / "m", with_bos(tokenizer), named)), DAY)
    assert own.decode(prompt_ids("Who?\n", own, DAY)) == BOS + "<|user|>Who?<|assistant|>"


@pytest.mark.parametrize("removed", ["*", "tokenizer.json"])
def test_a_folder_without_tokenizer_files_is_told(base, tmp_path, capsys, removed):
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    for path in [*folder.glob("tokenizer*")] if removed == "*" else [folder / removed]:
        path.unlink()
    config = make(TrainConfig, **SMALL, model=str(folder), output_dir=str(tmp_path / "run"))
    assert "has no tokenizer that knows text" in told(lambda: train(resolve(config)), capsys)
    settings = eval_config.EvalConfig(model=str(folder), datasets="world", output_dir=str(tmp_path / "e"))
    assert "has no tokenizer that knows text" in told(lambda: evaluate.evaluate_command(settings), capsys)
    assert "has no tokenizer that knows text" in told(
        lambda: evaluate.evaluate_command(eval_config.EvalConfig(model=str(folder), ask="Who?")), capsys
    )


def test_a_missing_embedding_or_end_of_text_is_refused(base, tmp_path, tokenizer):
    large = with_bos(tokenizer)
    large.add_tokens(["<extra>"])
    with pytest.raises(UserError, match=rf"ids up to {len(large) - 1}, but the model embeds {len(large) - 1} of them"):
        check_source(str(model_with(base, tmp_path / "large", large)), DAY)
    endless = model_with(base, tmp_path / "endless", with_bos(tokenizer))
    path = endless / "tokenizer_config.json"
    without = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": None, "pad_token": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | without))
    with pytest.raises(UserError, match="no end of text"):
        check_source(str(endless), DAY)


def test_a_tokenizer_that_prefixes_a_blank_is_refused(base, tmp_path, tokenizer):
    """Until its files are changed as the sentence says; either of them alone switches it on."""
    folder = model_with(base, tmp_path / "model", with_bos(tokenizer))
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    sound = [json.loads(path.read_text()) for path in files]
    blank = [json.loads(json.dumps(sound[0]).replace('"add_prefix_space": false', '"add_prefix_space": true'))]
    blank += [sound[1] | {"add_prefix_space": True}]
    for content, told_of in ((blank, True), ([sound[0], blank[1]], True), (sound, False)):
        for path, text in zip(files, content, strict=True):
            path.write_text(json.dumps(text))
        if told_of:
            with pytest.raises(UserError, match=r"model puts a blank before every text.*set add_prefix_space to false"):
                check_source(str(folder), DAY)
        else:
            check_source(str(folder), DAY)


def test_a_row_without_a_token_is_an_error_and_does_not_wait(random_policy):
    decoder = Decoder(
        random_policy, n_rows=1,
        max_length=16, temperature=0.0, seed=0,
    )  # fmt: skip
    decoder.expect([[]])
    decoder.start(0, [])
    with pytest.raises(UserError, match="without tokens"):
        decoder.generate(0, ("x",), 4)


def test_a_template_for_prompts_alone_ends_turns_with_eos(base, tmp_path, tokenizer):
    only = "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}" + CHAT + OPENED
    own = check_source(str(model_with_template(base, tmp_path / "m", with_bos(tokenizer), only)), DAY)
    config = json.loads((base / "config.json").read_text())
    assert eos_ids(own, type("Config", (), {"eos_token_id": config["eos_token_id"]})) == {own.eos_token_id}


def test_rendering_draws_nothing_at_random(tokenizer):
    message = [{"role": "user", "content": "Who?"}]
    drawn = set()
    for seed in range(20):
        random.seed(seed)
        before = random.getstate()
        drawn.add(chat_template.render("{{ [1, 2, 3, 4, 5, 6, 7] | random }}", message, {}, DAY, True))
        assert random.getstate() == before
    assert len(drawn) == 1


THOUGHT = " easy </think>\n<answer> Rome </answer>"
OPENINGS = {  # how a chat template ends, what the policy writes first, and its format reward
    "<think>\n": (THOUGHT, 1.0),
    "<think>": (THOUGHT, 1.0),
    "<think> \n\n": (THOUGHT, 1.0),
    "": ("<think>" + THOUGHT, 1.0),
    "<think>\n\n</think>\n\n": ("<think>" + THOUGHT, 1.0),  # closed again: no thought of the policy's
    "<think>\n\n</think>\n": ("<answer> Rome </answer>", 0.8),
    "<think> ": ("<think>" + THOUGHT, 0.8),  # opened twice
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_tag_that_the_chat_template_opened_counts(tokenizer, opening):
    written, wanted = OPENINGS[opening]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT + "{% if add_generation_prompt %}<|assistant|>" + opening + "{% endif %}"
    policy = Dictated(tokenizer, tokenizer(written)["input_ids"])
    method = make_method("r1", template="paper", max_turns=1, max_new_tokens=60, topk=1)
    example = Example("1", "Where?", ("Rome",), "test")
    limits = RolloutLimits(1, 600, 64)
    (trajectory,), _ = rollout([example], method, policy, EmptyRetriever(), limits, temperature=0.0, seed=0)
    assert trajectory.answer == "Rome"
    assert reward(trajectory, ["Rome"], "format") == wanted
    assert empty_think(trajectory) == (1.0 if opening == "<think>\n\n</think>\n" else 0.0)


def test_only_the_first_turn_continues_the_templates_thought():
    prompt, search = (
        Segment("prompt", [1], text="Who?<think>\n"),
        Segment("policy", [2], [0.0], "a </think><search> b </search>"),
    )
    found, bare = Segment("observation", [3], text="c"), Segment("policy", [4], [0.0], THOUGHT)
    whole = Segment("policy", [4], [0.0], "<think>" + THOUGHT)
    rewards = [
        reward(Trajectory("1", [prompt, search, found, turn], answer="Rome"), ["Rome"], "format")
        for turn in (whole, bare)
    ]
    assert rewards == [1.0, 0.8]


def test_a_demonstration_closes_the_thought_the_template_opened(base, tmp_path, tokenizer):
    template = CHAT + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    folder = model_with(base, tmp_path / "model", with_bos(tokenizer, "$A", template))
    settings = SMALL | {"model": str(folder), "template": "paper", "algorithm": "sft"}
    run = open_run(resolve(make(TrainConfig, **settings, output_dir=str(tmp_path / "run"))))
    run.tracker.__exit__()
    example = run.train.examples[0]
    segment = gold_demonstration(run, example).segments[1]
    assert run.policy.tokenizer.decode(segment.token_ids) == f"</think>\n<answer> {example.golden_answers[0]} </answer>"


DATED = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}Today Date: {{ day }}" + CHAT
)


@pytest.fixture(scope="module")
def dated(base, tmp_path_factory, tokenizer) -> Path:
    """A model whose template writes today's date, as Llama-3.2-Instruct's."""
    return model_with(
        base, tmp_path_factory.mktemp("dated") / "model", with_bos(tokenizer, template=DATED + CHAT + OPENED)
    )


@pytest.mark.parametrize("code", ["%d %b %Y", "%A, %-d %B %Y (%j) %H:%M", "%m/%d/%y %%", "%a%p%c"])
def test_a_template_is_told_a_day_as_transformers_tells_it_today(tokenizer, code):
    tokenizer = copy.deepcopy(tokenizer)
    called = "{{ strftime_now(format='CODE') }}\n{% macro f() %}{{ strftime_now('CODE') }}{% endmacro %}{{ f() }}"
    tokenizer.chat_template = "\n " + called.replace("CODE", code) + " {{ messages[0].content }}"
    message = [{"role": "user", "content": "Who?"}]
    with pytest.MonkeyPatch.context() as patch:
        clock = type("Clock", (), {"now": lambda: datetime(2026, 1, 5)})
        patch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        wanted = tokenizer.apply_chat_template(message, tokenize=False)
    given = chat_template.render(tokenizer.chat_template, message, {}, DAY, is_prompt=False)
    assert given == wanted


def test_resumed_runs_and_evaluations_keep_the_original_date(dated, tmp_path, capsys):
    settings = SMALL | {"model": str(dated), "template": "short", "group_size": 1, "algorithm": "sft", "steps": 1}
    folder = tmp_path / "run"
    train(resolve(make(TrainConfig, **settings, date="2026-01-05", output_dir=str(folder))))
    assert json.loads((folder / "config.json").read_text())["date"] == "2026-01-05"
    again = resolve(make(TrainConfig, **settings | {"steps": 2}, output_dir=str(folder), resume=True))
    run = open_run(again)
    run.tracker.__exit__()
    shown = run.policy.tokenizer.decode(collect(run, 1).trajectories[0].segments[0].token_ids)
    assert "Today Date: 05 Jan 2026" in shown
    other = with_options(again, date="2026-01-06")
    capsys.readouterr()
    assert "date 2026-01-05, not 2026-01-06" in told(lambda: train(other), capsys)
    capsys.readouterr()
    answered = eval_config.EvalConfig(run=str(folder), datasets="world", limit=2, output_dir=str(tmp_path / "e"))
    evaluate.evaluate_command(answered)
    row = json.loads(next((tmp_path / "e" / "cells").glob("*.jsonl")).read_text().splitlines()[0])
    assert "Today Date: 05 Jan 2026" in row["segments"][0]["text"]


def test_a_cell_of_another_day_is_redone_if_prompts_show_the_day(dated, random_qwen2, tmp_path, capsys):
    def evaluated(model: Path, **settings) -> str:
        values = {"model": str(model), "datasets": "world", "methods": "direct", "limit": 2, "template": "short"}
        values |= {"max_new_tokens": 4, "max_total_tokens": 700, "load_in_4bit": False} | settings
        config = eval_config.EvalConfig(**values, output_dir=str(tmp_path / model.name))
        evaluate.evaluate_command(config)
        return capsys.readouterr().out

    assert "kept" not in evaluated(dated, date="2026-01-05")
    assert "kept from before" in evaluated(dated, date="2026-01-05")
    assert "kept" not in evaluated(dated, date="2026-01-06")
    assert "kept" not in evaluated(random_qwen2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("searchr1_mini.evaluation.plan.today", lambda: date(2031, 5, 7))
        assert "kept from before" in evaluated(random_qwen2)


@pytest.mark.parametrize("given", ["tomorrow", "2026-02-30", "20260105", "2026-W02-1", ""])
def test_a_date_that_is_none_is_told(given):
    with pytest.raises(UserError, match="--date"):
        resolve(make(TrainConfig, date=given))


def test_a_date_that_no_prompt_shows_is_refused(random_qwen2, tmp_path, capsys):
    settings = SMALL | {"model": str(random_qwen2), "date": "2026-01-05"}
    config = make(TrainConfig, **settings, output_dir=str(tmp_path / "run"))
    assert "--date does nothing" in told(lambda: train(resolve(config)), capsys)
    answered = eval_config.EvalConfig(model=str(random_qwen2), date="2026-01-05", ask="Who?")
    assert "--date does nothing" in told(lambda: evaluate.evaluate_command(answered), capsys)
