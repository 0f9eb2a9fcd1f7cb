"""What an evaluation consists of: which weights, questions, passages and retriever each cell gets, before any work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.datasets import load_examples
from searchr1_mini.evaluation.cells import fingerprint, make_task
from searchr1_mini.evaluation.plan import cell_settings, folder_for, plan_evaluation, train_row
from searchr1_mini.evaluation.tables import Results, setup
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import flat, make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run import training
from searchr1_mini.run.data_identity import data_identity
from searchr1_mini.run.task import Library
from searchr1_mini.storage import checkpoint

PASSAGE = {"id": "1", "title": "Oslo", "text": "Oslo is in Norway."}


def write_weights(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "adapter").write_text("weights")


def save_run(folder: Path, **options) -> str:
    """A run's folder as train.py leaves it, but for what is in the files of its checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(flat(resolve(make(TrainConfig, **options), unasked=options))))
    checkpoint.save_checkpoint(folder, 5, write_weights)
    return str(folder)


def write_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def question(n: int, answer: str = "x") -> dict:
    return {"id": str(n), "question": f"Where is {n}?", "answer": answer}


@pytest.fixture
def file(tmp_path) -> str:
    return write_rows(tmp_path / "q.jsonl", *map(question, range(40)))


@pytest.fixture
def corpus(tmp_path) -> str:
    return write_rows(tmp_path / "c.jsonl", PASSAGE)


def test_a_model_by_itself_and_a_run_by_itself(tmp_path):
    plan = plan_evaluation(EvalConfig(model="tiny"))
    assert [(row.label, row.weights) for row in plan.rows] == [("search-r1, untrained", None)]
    assert [column.name for column in plan.columns] == ["world"]
    run = save_run(tmp_path / "a", algorithm="ppo", seed=3, topk=2, world_hops="2")
    (row,) = plan_evaluation(EvalConfig(run=run)).rows
    assert row.label == "search-r1" and row.weights == tmp_path / "a" / "checkpoints" / "step-000005" / "model"
    assert row.settings.retrieval.topk == 2
    (column,) = plan_evaluation(EvalConfig(run=run)).columns
    assert (column.data["seed"], column.data["world_hops"], column.split) == (3, "2", "eval")


def test_each_run_is_evaluated_with_its_own_method_and_weights(tmp_path):
    runs = [
        save_run(tmp_path / "rl"),
        save_run(tmp_path / "sft", algorithm="sft"),
        save_run(tmp_path / "r1", method="r1"),
        save_run(tmp_path / "direct", method="direct"),
        save_run(tmp_path / "rs", algorithm="rejection-sampling"),
    ]
    plan = plan_evaluation(EvalConfig(run=",".join(runs)))
    found = {row.label: (row.settings.run.method, row.weights.parts[-4]) for row in plan.rows}
    assert found == {
        "direct (direct)": ("direct", "direct"),  # RL without reasoning, not the base
        "sft": ("direct", "sft"),
        "r1": ("r1", "r1"),
        "rejection-sampling": ("search-r1", "rs"),
        "search-r1": ("search-r1", "rl"),
    }
    assert [row.method for row in plan.rows] == ["direct", "sft", "r1", "rejection-sampling", "search-r1"]


@pytest.mark.parametrize("settled", ["auto", "base", "dequantized"])
def test_a_run_is_evaluated_with_the_weights_it_chose(tmp_path, settled):
    """`dequantized` may be what auto became on the run's device; the flag is what was asked for here."""
    memory = {"rollout_weights": settled, "memory_limit": 10.0}
    run = save_run(tmp_path / "run", algorithm="sft", load_in_4bit=True, **memory)
    (row,) = plan_evaluation(EvalConfig(run=run)).rows
    own = row.settings.weights
    assert own.memory_limit == 10.0 and own.rollout_weights == ("base" if settled == "base" else "auto")
    (row,) = plan_evaluation(EvalConfig(run=run, rollout_weights="dequantized")).rows
    assert row.settings.weights.rollout_weights == "dequantized"
    if settled != "base":
        (row,) = plan_evaluation(EvalConfig(run=run, memory_limit=3.0)).rows
        assert row.settings.weights.memory_limit == 3.0


