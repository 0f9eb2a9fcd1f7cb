"""What --ask, --chat and --web answer with: whose passages, which engine, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from helpers.files import write_lines
from helpers.models import save_random_qwen2

from searchr1_mini import evaluate
from searchr1_mini.chat import live
from searchr1_mini.chat.live import live_retriever, plan_live
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.evaluation.plan import cell_settings
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import flat, make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run import task
from searchr1_mini.storage import checkpoint

HOTPOTQA = {"dataset": "hotpotqa"}


def save_run(folder: Path, **options) -> str:
    """A run's folder as train.py leaves it, but for what is in the files of its checkpoint."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(flat(resolve(make(TrainConfig, **options)))))
    checkpoint.save_checkpoint(folder, 5, lambda path: (path / "model").write_text("weights"))
    return str(folder)


def found(config: EvalConfig, query: str) -> list[Passage]:
    row, column = plan_live(config, "--chat")
    retriever, _ = live_retriever(row, cell_settings(config, row, column), column)
    hits = retriever.search([query], 1)[0]
    return [hit.passage for hit in hits]


@pytest.fixture
def corpus(tmp_path) -> str:
    rows = [{"id": "0", "contents": "Oslo\nIn Norway."}, {"id": "1", "contents": "Bern\nx"}]
    return write_lines(tmp_path / "c.jsonl", rows)


@pytest.mark.parametrize("options", [{}, {"corpus": "c.jsonl"}])
def test_there_are_questions_to_begin_with(tmp_path, corpus, options, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = EvalConfig(run=save_run(tmp_path / "a"), chat=True, **options)
    row, column = plan_live(config, "--chat")
    _, examples = live_retriever(row, cell_settings(config, row, column), column)
    assert len(examples) == 6 if not options else examples == ("What is Oslo?", "What is Bern?")


def test_eight_articles_of_any_length_give_six_questions(tmp_path):
    lengths = [40, 1, 1, 3, 1, 1, 1, 1]
    rows = [f"{name}\ntext {n}" for name, length in zip("ABCDEFGH", lengths, strict=True) for n in range(length)]
    corpus = write_lines(tmp_path / "c.jsonl", [{"id": str(n), "contents": row} for n, row in enumerate(rows)])
    row, column = plan_live(EvalConfig(model="Qwen2.5-3B", chat=True, corpus=corpus, retriever="bm25s"), "--chat")
    _, examples = live_retriever(row, cell_settings(EvalConfig(), row, column), column)
    assert [question[8] for question in examples] == list("ABCEFG")


def no_questions(*_):
    raise AssertionError("questions of a data set were read")


@pytest.mark.parametrize("settings", [{}, HOTPOTQA, HOTPOTQA | {"retriever": "http", "retriever_url": "http://x:1"}])
def test_the_users_corpus_replaces_the_one_a_run_trained_with(tmp_path, corpus, monkeypatch, settings):
    monkeypatch.setattr(task, "load_examples", no_questions)
    config = EvalConfig(run=save_run(tmp_path / "a", **settings), chat=True, corpus=corpus)
    assert [passage.title for passage in found(config, "Oslo")] == ["Oslo"]


def test_a_hub_model_searches_a_corpus_without_the_hub(corpus, monkeypatch):
    monkeypatch.setattr(task, "load_examples", no_questions)
    config = EvalConfig(model="Qwen2.5-3B", chat=True, corpus=corpus, retriever="bm25s")
    assert [passage.title for passage in found(config, "Oslo")] == ["Oslo"]


def test_without_a_corpus_a_run_searches_what_it_was_trained_on(tmp_path):
    (passage,) = found(EvalConfig(run=save_run(tmp_path / "a"), chat=True), "mayor")
    assert passage.title


@pytest.mark.parametrize(
    ("settings", "options", "told"),
    [
        ({"dataset": "q.jsonl", "corpus": "c.jsonl"}, {}, "a with search-r1; auto on c.jsonl"),
        ({"dataset": "q.jsonl"}, {}, "a with search-r1; auto on q.jsonl"),
        ({"dataset": "q.jsonl", "retriever": "http", "retriever_url": "http://x:1"}, {}, "; http on http://x:1"),
        ({}, {}, "a with search-r1; auto on world; this model"),
        ({"retriever": "my.py:Engine", "method": "my.py:asks"}, {}, "a with my.py:asks; my.py:Engine on world; "),
        (None, {"corpus": "c.jsonl", "model": "tiny"}, "tiny, untrained, with search-r1; auto on c.jsonl; this model"),
        (None, {"model": "tiny", "methods": "rag", "corpus": "c.jsonl"}, "tiny with rag; auto on c.jsonl; this model"),
        (None, {"model": "tiny", "methods": "direct"}, "tiny with direct; this model"),
    ],
)
def test_what_answers_and_what_it_searches_is_told(tmp_path, corpus, monkeypatch, settings, options, told):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "q.jsonl", [{"question": "Where is Oslo?", "answer": "Norway"}])
    (tmp_path / "my.py").write_text("class Engine:\n    def __init__(self, p): ...\n    def search(self, q, k): ...\n")
    with (tmp_path / "my.py").open("a") as file:
        file.write("def asks(question):\n    yield question\n")
    run = {} if settings is None else {"run": Path(save_run(tmp_path / "a", **settings)).name}
    config = EvalConfig(**run, chat=True, **options)
    row, column = plan_live(config, "--chat")
    assert told in live.about(config, row, cell_settings(config, row, column), column)


