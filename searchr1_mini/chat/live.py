"""What --ask, --chat and --web answer with: one row of a table, and a search engine without a data set's questions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from searchr1_mini.chat import web
from searchr1_mini.chat.terminal import Chat, Screen, chat_in_terminal
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Retriever
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.data.rows import is_text
from searchr1_mini.evaluation.cells import check_models, load, method_for
from searchr1_mini.evaluation.columns import OF_THE_WORLD, Column
from searchr1_mini.evaluation.plan import Row, cell_settings, only_what_is_read, plan_evaluation
from searchr1_mini.options.checks import check_live
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import SEARCHING, TRAINED
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import flag_name, with_options
from searchr1_mini.options.own_parts import is_own, short_name
from searchr1_mini.retrievers.engines import configured_engine, described
from searchr1_mini.retrievers.listening import LOOPBACK, listen
from searchr1_mini.retrievers.probes import EmptyRetriever, RandomRetriever
from searchr1_mini.run.log import shows_color
from searchr1_mini.run.opening import rollout_limits
from searchr1_mini.run.task import load_task, make_engine
from searchr1_mini.storage import status

N_EXAMPLES = 6  # questions to begin with
SAMPLED_TITLES = 600  # from which they are made


def plan_live(config: EvalConfig, flag: str, unasked: Collection[str] = ()) -> tuple[Row, Column]:
    """The one row that --ask, --chat or --web (`flag`) answers with, and what it searches.

    Passages of the user's own, by --corpus or on a server, take the place of those that the run was trained on.

    Args:
        unasked: names of options whose values come from a preset: they may do nothing.

    Raises:
        UserError: several rows or columns were named, one that cannot answer a question of the user's, or a flag that
            does nothing.
    """
    check_live(config, flag)
    brings_passages = config.datasets is None and bool(config.corpus or config.retriever == "http")
    if brings_passages:
        for name in ("data_path", *OF_THE_WORLD, "world_seed"):
            if getattr(config, name) is not None:
                raise UserError(f"{flag_name(name)} does nothing with passages of your own; leave it out")
    passages = None if brings_passages else config.corpus
    plan = plan_evaluation(replace(config, train=False, corpus=passages), unasked)
    if len(plan.rows) > 1 or len(plan.columns) > 1:
        raise UserError(f"{flag} answers with one method, one run and one corpus; name one of each")
    (row,), (column,) = plan.rows, plan.columns
    if row.settings.retrieval.retriever == "oracle":
        raise UserError(f"{flag} needs a retriever that does not know the answer's passages; leave out oracle")
    if not brings_passages:
        return row, column
    if config.corpus and row.settings.retrieval.retriever == "http" and not config.retriever:
        row = replace(row, settings=only_what_is_read(with_options(row.settings, retriever="auto")))
    searches = row.method in SEARCHING and row.settings.retrieval.retriever not in ("none", "empty")
    if config.corpus and (not searches or row.settings.retrieval.retriever == "http"):
        what = (
            f"--retriever {row.settings.retrieval.retriever}"
            if row.method in SEARCHING
            else f"{row.method}, without a search"
        )
        raise UserError(f"--corpus does nothing with {what}; leave it out")
    data = dict.fromkeys(column.data) | {"dataset": "jsonl", "corpus": config.corpus, "world_noise": 0, "seed": 0}
    return row, Column(config.corpus or row.settings.retrieval.retriever_url, data, "all")


def live_retriever(row: Row, settings: TrainConfig, column: Column) -> tuple[Retriever, tuple[str, ...]]:
    """The search engine of a row on its passages, and questions to begin with; of a data set no question is read.

    Raises:
        UserError: passages, a server or a package that is not there or not as it should be.
    """
    if row.method not in SEARCHING or settings.retrieval.retriever in ("none", "empty"):
        return EmptyRetriever(), ()
    if settings.data.dataset == "world":
        task = load_task(with_options(settings, eval_questions=N_EXAMPLES), column.split)
        return task.retriever, tuple(example.question for example in task.examples)
    engine = configured_engine(settings.retrieval)
    if engine.retriever == "http":
        return make_engine(engine, []), ()
    passages = load_corpus(settings.data.corpus, settings.data.dataset, settings.data.data_path, engine.terms)
    some = range(0, len(passages), -(-len(passages) // SAMPLED_TITLES) or 1)  # of millions, not all are read
    titles = [title for title in dict.fromkeys(passages[n].title for n in some) if title]
    n_examples = min(N_EXAMPLES, len(titles))
    examples = tuple(f"What is {titles[n * len(titles) // n_examples]}?" for n in range(n_examples))
    retriever = RandomRetriever(passages) if engine.retriever == "random" else make_engine(engine, passages)
    return retriever, examples


def about(config: EvalConfig, row: Row, settings: TrainConfig, column: Column) -> str:
    """What answers, with which method, and what it searches: `tiny, untrained, with search-r1; auto on world`."""
    trained = row.weights and (config.run or config.adapter)
    told = trained or settings.run.model + (", untrained," if row.method in TRAINED else "")
    told += f" with {short_name(settings.run.method) if is_own(settings.run.method) else row.method}"
    if row.method in SEARCHING:
        own = settings.data.corpus or settings.data.data_path or column.name
        searched = settings.retrieval.retriever_url if settings.retrieval.retriever == "http" else own
        told += f"; {described(configured_engine(settings.retrieval))} on {searched}"
    if settings.run.model == "tiny":
        told += "; this model of one million parameters knows the words of its made-up world and no others"
    return told


def answer_live(config: EvalConfig, flag: str, unasked: Collection[str] = ()) -> None:
    """Answers --ask in the terminal, colored by who wrote what; or questions as they come, with --chat or --web.

    Args:
        unasked: as `plan_live` takes them.

    Raises:
        UserError: the question is blank, the flags do not fit, or anything else that the user can fix.
    """
    row, column = plan_live(config, flag, unasked)
    if config.ask is not None and not is_text(config.ask):
        raise UserError("--ask is blank or broken Unicode; ask a question in UTF-8")
    listener = listen(config.host or LOOPBACK[0], config.port or web.PORT) if config.web else None
    settings = cell_settings(config, row, column)
    check_models(config, [settings])
    retriever, examples = live_retriever(row, settings, column)
    policy = load(config, settings, settings.run.model, row.weights)
    how = method_for(policy, settings), rollout_limits(settings), config.temperature, config.seed
    chat = Chat(policy, retriever, *how, about(config, row, settings, column), examples)
    color = config.color == "always" or (config.color == "auto" and shows_color())
    status.now("answering" if config.ask else None)
    if config.ask:
        Screen(chat, color, shows_prompt=True).answer(config.ask)
    elif config.chat:
        chat_in_terminal(chat, color)
    else:
        web.serve(chat, config.host, listener)
