"""How well, and how fast, retrievers find the passages that answers rest on: recall@k, MRR, milliseconds per query.

    python -m searchr1_mini.retrieval_metrics --dataset questions.json --retriever bm25,bm25s --topk 1,3,5,10

The query is the question as it stands: what the first search of a policy could find, not what a good one would.
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage, Retriever
from searchr1_mini.core.rewards import compared_title, contains_gold
from searchr1_mini.data.datasets import load_corpus, load_examples
from searchr1_mini.evaluation.columns import chosen_engines, listed
from searchr1_mini.evaluation.grid import Grid, markdown, terminal
from searchr1_mini.options.checks import check_data_files, check_questions_named, check_retriever
from searchr1_mini.options.cli import parse
from searchr1_mini.options.defaults import REAL
from searchr1_mini.options.needs import check_ranges, shown
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import name_file
from searchr1_mini.options.retrieval_config import MetricsConfig
from searchr1_mini.retrievers.engines import configured_engine, described
from searchr1_mini.retrievers.names import ENGINES, MOST_TOPK
from searchr1_mini.retrievers.terms import Terms
from searchr1_mini.run.task import make_engine


@dataclass(frozen=True)
class Metrics:
    """What a retriever found over Q questions. Without supporting titles a passage counts if a gold answer is in it.

    Attributes:
        any_recall: for each k, the share of questions with a supporting title among the titles of the k best passages.
        all_recall: for each k, the share with every supporting title among them; None without supporting titles.
        mrr: mean of 1 / rank of the first passage with a supporting title, 0 where none is among the best max(k).
        median_ms, p95_ms: of the time of one query, searched on its own.
    """

    any_recall: dict[int, float]
    all_recall: dict[int, float] | None
    mrr: float
    median_ms: float
    p95_ms: float


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, measures each retriever and prints a table.

    Raises:
        UserError: anything that the user can fix.
    """
    description = __doc__.splitlines()[0]
    config = name_file(parse(MetricsConfig, "python -m searchr1_mini.retrieval_metrics", description, argv))
    check_ranges(config)
    names = chosen_engines(config.retriever, ENGINES, every=())
    check_retriever(config, names)
    topks = parse_topks(config.topk)
    check_questions_named(config.corpus, config.dataset, config.data_path)
    config = replace(config, dataset=config.dataset or REAL["dataset"])
    is_here = names != ["http"]
    if config.corpus and not is_here:
        raise UserError("--corpus does nothing with --retriever http, whose server has its own; leave it out")
    check_data_files(config.data_path, config.corpus)
    examples = load_examples(config.dataset, config.data_path, "all", config.limit)
    asked = [example for example in examples if example.supporting]
    has_titles = bool(asked)
    asked = asked or examples
    terms = Terms(config.stemming, config.stop_words)
    passages = load_corpus(config.corpus, config.dataset, config.data_path, terms) if is_here else []
    rows = {}
    for name in names:
        engine = configured_engine(config, name)
        label = described(engine)
        label += f" ({name})" if label in rows else ""  # of two files by one name, in two folders
        rows[label] = measure(make_engine(engine, passages).retriever, asked, topks)
    held = f"{len(passages)} passages" if is_here else config.retriever_url
    if has_titles:
        print(f"{len(asked)} questions with supporting titles, of {len(examples)}, asked of {held}\n")
    else:
        print(
            f"{len(asked)} questions, none with supporting titles, asked of {held}; a passage counts if a gold answer"
        )
        print("stands in it, which it may do by chance\n")
    print((terminal if sys.stdout.isatty() else markdown)(table(rows, topks)))


def parse_topks(text: str) -> list[int]:
    """Reads `1,3,5` as [1, 3, 5], in ascending order.

    Raises:
        UserError: it is no list of numbers from 1.
    """
    parts = listed(text)
    if not parts or not all(part.isascii() and part.isdecimal() and part.strip("0") for part in parts):
        raise UserError(f"--topk {shown(text)}: give numbers from 1, as in 1,3,5,10")
    if any(len(part) > 9 or int(part) > MOST_TOPK for part in parts):
        raise UserError(f"--topk {shown(text)}: each must be at most {MOST_TOPK}")
    return sorted({int(part) for part in parts})


def measure(retriever: Retriever, examples: Sequence[Example], topks: Sequence[int]) -> Metrics:
    """Searches each question on its own, after one that is not timed.

    Args:
        retriever: without a cache in front.
        examples: all with supporting titles, or all without.
        topks: ascending.
    """
    retriever.search([examples[0].question], topks[-1])
    times, ranks = [], []
    for example in examples:
        began = time.perf_counter()
        (hits,) = retriever.search([example.question], topks[-1])
        times.append(1000 * (time.perf_counter() - began))
        ranks.append(support_ranks(example, [hit.passage for hit in hits]))
    first, last = np.array([min(r) for r in ranks]), np.array([max(r) for r in ranks])  # (Q,) each
    return Metrics(
        any_recall={k: float(np.mean(first <= k)) for k in topks},
        all_recall={k: float(np.mean(last <= k)) for k in topks} if examples[0].supporting else None,
        mrr=float(np.mean(1 / first)),
        median_ms=float(np.median(times)),
        p95_ms=float(np.percentile(times, 95)),
    )


def support_ranks(example: Example, found: Sequence[Passage]) -> list[float]:
    """Returns the rank of each supporting passage, or of the first with a gold answer; inf if there is none.

    Of passages with a title the words of the example tell the one that is meant, as a paragraph of SQuAD's articles.
    """
    golden = example.golden_answers
    meant = [(compared_title(title), words) for title, words in dict.fromkeys(example.supporting)]
    holds = [[compared_title(passage.title) == title and words in passage.text for passage in found]
             for title, words in meant]  # fmt: skip
    holds = holds or [[contains_gold(f"{passage.title} {passage.text}", golden) for passage in found]]
    return [row.index(True) + 1 if True in row else np.inf for row in holds]


def table(rows: dict[str, Metrics], topks: Sequence[int]) -> Grid:
    """Tabulates the metrics, one line per retriever."""
    has_titles = all(m.all_recall is not None for m in rows.values())
    heads = [f"{'any' if has_titles else 'gold'}@{k}" for k in topks]
    heads += [f"all@{k}" for k in topks] if has_titles else []
    lines = []
    for name, m in rows.items():
        shares = [*m.any_recall.values(), *(m.all_recall or {}).values(), m.mrr]
        lines.append([name, *(f"{share:.3f}" for share in shares), f"{m.median_ms:.2f}", f"{m.p95_ms:.2f}"])
    return Grid("Retrieval", ["retriever", *heads, f"MRR@{topks[-1]}", "ms, median", "ms, p95"], lines)


if __name__ == "__main__":
    run_command(main)