def test_a_method_without_search_needs_no_passages(monkeypatch):
    monkeypatch.setattr(live, "load_corpus", no_questions)
    assert found(EvalConfig(model="Qwen2.5-3B", chat=True, methods="direct"), "Oslo") == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ask": "Who?"}, "--ask does nothing with --chat"),
        ({"web": True}, "--web does nothing with --chat"),
        ({"port": 80}, "--port does nothing with --chat"),
        ({"limit": 3}, "--limit does nothing with --chat"),
        ({"output_dir": "x"}, "--output-dir does nothing with --chat"),
        ({"train": True}, "--train does nothing with --chat"),
        ({"methods": "rag,cot"}, "one method, one run and one corpus"),
        ({"retriever": "oracle"}, "leave out oracle"),
        ({"corpus": "c", "world_seed": 3}, "--world-seed does nothing with passages of your own"),
        ({"corpus": "c", "data_path": "q.jsonl"}, "--data-path does nothing"),
        ({"corpus": "c", "methods": "direct"}, "--corpus does nothing with direct, without a search"),
        ({"methods": "direct", "topk": 2}, "leave out --topk"),
        ({"corpus": "c", "retriever": "empty"}, "--corpus does nothing with --retriever empty"),
        ({"corpus": "c", "retriever": "http", "retriever_url": "http://x:1"}, "--corpus does nothing with --retr"),
    ],
)  # fmt: skip
def test_a_flag_that_does_nothing_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        plan_live(EvalConfig(model="tiny", chat=True, **options), "--chat")


@pytest.mark.parametrize(("flags", "told"), [("--port=80", "add --web"), ("--color=always", "add --ask or")])
def test_what_a_table_does_not_read_is_refused(flags, told):
    with pytest.raises(UserError, match=told):
        evaluate.main(["--model=tiny", flags])


@pytest.mark.parametrize(("options", "told"), [({"color": "never"}, "--color"), ({"host": "0.0.0.0"}, "ssh -L")])
def test_what_the_page_does_not_read_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        plan_live(EvalConfig(model="tiny", web=True, **options), "--web")


def test_a_chat_model_reads_in_its_message_what_rag_found_for_it(tmp_path, tokenizer, corpus, capsys):
    """As in the table whose row it is."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}[user]{{ m.content }}{% endfor %}[assistant]"
    model = save_random_qwen2(tmp_path / "model", tokenizer)
    evaluate_command(
        EvalConfig(
            model=str(model), methods="rag", ask="Where is Oslo?", corpus=corpus, load_in_4bit=False, max_new_tokens=4,
            template="short", color="never",
        )
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert shown.index("</information>") < shown.index("[assistant]")