def test_runs_of_one_name_differ_in_label_but_not_in_questions(tmp_path):
    first = save_run(tmp_path / "one" / "x", world_hops="1", seed=1)
    second = save_run(tmp_path / "two" / "x", world_hops="2", seed=2)
    plan = plan_evaluation(EvalConfig(run=f"{first},{second}"))
    assert [row.label for row in plan.rows] == [f"search-r1 ({first})", f"search-r1 ({second})"]
    (column,) = plan.columns
    for row in plan.rows:
        settings = cell_settings(EvalConfig(), row, column)
        assert (settings.data.world_hops, settings.optimization.seed) == ("1", 1)  # the first run's, for both


def test_baselines_that_no_run_brings_are_trained_or_left_out(tmp_path):
    run = save_run(tmp_path / "rl")
    plan = plan_evaluation(EvalConfig(run=run, methods="all"))
    assert [row.label for row in plan.rows if row.must_train] == ["sft", "r1", "rejection-sampling"]
    plan = plan_evaluation(EvalConfig(run=run, methods="all", train=False))
    assert not any(row.must_train for row in plan.rows) and len(plan.notes) == 3
    plan = plan_evaluation(EvalConfig(model="Qwen2.5-3B", methods="all"))
    assert [row.label for row in plan.rows[-1:]] == ["search-r1, untrained"]
    assert (
        len(plan.rows) == 6
        and len(plan.notes) == 3
        and "--model Qwen2.5-3B --algorithm rejection-sampling" in plan.notes[2]
    )


@pytest.mark.parametrize("dataset", ["nq", "q.jsonl", "world"])
def test_a_baseline_trains_on_the_evaluations_engine_and_corpus(tmp_path, monkeypatch, dataset):
    """Probes are put to the weights of an engine; on the world there is no server."""
    wanted = []

    def stand_in(config: TrainConfig, _) -> None:
        wanted.append(config)
        save_run(Path(config.run.output_dir), **flat(config))
        (Path(config.run.output_dir) / "summary.json").write_text("{}")

    monkeypatch.setattr(training, "train", stand_in)
    run = save_run(tmp_path / "run", algorithm="sft", dataset=dataset)
    what = {"run": run, "methods": "sft,r1,search-r1", "train": True, "corpus": "c.jsonl", "datasets": "nq"}
    engines = {"retriever": "auto,http,oracle,empty", "retriever_url": "http://x:1", "stemming": True, "topk": 2}
    config = EvalConfig(**what, **engines)
    rows = [train_row(config, row, tmp_path) for row in plan_evaluation(config).rows if row.must_train]
    on_auto, on_http, *on_probes = [row.weights for row in rows[1:]]
    assert on_probes == [on_auto, on_auto] and on_http != on_auto
    found = [
        (
            made.retrieval.retriever,
            made.retrieval.retriever_url,
            made.retrieval.stemming,
            made.retrieval.topk,
            made.data.corpus,
        )
        for made in wanted
    ]
    corpus, remote = (None, ("auto", None)) if dataset == "world" else ("c.jsonl", ("http", "http://x:1"))
    without_search = ("auto", None, False, 3, None)
    assert found == [without_search, ("auto", None, True, 2, corpus), (*remote, False, 2, corpus)]


@pytest.mark.parametrize(("dataset", "corpus"), [("nq", "hotpotqa"), ("world", None)])
def test_without_a_corpus_it_is_the_one_of_the_table(tmp_path, monkeypatch, dataset, corpus):
    wanted = []
    monkeypatch.setattr(
        training, "train", lambda config, _: wanted.append(config) or save_run(Path(config.run.output_dir))
    )
    run = save_run(tmp_path / "run", algorithm="sft", dataset=dataset)
    config = EvalConfig(run=run, methods="sft,search-r1", train=True, retriever="bm25s")
    plan = plan_evaluation(config)
    train_row(config, plan.rows[1], tmp_path)
    assert (
        wanted[0].data.corpus == plan.columns[0].data["corpus"] == corpus and wanted[0].retrieval.retriever == "bm25s"
    )


