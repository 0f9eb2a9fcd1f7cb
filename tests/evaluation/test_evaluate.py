"""eval.py as a user runs it: tables of methods and data sets, what is kept, baselines that are trained on the way."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
from helpers.models import save_random_qwen2
from helpers.paths import ROOT
from helpers.programs import Program, run_program

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.datasets import load_corpus, load_examples
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.evaluation.cells import code_hash, weights_state
from searchr1_mini.options import defaults
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.retrievers.bm25 import index_terms
from searchr1_mini.retrievers.terms import tokenize
from searchr1_mini.storage.files import read_jsonl

PLACES = {"Oslo": "Norway", "Bern": "Switzerland", "Rome": "Italy", "Bari": "Italy"}
QUESTIONS = [
    {"id": name, "question": f"Where is {name}?", "golden_answers": [land], "supporting_facts": [[name, 0]]}
    for name, land in PLACES.items()
]
CORPUS = [{"id": name, "contents": f'"{name}"\nIt is in {land}.'} for name, land in PLACES.items()]


def evaluate(folder: Path, *arguments: object) -> str:
    result = run_program("eval.py", "--output-dir", folder, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["rows"]


def cells_of(folder: Path) -> dict[str, list[dict]]:
    return {path.name: read_jsonl(path) for path in sorted((folder / "cells").glob("*.jsonl"))}


def test_an_evaluation_that_was_killed_goes_on_where_it_was(tmp_path):
    flags = ["--model", "tiny", "--methods", "direct,rag,ircot,search-o1", "--limit", 20]
    whole = evaluate(tmp_path / "whole", *flags)
    assert whole.count(" s)") == 4 and "kept" not in whole
    killed = Program("eval.py", "--output-dir", tmp_path / "killed", *flags)
    next(line for line in killed.stdout if line.startswith("[1/4]"))
    killed.kill()
    killed.wait()
    n_kept = len(list((tmp_path / "killed" / "cells").glob("*.jsonl")))
    resumed = evaluate(tmp_path / "killed", *flags)
    assert n_kept >= 1 and resumed.count("kept from before") == n_kept
    assert cells_of(tmp_path / "killed") == cells_of(tmp_path / "whole")
    for name in ("table.md", "table.tex", "results.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    cell = next((tmp_path / "whole" / "cells").glob("rag*"))
    text = cell.read_text()
    cell.with_suffix(".part").write_text(text[: len(text) // 2])  # killed within a cell, within a line
    cell.unlink()
    assert evaluate(tmp_path / "whole", *flags).count("kept from before") == 3
    rows = read_jsonl(tmp_path / "killed" / "cells" / cell.name)
    assert list(map(written, read_jsonl(cell))) == list(map(written, rows)) and not list(cell.parent.glob("*.part"))
    assert evaluate(tmp_path / "whole", *flags, "--topk", 1).count("kept from before") == 0


def test_greedy_evaluation_ignores_batch_size_and_order(tmp_path):
    corpus, found = write_jsonl(tmp_path / "c.jsonl", CORPUS), []
    for n, rows in ((1, QUESTIONS), (3, QUESTIONS), (64, QUESTIONS[::-1])):
        file = write_jsonl(tmp_path / "q.jsonl", rows)
        flags = ["--methods", "rag,ircot,search-o1", "--datasets", file, "--corpus", corpus, "--rollout-batch-size", n]
        evaluate(tmp_path / str(n), "--model", "tiny", *flags)
        cells = cells_of(tmp_path / str(n)).values()
        found.append([{row["example_id"]: written(row) for row in cell} for cell in cells])
    assert found[0] == found[1] == found[2] and len(found[0]) == 3


def written(row: dict) -> list:
    """All that an answer consists of, but for the log-probs, which may differ in their last bits."""
    return [[segment["token_ids"] for segment in row["segments"]], row["answer"], row["queries"], row["scores"]]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_of_ones_own_are_data_sets(tmp_path, suffix):
    """FlashRAG's jsonl and the reference's parquet, by name, as a whole; a row of each and one for each probe."""
    file = write_jsonl(tmp_path / "mine.jsonl", QUESTIONS)
    if suffix == "parquet":
        import datasets

        rows = [
            {
                "data_source": "mine",
                "question": row["question"],
                "prompt": [{"role": "user", "content": row["question"]}],
                "ability": "fact-reasoning",
                "reward_model": {"style": "rule", "ground_truth": {"target": row["golden_answers"]}},
                "extra_info": {"split": "test", "index": n},
                "supporting_facts": {"title": [row["id"]]},
            }
            for n, row in enumerate(QUESTIONS)
        ]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "mine.parquet")
        file = tmp_path / "mine.parquet"
    corpus = write_jsonl(tmp_path / "c.jsonl", CORPUS)
    probes = "auto,empty,random,oracle,none"
    out = evaluate(
        tmp_path / "out", "--model", "tiny", "--methods", "rag,direct", "--datasets", file, "--corpus", corpus,
        "--retriever", probes, "--topk", 1, "--compare",
    )  # fmt: skip
    assert "4 of mine" in out and str(corpus) in out and "paper: RAG, 3B" in out
    rows = rows_of(tmp_path / "out")
    assert list(rows) == ["direct", "rag, auto", "rag, empty", "rag, random", "rag, oracle"]  # rag needs an engine
    found = [row["by_source"]["mine"]["support_retrieved"] for row in rows.values()]
    assert found[:3] == [0, 1, 0] and found[3] < 1 and found[4] == 1
    assert rows["rag, oracle"]["by_source"]["mine"]["gold_retrieved"] == 1


@pytest.fixture
def short_training(monkeypatch):
    """The defaults of the tiny base, but for the length of training."""
    for name, value in {"steps": 2, "decay_steps": 0, "warmup_steps": 1, "eval_questions": 8}.items():
        monkeypatch.setitem(defaults.TINY, name, value)
    monkeypatch.setitem(defaults.IMITATION["tiny"], "steps", 2)
    monkeypatch.setitem(defaults.IMITATION["tiny"], "demonstration_questions", 80)


def test_all_nine_methods_with_one_command(tmp_path, short_training, capsys):
    config = EvalConfig(model="tiny", methods="all", limit=8, output_dir=str(tmp_path), compare=True)
    evaluate_command(config)
    out = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert list(rows) == [
        "direct", "cot", "ircot", "search-o1", "rag", "sft", "r1", "rejection-sampling", "search-r1",
    ]  # fmt: skip
    assert out.count("\ntraining ") == 4 and "paper: Search-R1 GRPO base, 3B" in out
    evaluate_command(config)
    out = capsys.readouterr().out
    assert out.count("kept from before") == 9 and "\ntraining " not in out
    runs = ",".join(str(tmp_path / "runs" / name) for name in ("search-r1", "sft"))
    evaluate_command(EvalConfig(run=runs, limit=8, output_dir=str(tmp_path / "two")))
    assert list(rows_of(tmp_path / "two")) == ["sft", "search-r1"]
    same = rows_of(tmp_path / "two")["search-r1"]["by_source"]
    assert same == rows["search-r1"]["by_source"]


def test_two_runs_of_one_method_stand_side_by_side(tmp_path, short_training):
    evaluate_command(
        EvalConfig(model="tiny", methods="direct,r1", limit=4, output_dir=str(tmp_path / "one"), train=True)
    )
    first = tmp_path / "one" / "runs" / "r1"
    shutil.copytree(first, tmp_path / "other")
    config = EvalConfig(
        run=f"{first},{tmp_path / 'other'}", limit=4, output_dir=str(tmp_path / "out"), against="r1 (r1)"
    )
    evaluate_command(config)
    rows = rows_of(tmp_path / "out")
    assert list(rows) == ["r1 (r1)", "r1 (other)"] and rows["r1 (other)"]["against"]["em"] == "+0.000 (p = 1.000)"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--methods", "ragg"], "did you mean rag"),
        (["--datasets", "hotpot"], "did you mean hotpotqa"),
        (["--run", "nowhere"], "nowhere holds no run"),
        (["--retriever", "bm52"], "did you mean bm25"),
        (["--datasets", "questions.jsonl"], "there is no file questions.jsonl"),
        (["--methods", "rag,direct", "--against", "cot", "--limit", "4"], "no such row"),
        (["--run", "a", "--model", "tiny"], "leave out --model"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_sentence(tmp_path, flags, told):
    result = run_program("eval.py", "--output-dir", tmp_path, *flags)
    assert result.returncode == 2 and told in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()[-1]) < 400


def test_a_cell_is_answered_again_once_the_program_has_changed(tmp_path, capsys, monkeypatch):
    file = write_jsonl(tmp_path / "q.jsonl", QUESTIONS)
    config = EvalConfig(model="tiny", methods="direct", datasets=str(file), output_dir=str(tmp_path / "out"))
    for is_other, n_kept in ((False, 0), (False, 1), (True, 0)):
        if is_other:
            monkeypatch.setattr("searchr1_mini.evaluation.cells.code_hash", lambda: "of other prompts")
        evaluate_command(config)
        assert capsys.readouterr().out.count("kept from before") == n_kept


@pytest.mark.parametrize(("module", "is_read"), [("core/prompts.py", True), ("run/templates.py", True),
                                                 ("pages/report.py", False)])  # fmt: skip
def test_another_source_of_prompts_or_scores_is_another_program(tmp_path, module, is_read):
    package = tmp_path / "package"
    shutil.copytree(ROOT / "searchr1_mini", package, ignore=shutil.ignore_patterns("__pycache__", "tiny_base"))
    before = code_hash(package)
    code_hash.cache_clear()
    with (package / module).open("a") as file:
        file.write("# edited\n")
    assert (code_hash(package) != before) is is_read


def test_examples_that_take_every_question_are_refused(tmp_path, monkeypatch):
    file = write_jsonl(tmp_path / "q.jsonl", QUESTIONS)
    asked = [(example, []) for example in load_examples("jsonl", str(file), "all")]
    monkeypatch.setattr("searchr1_mini.evaluation.cells.draw_shots", lambda *_: ({"direct": asked}, None))
    config = EvalConfig(model="tiny", methods="direct", datasets=str(file), shots=4, output_dir=str(tmp_path / "out"))
    with pytest.raises(UserError, match="--shots 4 takes every question of"):
        evaluate_command(config)


def test_a_manifest_beside_a_base_is_no_checkpoints(tmp_path):
    """Only a checkpoint's own tells of its weights: one in a folder of models says nothing about them."""
    for folder, is_checkpoint in (("models", False), ("step-000002", True)):
        base = tmp_path / folder / "model"
        base.mkdir(parents=True)
        (tmp_path / folder / "manifest.json").write_text("{}")
        (base / "model.safetensors").write_bytes(b"1")
        before = weights_state(base)
        (base / "model.safetensors").write_bytes(b"12")
        assert (weights_state(base) == before) is is_checkpoint


