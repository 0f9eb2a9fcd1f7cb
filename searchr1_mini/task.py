"""What a run trains and is measured on: questions and retrievers, of the synthetic world or of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from searchr1_mini.data import Example, load_corpus, load_examples
from searchr1_mini.retrieval import EmptyRetriever, Retriever, build_retriever
from searchr1_mini.world import Difficulty, Split, make_world, world_examples


@dataclass(frozen=True)
class Task:
    """Questions of one split and the retriever that can answer them."""

    examples: list[Example]
    retriever: Retriever


def load_world_task(
    split: Split, *, seed: int, difficulty: Difficulty, noise: int, hops: list[int], n: int | None, retriever: str
) -> Task:
    """A fresh synthetic world; the two splits never share an entity, whatever the seed."""
    world = make_world(seed, split, difficulty, noise)
    index = EmptyRetriever() if retriever == "empty" else build_retriever(retriever, world.passages)
    return Task(world_examples(world, hops, n, seed), index)


def load_dataset_task(
    split: Split,
    *,
    dataset: str,
    data_path: str | None,
    corpus: str | None,
    n: int | None,
    retriever: str,
    retriever_url: str | None,
    share_retriever: Retriever | None = None,
) -> Task:
    """Questions of a data set; `share_retriever` spares a second index over the same corpus."""
    examples = load_examples(dataset, data_path, split, n)
    if share_retriever is not None:
        return Task(examples, share_retriever)
    passages = [] if retriever in ("http", "empty") else load_corpus(corpus, dataset, data_path)
    return Task(examples, build_retriever(retriever, passages, retriever_url))
