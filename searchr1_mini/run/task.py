"""What a run trains and is measured on: questions and retrievers, of the synthetic world or of a data set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import CachedRetriever, Passage, Retriever
from searchr1_mini.data.datasets import Split, load_corpus, load_examples, question_key
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.options.checks import world_hops_list
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import WITHOUT_SEARCH
from searchr1_mini.options.own_parts import is_own, own_engine
from searchr1_mini.retrievers.bm25 import fingerprint
from searchr1_mini.retrievers.engines import Engine, build_retriever, configured_engine
from searchr1_mini.retrievers.probes import EmptyRetriever, OracleRetriever, RandomRetriever


@dataclass(frozen=True)
class Task:
    """Questions of one split and the retriever that can answer them; `corpus_hash` is of its passages, or address."""

    examples: list[Example]
    retriever: Retriever
    corpus_hash: str = ""


@dataclass
class Library:
    """Corpora with their hashes, and indexes, that several tasks share, so that each is read and built once."""

    corpora: dict[tuple, tuple[Sequence[Passage], str]] = field(default_factory=dict)
    engines: dict[tuple, Retriever] = field(default_factory=dict)


def load_task(
    config: TrainConfig,
    split: Split,
    library: Library | None = None,
    without: Sequence[Example] = (),
    trained: Collection[str] = (),
) -> Task:
    """Loads questions of one split and their retriever: training questions in full, else `eval_questions` at most.

    The two splits of the synthetic world never share an entity, whatever the seed.

    Args:
        without: questions to leave out, whatever words they are in; others take their places.
        trained: keys of others to leave out of a data set (`question_key`).

    Raises:
        UserError: a file, data set or server that is not there or not as it should be.
    """
    library = library or Library()
    limit = None if split == "train" else config.data.eval_questions
    if config.data.dataset == "world":
        side = "train" if split == "train" else "eval"
        key = ("world", side, config.optimization.seed, config.data.world_difficulty, config.data.world_noise)
        world = make_world(config.optimization.seed, side, config.data.world_difficulty, config.data.world_noise)
        examples = world_examples(
            world, world_hops_list(config), limit, config.optimization.seed, {e.supporting for e in without}
        )
        library.corpora[key] = world.passages, fingerprint(world.passages)
    else:
        left_out = {question_key(example) for example in without}.union(trained)
        examples = load_examples(config.data.dataset, config.data.data_path, split, limit, left_out)
        key = (config.data.corpus or config.data.dataset, None if config.data.corpus else config.data.data_path)
    return Task(examples, *_retriever(config, key, examples, library))


def _retriever(config: TrainConfig, key: tuple, examples: list[Example], library: Library) -> tuple[Retriever, str]:
    """The engine that the config names, or one of the probes on its corpus; and the hash of what it searches."""
    name, engine = config.retrieval.retriever, configured_engine(config.retrieval)
    if name in ("none", "empty") or config.run.method in WITHOUT_SEARCH:
        return EmptyRetriever(), ""
    if name == "http":
        key = ("http", config.retrieval.retriever_url)
        library.corpora[key] = [], config.retrieval.retriever_url
    elif key not in library.corpora:
        key = (*key, engine.terms)  # a big corpus is indexed while it is read
        if key not in library.corpora:
            passages = load_corpus(config.data.corpus, config.data.dataset, config.data.data_path, engine.terms)
            library.corpora[key] = passages, fingerprint(passages)
    passages, corpus_hash = library.corpora[key]
    if name == "random":
        return RandomRetriever(passages), corpus_hash
    if name == "oracle":
        return OracleRetriever(passages, examples), corpus_hash
    if (engine, key) not in library.engines:
        library.engines[engine, key] = make_engine(engine, passages)
    return library.engines[engine, key], corpus_hash


def make_engine(engine: Engine, passages: Sequence[Passage]) -> CachedRetriever:
    """Makes the search engine, one of the package's or the user's own, behind a cache.

    Raises:
        UserError: as `build_retriever` and `own_engine`.
    """
    if is_own(engine.retriever):
        return CachedRetriever(own_engine(engine.retriever, passages))
    return build_retriever(engine, passages)
