"""A run whose files change or are damaged: its base, questions, passages, index. One sentence, exit code 2."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.faults import PASSAGES, QUESTIONS, SMALL, config_of, evaluation_of, sentence_of
from helpers.files import write_lines
from helpers.models import save_random_qwen2
from safetensors.torch import load_file, save, save_file

from searchr1_mini.core.errors import UserError
from searchr1_mini.data import datasets
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.export import ExportConfig, export_run
from searchr1_mini.models.identity import BASE_FILE, weights_hash
from searchr1_mini.models.initial import check_init
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.saving import save_policy
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import TINY
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.run.task import load_task
from searchr1_mini.run.training import train


@dataclass(frozen=True)
class Own:
    """A run on a base, questions and passages of one's own, all in files that may change."""

    config: TrainConfig
    base: Path
    questions: Path
    corpus: Path

    @property
    def folder(self) -> Path:
        return Path(self.config.run.output_dir)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory) -> Own:
    folder = tmp_path_factory.mktemp("own")
    base = Path(shutil.copytree(resolve_model("tiny"), folder / "base"))
    questions = write_lines(folder / "q.jsonl", QUESTIONS)
    corpus = write_lines(folder / "c.jsonl", PASSAGES)
    files = {"model": str(base), "dataset": "jsonl", "data_path": questions, "corpus": corpus}
    config = config_of(folder / "run", **TINY | SMALL | files | {"lora_rank": 4})
    train(config)
    return Own(config, base, Path(questions), Path(corpus))


@contextmanager
def changed(path: Path, content: bytes | None):
    """A file with other content for a while; None removes it."""
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def resume(own: Own, **options) -> Path:
    return train(with_options(own.config, resume=True, **options))


def other_tokenizer(base: Path) -> bytes:
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[100:102]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    return json.dumps(tokenizer).encode()


def other_weights(base: Path) -> bytes:
    weights = load_file(base / "model.safetensors")
    return save({name: tensor + 0.5 if "layers.1" in name else tensor for name, tensor in weights.items()})


def test_an_adapter_goes_onto_no_other_base(own_run, tmp_path, tokenizer, capsys):
    """The base's folder was replaced since: by one of another tokenizer, of other weights, of another size."""
    with changed(own_run.base / "tokenizer.json", other_tokenizer(own_run.base)):
        for command, arguments in (
            (resume, (own_run,)),
            (evaluate_command, (evaluation_of(own_run.folder),)),
            (export_run, (ExportConfig(run=str(own_run.folder), what="merged"),)),
        ):
            told = sentence_of(capsys, command, *arguments)
            assert f"trained on another base: {own_run.base} has other token ids" in told
    with changed(own_run.base / "model.safetensors", other_weights(own_run.base)):
        assert "has other weights" in sentence_of(capsys, evaluate_command, evaluation_of(own_run.folder))
    small = save_random_qwen2(tmp_path / "small", tokenizer, hidden=32)
    with ExitStack() as stack:
        for name in ("config.json", "model.safetensors"):
            stack.enter_context(changed(own_run.base / name, (small / name).read_bytes()))
        assert "has hidden_size 32, not" in sentence_of(capsys, resume, own_run)
    resume(own_run)


@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (32, 1)])
def test_an_adapter_of_unknown_origin_must_fit_too(own_run, hidden, layers, tmp_path, tokenizer, capsys):
    """Trained on two layers of 32: a base of another width, and one of a layer less."""
    base = save_random_qwen2(tmp_path / "base", tokenizer, hidden=32)
    settings = {"lora_alpha": 8, "load_in_4bit": False, "dtype": torch.float32, "device": torch.device("cpu")}
    save_policy(load_policy(str(base), lora_rank=4, **settings), tmp_path / "adapter")
    (tmp_path / "adapter" / BASE_FILE).unlink()
    other = save_random_qwen2(tmp_path / "other", tokenizer, hidden, layers)
    config = EvalConfig(adapter=str(tmp_path / "adapter"), model=str(other), datasets=str(own_run.questions), limit=2)
    config = with_options(config, corpus=str(own_run.corpus), output_dir=str(tmp_path / "out"))
    assert "does not go onto" in sentence_of(capsys, evaluate_command, config)
    assert "no adapter in" in sentence_of(capsys, evaluate_command, replace(config, adapter=str(tmp_path)))


