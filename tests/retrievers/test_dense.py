"""Dense retrieval with real encoders on disk: the vectors, the index, what is kept, and what cannot be loaded."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoders import PASSAGES, QUERIES, READ, SYNONYMS, TEXTS, save_bert, save_word_vectors
from transformers import AutoModel, AutoTokenizer

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.world import make_world
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.retrievers import dense
from searchr1_mini.retrievers.bm25 import RankBM25
from searchr1_mini.retrievers.dense import DenseRetriever, encode, encode_corpus, encoder_prompts, load_model
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.run.task import Library, load_task


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    return save_word_vectors(
        tmp_path_factory.mktemp("words") / "m", [f"{p.title} {p.text}" for p in PASSAGES], SYNONYMS
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert") / "tiny-e5", READ)


def vectors_by_hand(folder: str, texts: list[str]) -> np.ndarray:
    """Mean of BERT's last hidden states over a text's tokens, normalized."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        rows.append(states.mean(dim=0) / states.mean(dim=0).norm())
    return torch.stack(rows).numpy()


def test_scores_are_cosines_of_mean_pooled_vectors(bert):
    """The vectors are those of the texts behind E5's prompts."""
    retriever = DenseRetriever(PASSAGES, bert)
    queries = vectors_by_hand(bert, [f"query: {q}" for q in ("the capital", "fish")])
    passages = vectors_by_hand(bert, [f"passage: {p.title}\n{p.text}" for p in PASSAGES])
    for hits, scores in zip(retriever.search(["the capital", "fish"], 3), queries @ passages.T, strict=True):
        best = np.argsort(-scores)[:3]
        assert [int(hit.passage.id) for hit in hits] == best.tolist()
        assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-5)


def test_a_models_own_prompts_go_before_e5s_and_others_have_none(tmp_path, words):
    own = save_bert(tmp_path / "other-e5", READ, prompts={"query": "ask: ", "passage": "told: "})
    assert encoder_prompts(load_model("SentenceTransformer", own, "--dense-model"), own) == ("ask: ", "told: ")
    assert encoder_prompts(load_model("SentenceTransformer", words, "--dense-model"), words) == ("", "")


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_synonyms_are_found_that_bm25_cannot_find(words, kind):
    found = DenseRetriever(PASSAGES, words, kind).search(QUERIES, 1)
    assert [hits[0].passage.title for hits in found] == ["Fram", "Matterhorn", "Ada"]
    assert RankBM25(PASSAGES).search(QUERIES, 1) == [[], [], []]


def test_a_graph_finds_nearly_what_comparing_with_all_finds(tmp_path):
    passages = make_world(0, "eval").passages
    model = save_word_vectors(tmp_path / "m", [f"{p.title} {p.text}" for p in passages], {})
    asked = [passage.title for passage in passages[:100]]
    flat, graph = (DenseRetriever(passages, model, kind).search(asked, 5) for kind in ("flat", "hnsw"))
    same = [len({h.passage for h in a} & {h.passage for h in b}) for a, b in zip(flat, graph, strict=True)]
    assert sum(same) >= 0.98 * 5 * len(asked)
    assert sum(hits[0].passage.title == title for hits, title in zip(flat, asked, strict=True)) >= 90


def test_no_more_hits_than_passages_and_none_without_queries(words):
    retriever = DenseRetriever(PASSAGES, words)
    assert [len(hits) for hits in retriever.search(["boat", ""], 99)] == [5, 5]
    assert retriever.search([], 3) == []
    twins = [replace(PASSAGES[0], id=str(n)) for n in range(4)]
    assert [hit.passage.id for hit in DenseRetriever(twins, words).search(["boat"], 4)[0]] == ["0", "1", "2", "3"]