def test_a_baseline_of_other_settings_is_trained_anew(tmp_path):
    wanted = resolve(make(TrainConfig, algorithm="sft"))
    assert folder_for(wanted, tmp_path / "sft") == tmp_path / "sft"
    save_run(tmp_path / "sft", algorithm="sft", output_dir=str(tmp_path / "sft"))
    assert folder_for(wanted, tmp_path / "sft") == tmp_path / "sft"
    assert folder_for(with_options(wanted, seed=1), tmp_path / "sft") == tmp_path / "sft-2"


def test_a_baseline_of_a_file_that_has_changed_is_trained_anew(tmp_path, file):
    wanted = resolve(make(TrainConfig, dataset=file, algorithm="sft"))
    run = Path(save_run(tmp_path / "sft", dataset=file, algorithm="sft"))
    saved = json.loads((run / "config.json").read_text())
    hashes = data_identity(load_examples("jsonl", file, "train"), "")
    (run / "config.json").write_text(json.dumps(saved | {"data_hashes": hashes}))
    assert folder_for(wanted, run) == run
    write_rows(Path(file), *map(question, range(50, 90)))
    assert folder_for(wanted, run) == tmp_path / "sft-2"


def test_a_file_is_held_out_from_whatever_was_trained_on_it(tmp_path, file, corpus, monkeypatch):
    run = save_run(tmp_path / "a", dataset=file, corpus=corpus)
    plan = plan_evaluation(EvalConfig(run=run, methods="rag,search-r1"))
    assert [(column.split, column.data["corpus"]) for column in plan.columns] == [("eval", corpus)]
    monkeypatch.chdir(tmp_path)
    plan = plan_evaluation(EvalConfig(run=run, datasets="./q.jsonl"))
    assert [column.split for column in plan.columns] == ["eval"]
    other = write_rows(tmp_path / "other.jsonl", question(1))
    plan = plan_evaluation(EvalConfig(run=run, datasets=other, corpus=corpus))
    assert [column.split for column in plan.columns] == ["all"]
    assert plan_evaluation(EvalConfig(model="tiny", datasets=file, corpus=corpus)).columns[0].split == "all"