NAMES = [  # what an adapter calls its base, the folder of the base in use, and what is told
    ("Qwen/Qwen2.5-3B-Instruct", "models--Qwen--Qwen2.5-1.5B/snapshots/abc", "refused"),
    ("Qwen/Qwen2.5-1.5B", "models--Qwen--Qwen2.5-1.5B/snapshots/abc", ""),
    ("/home/me/qwen2.5-1.5b/", "Qwen2.5-1.5B", ""),
    ("Qwen/Qwen2.5-1.5B", "Qwen2.5-1.5B", ""),
    ("models/base/Qwen2.5-1.5B", "models--Qwen--Qwen2.5-1.5B/snapshots/abc", ""),
    ("unsloth/Qwen2.5-1.5B", "models--Qwen--Qwen2.5-1.5B/snapshots/abc", "told"),
    ("Qwen/Qwen2.5-3B-Instruct", "mine", "told"),
    ("../other\x1b[31m", "models--Qwen--Qwen2.5-1.5B/snapshots/abc", "told"),
    (None, "mine", ""),
]


@pytest.mark.parametrize(("named", "folder", "wanted"), NAMES)
def test_the_base_that_a_foreign_adapter_names_is_looked_at(own_run, named, folder, wanted, tmp_path, capsys):
    """One line where names differ, a refusal where both are hub ids; a name says nothing beside a base.json."""
    base = Path(shutil.copytree(own_run.base, tmp_path / folder))
    model = own_run.folder / "checkpoints" / "step-000001" / "model"
    adapter = Path(shutil.copytree(model / "policy", tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))

    def load():
        arguments = {"lora_rank": 4, "lora_alpha": 8, "load_in_4bit": False, "dtype": torch.float32}
        load_policy(str(base), **arguments, device=torch.device("cpu"), weights=adapter)
        return capsys.readouterr().out

    if wanted == "refused":
        told = sentence_of(capsys, load)
        assert f"trained on {named}" in told and "not on Qwen/Qwen2.5-1.5B" in told
        with pytest.raises(UserError, match=named):
            check_init(adapter, str(base))
    else:
        told = load()
        assert told.count("would compute nonsense with it") == (wanted == "told") and "\x1b" not in told
    shutil.copy(model / BASE_FILE, adapter)
    assert "nonsense" not in load()


def test_the_same_weights_in_another_precision_are_the_same_base(own_run, tmp_path):
    wide = {name: tensor.float() for name, tensor in load_file(own_run.base / "model.safetensors").items()}
    save_file(dict(list(wide.items())[::2]), tmp_path / "model-1.safetensors")
    save_file(dict(list(wide.items())[1::2]), tmp_path / "model-2.safetensors")
    assert weights_hash(tmp_path) == weights_hash(own_run.base)


def test_a_truncated_corpus_is_refused_until_it_is_whole_again(own_run, tmp_path, capsys):
    whole = own_run.corpus.read_bytes()
    lines = whole.splitlines(keepends=True)
    zipped = tmp_path / "c.jsonl.gz"
    zipped.write_bytes(gzip.compress(whole)[:-30])
    zipped_run = with_options(own_run.config, corpus=str(zipped), output_dir=str(tmp_path / "run"))
    assert f"{zipped}" in (told := sentence_of(capsys, train, zipped_run)) and "cannot be read" in told
    for cut, words in (
        (whole[:-20], "c.jsonl, line 20: cannot be read"),
        (b"", "is empty"),
        (b"".join(lines[:-1]), "the passages are not those that the run"),
    ):
        with changed(own_run.corpus, cut):
            assert words in sentence_of(capsys, resume, own_run)
    with changed(own_run.questions, own_run.questions.read_bytes().replace(b"x1", b"y1")):
        assert "the training questions are not those" in sentence_of(capsys, resume, own_run)
    resume(own_run)


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_an_index_that_was_cut_is_told_and_built_anew(own_run, damage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "BIG_CORPUS", 0)
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path))
    config = with_options(own_run.config, retriever="bm25s")
    load_task(config, "train")
    (store,) = (tmp_path / "stores").iterdir()
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        content = path.read_bytes()
        with changed(path, {"cut": content[: len(content) * 3 // 4], "empty": b"", "gone": None}[damage]):
            told = sentence_of(capsys, load_task, config, "train")
            assert str(store) in told and "delete the folder and try again" in told, path.name
    scores = store / "data.csc.index.npy"
    np.save(other := io.BytesIO(), np.load(scores)[:-1])
    with changed(scores, other.getvalue()):
        assert "do not fit together" in sentence_of(capsys, load_task, config, "train")
    shutil.rmtree(store)
    assert load_task(config, "train").retriever.search(["T7"], 1)[0][0].passage.id == "7"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_base_is_told(own_run, name, capsys):
    content = (own_run.base / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"[]"):
        with changed(own_run.base / name, damaged):
            told = sentence_of(capsys, resume, own_run)
            assert f"cannot load '{own_run.base}'" in told


def test_weights_that_are_missing_are_not_made_up(own_run, tmp_path, capsys):
    weights = load_file(own_run.base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    with changed(own_run.base / "model.safetensors", save(weights, {"format": "pt"})):
        told = sentence_of(capsys, train, with_options(own_run.config, output_dir=str(tmp_path / "run")))
    assert "lack 1 tensors, model.layers.1.mlp.up_proj.weight among them" in told
