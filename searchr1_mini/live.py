"""What --ask, --chat and --web answer with: one row of a table, and a search engine without a data set's questions."""

from __future__ import annotations

from dataclasses import replace

from searchr1_mini.columns import OF_THE_WORLD, Column
from searchr1_mini.config import EvalConfig, TrainConfig, flag_of
from searchr1_mini.data import load_corpus
from searchr1_mini.defaults import SEARCHING
from searchr1_mini.engines import build_retriever, engine_of
from searchr1_mini.errors import UserError
from searchr1_mini.plan import Row, only_what_is_read, plan_evaluation
from searchr1_mini.probes import EmptyRetriever, RandomRetriever
from searchr1_mini.resolve import check_live
from searchr1_mini.retrieval import Retriever
from searchr1_mini.task import load_task


def plan_live(config: EvalConfig, flag: str) -> tuple[Row, Column]:
    """The one row that --ask, --chat or --web (`flag`) answers with, and what it searches.

    Passages of the user's own, by --corpus or on a server, take the place of those that the run was trained on.

    Raises:
        UserError: several rows or columns were named, one that cannot answer a question of the user's, or a flag that
            does nothing.
    """
    check_live(config, flag)
    is_own = config.datasets is None and bool(config.corpus or config.retriever == "http")
    if is_own:
        for name in ("data_path", *OF_THE_WORLD, "world_seed"):
            if getattr(config, name) is not None:
                raise UserError(f"{flag_of(name)} does nothing with passages of your own; leave it out")
    plan = plan_evaluation(replace(config, train=False, corpus=None if is_own else config.corpus))
    if len(plan.rows) > 1 or len(plan.columns) > 1:
        raise UserError(f"{flag} answers with one method, one run and one corpus; name one of each")
    (row,), (column,) = plan.rows, plan.columns
    if row.settings.retriever == "oracle":
        raise UserError(f"{flag} needs a retriever that does not know the answer's passages; leave out oracle")
    if not is_own:
        return row, column
    if config.corpus and row.settings.retriever == "http" and not config.retriever:
        row = replace(row, settings=only_what_is_read(replace(row.settings, retriever="auto")))
    searches = row.method in SEARCHING and row.settings.retriever not in ("none", "empty")
    if config.corpus and (not searches or row.settings.retriever == "http"):
        what = f"--retriever {row.settings.retriever}" if row.method in SEARCHING else f"{row.method}, without a search"
        raise UserError(f"--corpus does nothing with {what}; leave it out")
    data = dict.fromkeys(column.data) | {"dataset": "jsonl", "corpus": config.corpus, "world_noise": 0, "seed": 0}
    return row, Column(config.corpus or row.settings.retriever_url, data, "all")


def live_retriever(row: Row, settings: TrainConfig, column: Column) -> Retriever:
    """The search engine of a row on its passages; of a data set no question is read.

    Raises:
        UserError: passages, a server or a package that is not there or not as it should be.
    """
    if row.method not in SEARCHING or settings.retriever in ("none", "empty"):
        return EmptyRetriever()
    if settings.dataset == "world":
        return load_task(replace(settings, eval_questions=2), column.split).retriever
    engine = engine_of(settings)
    if engine.retriever == "http":
        return build_retriever(engine, [])
    passages = load_corpus(settings.corpus, settings.dataset, settings.data_path, engine.terms)
    return RandomRetriever(passages) if engine.retriever == "random" else build_retriever(engine, passages)