def test_a_copy_is_held_out_too_wherever_eval_is_started(tmp_path, file, corpus, monkeypatch):
    """The run knows its file by a relative path, which means nothing in another folder; its hash still does."""
    monkeypatch.chdir(tmp_path)
    run = Path(save_run(tmp_path / "a", dataset="q.jsonl", corpus=corpus))
    hashes = data_identity(load_examples("jsonl", file, "train"), "")
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(saved | {"data_hashes": hashes}))
    copy = shutil.copy(file, tmp_path / "copy.jsonl")
    other = write_rows(tmp_path / "other.jsonl", question(1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = EvalConfig(run=str(run), datasets=f"{file},{copy},{other}", corpus=corpus)
    assert [column.split for column in plan_evaluation(config).columns] == ["eval", "eval", "all"]


@pytest.mark.parametrize("names_articles", [True, False])
def test_a_copy_of_questions_by_article_is_held_out_too(tmp_path, corpus, names_articles):
    """With no articles a run cannot have been trained on it, and it is no fault to ask all of it."""
    rows = [question(n) | ({"passage_id": f"Town_{n % 10}/{n}"} if names_articles else {}) for n in range(60)]
    file = str(write_rows(tmp_path / "squad.jsonl", *rows))
    run = Path(save_run(tmp_path / "a", dataset="squad", data_path="moved.jsonl", corpus=corpus))
    hashes = data_identity(load_examples("squad", file, "train"), "") if names_articles else {"training questions": "x"}
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(saved | {"data_hashes": hashes}))
    config = EvalConfig(run=str(run), datasets="squad", data_path=file, corpus=corpus)
    (column,) = plan_evaluation(config).columns
    assert column.split == ("eval" if names_articles else "all")


def test_each_data_set_gets_the_passages_that_belong_to_it(tmp_path, file, corpus):
    names = "nq,hotpotqa,world," + file
    columns = {column.name: column.data for column in plan_evaluation(EvalConfig(model="tiny", datasets=names)).columns}
    assert {name: data["corpus"] for name, data in columns.items()} == {
        "nq": "hotpotqa", "hotpotqa": None, "world": None, file: None,
    }  # fmt: skip
    assert columns["nq"]["world_hops"] is None and columns["world"]["world_hops"] == "1,2"
    config = EvalConfig(model="tiny", datasets=names, corpus=corpus, world_hops="2", world_seed=7)
    columns = {column.name: column.data for column in plan_evaluation(config).columns}
    assert [columns[name]["corpus"] for name in ("nq", "hotpotqa", "world", file)] == [corpus, corpus, None, corpus]
    assert (columns["world"]["world_hops"], columns["world"]["seed"]) == ("2", 7)
    assert len(plan_evaluation(EvalConfig(model="tiny", datasets="all")).columns) == 8


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"datasets": "squad"}, "SQuAD's paragraphs"),
        ({"datasets": "hotpotqa"}, "HotpotQA's paragraphs"),
        ({"datasets": "nq"}, "HotpotQA's paragraphs"),
        ({"datasets": "nq", "corpus": "squad"}, "SQuAD's paragraphs"),
        ({"datasets": "squad", "corpus": "{corpus}"}, "{corpus}"),
        ({"datasets": "squad", "data_path": "{file}"}, "the paragraphs of {file}"),
    ],
)
def test_the_table_names_the_corpus_that_was_searched(file, corpus, flags, named):
    flags = {name: value.format(file=file, corpus=corpus) for name, value in flags.items()}
    config, results = EvalConfig(model="tiny", methods="rag", **flags), Results()
    plan = plan_evaluation(config)
    (row,), (column,) = plan.rows, plan.columns
    results.add(row, column.name, cell_settings(config, row, column), [])
    assert list(results.corpora) == [named.format(file=file, corpus=corpus)]


def test_retrievers_make_rows_and_the_world_is_on_no_server(tmp_path):
    config = EvalConfig(
        model="tiny", retriever="auto,http,none", retriever_url="http://localhost:8000", datasets="world,nq"
    )
    plan = plan_evaluation(replace(config, methods="direct,rag,search-o1"))
    assert [row.label for row in plan.rows] == [
        "direct", "search-o1, auto", "search-o1, http", "search-o1, none", "rag, auto", "rag, http",
    ]  # fmt: skip
    asked = [cell_settings(config, plan.rows[5], column).retrieval.retriever for column in plan.columns]
    assert dict(zip([column.name for column in plan.columns], asked, strict=True)) == {"world": "auto", "nq": "http"}
    results, world = Results(), plan.columns[0]
    results.add(plan.rows[5], "world", cell_settings(config, plan.rows[5], world), [])
    assert "Retrievers: auto, 3 passages per search. Corpora: the synthetic world" in setup(results)[0]
    run = save_run(
        tmp_path / "a", dataset="nq", retriever="http", retriever_url="http://localhost:1", model="Qwen2.5-3B"
    )
    (row,) = plan_evaluation(EvalConfig(run=run)).rows
    assert (row.settings.retrieval.retriever, row.settings.retrieval.retriever_url) == ("http", "http://localhost:1")
    (row,) = plan_evaluation(EvalConfig(run=run, retriever="empty")).rows
    assert (row.settings.retrieval.retriever, row.settings.retrieval.retriever_url) == ("empty", None)
    probed = save_run(tmp_path / "b", retriever="oracle")
    assert plan_evaluation(EvalConfig(run=probed)).rows[0].settings.retrieval.retriever == "auto"