def test_vectors_are_computed_once_for_each_corpus_and_model(cache, words, bert, monkeypatch):
    asked = DenseRetriever(PASSAGES, words).search(QUERIES, 2)
    DenseRetriever(PASSAGES[:-1], words)
    DenseRetriever(PASSAGES, bert)
    assert len(list(cache.glob("dense/*/vectors.npy"))) == 3
    monkeypatch.setattr(dense, "encode_corpus", None)
    assert DenseRetriever(PASSAGES, words).search(QUERIES, 2) == asked


def test_a_graph_that_was_built_is_not_read_again(cache, words, monkeypatch):
    monkeypatch.setattr("faiss.read_index", None)
    DenseRetriever(PASSAGES, words, "hnsw")
    assert len(list(cache.glob("dense/*/hnsw-*.faiss"))) == 1


def test_a_folder_with_other_weights_is_another_model(cache, tmp_path):
    model = save_word_vectors(tmp_path / "m", TEXTS.values(), {}, seed=0)
    DenseRetriever(PASSAGES, model)
    save_word_vectors(tmp_path / "m", TEXTS.values(), {}, seed=1)
    DenseRetriever(PASSAGES, model)
    assert len(list(cache.glob("dense/*/vectors.npy"))) == 2


def test_chunks_and_two_builders_at_once_make_one_whole_file(cache, words, monkeypatch):
    monkeypatch.setattr(dense, "CHUNK", 2)
    encoder = load_model("SentenceTransformer", words, "--dense-model")
    path = cache / "v" / "vectors.npy"
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(encode_corpus, encoder, "", PASSAGES, path) for _ in range(2)]:
            done.result()
    assert [file.name for file in path.parent.iterdir()] == ["vectors.npy"]
    whole = encode(encoder.encode_document, [f"{p.title}\n{p.text}" for p in PASSAGES], "")
    np.testing.assert_allclose(np.load(path), whole, atol=1e-6)


def test_what_breaks_off_is_computed_again(cache, words, monkeypatch):
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(dense, "encode", interrupted)
        DenseRetriever(PASSAGES, words)
    assert not list(cache.rglob("*.npy"))
    assert DenseRetriever(PASSAGES, words).search(["boat"], 1)[0][0].passage.title == "Fram"


@pytest.mark.parametrize("name", ["vectors.npy", "hnsw-32-200.faiss"])
def test_a_damaged_file_is_named(cache, words, name):
    DenseRetriever(PASSAGES, words, "hnsw")
    (path,) = cache.glob(f"dense/*/{name}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        DenseRetriever(PASSAGES, words, "hnsw")


def test_what_cannot_be_loaded_is_said(tmp_path):
    for name, told in [("./nowhere", "there is no folder ./nowhere"), (str(tmp_path), "cannot load the model")]:
        with pytest.raises(UserError, match=told):
            build_retriever(Engine("dense", dense_model=name), PASSAGES)


@pytest.mark.parametrize(("module", "extra"), [("sentence_transformers", "dense"), ("faiss", "dense")])
def test_a_missing_package_names_its_extra(module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"\.\[{extra}\]"):
        build_retriever(Engine("dense", dense_model="any"), PASSAGES)


@pytest.mark.parametrize("name", ["dense", "hybrid"])
def test_a_task_searches_by_the_encoder_of_its_config(tmp_path, name):
    passages = make_world(0, "eval").passages
    model = save_word_vectors(tmp_path / "m", [f"{p.title} {p.text}" for p in passages], {})
    config = resolve(make(TrainConfig, retriever=name, dense_model=model, dense_index="hnsw", eval_questions=4))
    library = Library()
    task = load_task(config, "eval", library)
    wanted = [{title for title, _ in example.supporting[:1]} for example in task.examples]
    found = task.retriever.search([example.question for example in task.examples], 5)
    assert [titles <= {h.passage.title for h in hits} for titles, hits in zip(wanted, found, strict=True)] == [True] * 4
    assert load_task(config, "eval", library).retriever is task.retriever
    assert load_task(with_options(config, retriever="auto"), "eval", library).retriever is not task.retriever