def test_leaving_out_an_untrained_baseline_says_how_to_train_it(tmp_path):
    out = evaluate(tmp_path, "--model", "tiny", "--methods", "direct,sft", "--limit", 4, "--no-train")
    assert "sft is left out: train it with `python train.py --model tiny --algorithm sft --output-dir DIR`" in out
    assert list(rows_of(tmp_path)) == ["direct"]


def test_every_method_on_the_hotpotqa_sample_with_a_random_model(shared, qwen_tokenizer, tmp_path):
    """Real questions, the real tokenizer: each method runs to its end, and RAG finds what BM25's formula finds."""
    model = save_random_qwen2(tmp_path / "model", qwen_tokenizer)
    data = shared / "data" / "hotpotqa_distractor_100.json"
    all_rows = json.loads(data.read_text())
    (first := tmp_path / "first.json").write_text(json.dumps(all_rows[:60]))
    small = ["--model", model, "--no-load-in-4bit", "--max-new-tokens", 4, "--max-total-tokens", 1200]
    budget = ["--steps", 1, "--eval-questions", 2, "--questions-per-step", 2, "--mini-batches", 1, "--no-tensorboard"]
    runs = {"sft": ["--algorithm", "sft"], "r1": ["--method", "r1"], "search-r1": []}
    for name, flags in runs.items():
        result = run_program("train.py", *small, *budget, *flags, "--dataset", first, "--output-dir", tmp_path / name)
        assert result.returncode == 0, result.stderr
    result = run_program("train.py", *small, *budget, "--algorithm", "rejection-sampling", "--dataset", first,
                 "--demonstration-questions", 4, "--output-dir", tmp_path / "rs")  # fmt: skip
    assert result.returncode == 2 and "so there is nothing to imitate" in result.stderr
    (again := tmp_path / "again.json").write_text(json.dumps(all_rows[::-1]))  # another file, with theirs among others
    methods = "direct,cot,ircot,search-o1,rag,sft,r1,search-r1"
    trained = ",".join(str(tmp_path / name) for name in runs)
    out, n = tmp_path / "out", 30
    evaluate(out, "--run", trained, "--methods", methods, "--limit", n, "--datasets", again, "--max-turns", 1)
    rows = {label: row["by_source"]["again"] for label, row in rows_of(out).items()}
    assert list(rows) == methods.split(",")
    for row in rows.values():
        assert sum(row[f"finish/{reason}"] for reason in ("answer", "eos", "turns", "length")) == pytest.approx(1)
    (cell,) = (out / "cells").glob("rag*")
    asked = {row["example_id"].rpartition("/")[2] for row in read_jsonl(cell)}
    learned = {example.id.rpartition("/")[2] for example in load_examples("hotpotqa", str(first), "train")}
    assert len(asked) == n and not asked & learned and len(learned) == 54
    find = titles_by_formula(again)
    examples = [e for e in load_examples("hotpotqa", str(again), "all") if e.id.rpartition("/")[2] in asked]
    found = [(find(example.question, 3), {title for title, _ in example.supporting}) for example in examples]
    assert rows["rag"]["support_retrieved"] == sum(bool(ours & wanted) for ours, wanted in found) / n >= 0.93
    assert rows["rag"]["all_support_retrieved"] == sum(wanted <= ours for ours, wanted in found) / n
    assert rows["direct"]["em"] == 0 and rows["ircot"]["searches"] >= 1