def test_a_row_carries_only_what_its_retriever_reads(tmp_path):
    config = EvalConfig(model="tiny", methods="rag", retriever="auto,hybrid", stemming=True, dense_model="m")
    auto, hybrid = (row.settings for row in plan_evaluation(config).rows)
    assert (auto.retrieval.stemming, auto.retrieval.dense_model) == (True, TrainConfig().retrieval.dense_model)
    assert (hybrid.retrieval.stemming, hybrid.retrieval.dense_model) == (True, "m")
    run = save_run(tmp_path / "a", retriever="hybrid", stemming=True, dense_model="m")
    again = plan_evaluation(EvalConfig(run=run)).rows[0].settings
    assert (again.retrieval.retriever, again.retrieval.stemming, again.retrieval.dense_model) == ("hybrid", True, "m")
    assert plan_evaluation(EvalConfig(run=run, retriever="random")).rows[0].settings.retrieval.stemming is False
    with pytest.raises(UserError, match="--stemming does nothing"):
        plan_evaluation(EvalConfig(model="tiny", methods="direct", stemming=True))


def test_an_adapters_rank_is_its_own(tmp_path):
    """As peft writes it, and as a run does, with a folder above; a model's default is another."""
    config = tmp_path / "policy" / "adapter_config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"r": 5, "lora_alpha": 7}))
    for folder in (tmp_path, config.parent):
        (row,) = plan_evaluation(EvalConfig(model="tiny", adapter=str(folder))).rows
        assert (row.settings.weights.lora_rank, row.settings.weights.lora_alpha, row.weights) == (5, 7, folder)
    results, column = Results(), plan_evaluation(EvalConfig(model="tiny")).columns[0]
    results.add(row, "world", cell_settings(EvalConfig(), row, column), [])
    assert "tiny (LoRA rank 5)" in setup(results)[0]
    config.write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="takes a LoRA adapter"):
        plan_evaluation(EvalConfig(model="tiny", adapter=str(tmp_path)))


def mark(config: EvalConfig, planned: EvalConfig | None = None) -> str:
    plan = plan_evaluation(planned or config)
    row, column = plan.rows[0], plan.columns[0]
    task = make_task(config, row, column, Library(), {})
    return fingerprint(config, row, cell_settings(config, row, column), task)


def test_a_kept_cell_is_used_only_if_nothing_changed(tmp_path, file, corpus):
    config = EvalConfig(model="tiny", methods="rag", datasets=file, corpus=corpus, device="cpu")
    first = mark(config)
    smaller = with_options(config, rollout_batch_size=3)
    assert first == mark(config) == mark(smaller) == mark(replace(smaller, seed=4, against="rag"), planned=smaller)
    seen = {first}

    def differs(changed: EvalConfig) -> bool:
        is_new = mark(changed) not in seen
        seen.add(mark(changed))
        return is_new

    for values in ({"limit": 5}, {"topk": 1}, {"max_turns": 1}, {"temperature": 1.0}, {"retriever": "random"},
                   {"methods": "ircot"}, {"dtype": "bfloat16"}):  # fmt: skip
        assert differs(replace(config, **values)), values
    assert differs(with_options(config, temperature=1.0, seed=1))
    write_rows(tmp_path / "c.jsonl", PASSAGE | {"text": "Oslo lies in Norway."})
    assert differs(config)
    write_rows(tmp_path / "q.jsonl", *(question(n, "another gold answer") for n in range(40)))
    assert differs(config)
    run = save_run(tmp_path / "a")
    before = mark(EvalConfig(run=run, limit=4))
    shutil.rmtree(Path(run) / "checkpoints")
    checkpoint.save_checkpoint(Path(run), 5, lambda path: (path / "model").write_text("other weights"))
    assert mark(EvalConfig(run=run, limit=4)) != before


def test_a_kept_cell_is_of_the_precision_that_was_computed_in(monkeypatch, file, corpus):
    """`auto` is float32 on the CPU and bfloat16 on a GPU that has it."""
    config = EvalConfig(model="tiny", methods="rag", datasets=file, corpus=corpus, device="cpu")
    on_cpu = mark(config)
    assert on_cpu == mark(with_options(config, dtype="float32"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert mark(config) == on_cpu != mark(with_options(config, device="auto"))
    assert mark(with_options(config, device="auto")) == mark(with_options(config, dtype="bfloat16"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"methods": "sft"}, "sft is left out: train it with"),
        ({"datasets": ","}, "names no data set"),
        ({"datasets": "hotpotqa,triviaqa", "data_path": "q.jsonl"}, "one data set"),
        ({"datasets": "nq", "world_hops": "1"}, "--world-hops: the synthetic world is not among"),
        ({"world_hops": "9"}, "give different numbers"),
        ({"corpus": "c.jsonl"}, "needs questions that its passages answer; name them: --datasets FILE"),
        ({"corpus": "c.jsonl", "datasets": "world"}, "brings its own passages"),
        ({"adapter": "a", "methods": "rag,direct"}, "add it to --methods"),
        ({"methods": "rag", "retriever": "none"}, "rag always searches"),
        ({"retriever": "http"}, "add --retriever-url"),
        ({"retriever_url": "http://localhost:1"}, "it needs --retriever http or milvus"),
        ({"methods": "rag,cot", "against": "rga"}, "did you mean rag"),
        ({"checkpoint": 3}, "name the run with --run"),
        ({"methods": "direct,cot", "topk": 7}, r"no row searches \(direct, cot\); leave out --topk"),
        ({"methods": "direct", "max_turns": 2}, "leave out --max-turns"),
        ({"methods": "direct", "corpus": "c.jsonl", "datasets": "nq"}, "leave out --corpus"),
        ({"methods": "direct", "retriever": "bm25"}, "leave out --retriever"),
        ({"methods": "cot", "max_observation_tokens": 64}, "leave out --max-observation-tokens"),
        (
            {"methods": "direct,rejection-sampling", "train": False, "topk": 7},
            "leave out --topk.* rejection-sampling is left",
        ),
        ({"methods": "direct", "train": True}, "--train: no row is left to train"),
        ({"adapter": "nowhere"}, "there is no adapter in nowhere"),
        ({"run": " , "}, "--run ' , ' names nothing"),
        ({"methods": ""}, "--methods '' names nothing"),
        ({"retriever": ","}, "--retriever ',' names nothing"),
        ({"datasets": "nq", "retriever": "empty", "corpus": "c.jsonl"}, "--corpus does nothing with --retriever empty"),
        ({"datasets": "nq", "retriever": "none,empty", "topk": 7}, "--topk does nothing with --retriever empty, none"),
        ({"datasets": "nq", "seed": 3}, "--seed does nothing: answers are greedy, and no world is made"),
        ({"against": "search-r1"}, "--against compares rows of the table, and there is one"),
        ({"datasets": "a.jsonl", "data_path": "b.jsonl"}, "both files; name one"),
        ({"temperature": 1e-30}, "it must be 0, or at least 0.001"),
        ({"rollout_weights": "base"}, "--rollout-weights does nothing without a base in 4 bits"),
        ({"memory_limit": 8.0}, "--memory-limit settles --rollout-weights auto .* no row has"),
        (
            {"load_in_4bit": True, "rollout_weights": "base", "memory_limit": 8.0},
            "--memory-limit settles --rollout-weights auto",
        ),
    ],
)
def test_what_makes_no_sense_is_told_before_any_work(options, told):
    with pytest.raises(UserError, match=told):
        plan_evaluation(EvalConfig(model="tiny", **options))


def test_a_run_that_no_row_uses_is_told(tmp_path):
    run = save_run(tmp_path / "a", algorithm="sft")
    with pytest.raises(UserError, match=r"trained sft; add that to --methods"):
        plan_evaluation(EvalConfig(run=run, methods="search-r1"))