def titles_by_formula(data: Path):
    """Okapi BM25 (k1 1.5, b .75) from its formula, term by term and passage by passage."""
    passages = load_corpus(None, "hotpotqa", str(data))
    counts = [Counter(index_terms(passage)) for passage in passages]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(lengths)

    def search(query: str, topk: int) -> set[str]:
        scores = [0.0] * len(counts)
        for term in tokenize(query):
            n = sum(term in count for count in counts)
            idf = math.log((len(counts) - n + 0.5) / (n + 0.5))
            for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
                scores[row] += idf * count[term] * 2.5 / (count[term] + 1.5 * (0.25 + 0.75 * length / mean))
        best = sorted(range(len(counts)), key=lambda row: (-scores[row], row))[:topk]
        return {passages[row].title for row in best}

    return search


def test_a_run_does_not_count_the_questions_it_was_trained_on(tmp_path, short_training):
    """A local file is held out from its own run, and whole for another model."""
    rows = [{"question": f"Where is {n}?", "answer": str(n)} for n in range(40)]
    file = write_jsonl(tmp_path / "q.jsonl", rows)
    small = ["--steps", 1, "--eval-questions", 4, "--no-tensorboard"]
    result = run_program("train.py", "--algorithm", "sft", "--dataset", file, *small, "--output-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    copy = shutil.copy(file, tmp_path / "copy.jsonl")  # under another name, as after a move to another machine
    evaluate(tmp_path / "own", "--run", tmp_path / "run", "--datasets", f"{file},{copy}")
    evaluate(tmp_path / "whole", "--model", "tiny", "--methods", "direct", "--datasets", file)
    own = rows_of(tmp_path / "own")["sft"]["by_source"]
    assert own["q"]["n"] == own["copy"]["n"] == 4
    assert rows_of(tmp_path / "whole")["direct"]["by_source"]["q"]["n"] == 40
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="no whole checkpoint"):
        evaluate_command(EvalConfig(run=str(tmp_path / "run"), output_dir=str(tmp_path / "none")))
