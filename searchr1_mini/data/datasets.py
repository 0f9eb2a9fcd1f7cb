"""Questions and passages: HotpotQA, the paper's training set, the FlashRAG sets and local files, read into one form.

Data sets are read as parquet or json lines; loading scripts are an error in `datasets` 4 and later. docs/data.md lists
fields and licenses.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.core.prompts import normalize_question
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data import names
from searchr1_mini.data.answers import golden_answers, is_unanswerable
from searchr1_mini.data.corpus import context_passages, corpus_files, distinct, parse_passage, passages_in, read_rows
from searchr1_mini.data.names import BRING_PASSAGES
from searchr1_mini.data.notes import tell
from searchr1_mini.data.rows import QUESTION_FIELDS, held_in, is_text, question_files
from searchr1_mini.data.squad import is_squad, row_article, row_support
from searchr1_mini.retrievers.index import open_store
from searchr1_mini.retrievers.terms import DEFAULT_TERMS, Terms
from searchr1_mini.storage.cache import cache_dir, kept_at
from searchr1_mini.storage.hub import ask_hub_first
from searchr1_mini.storage.printable import one_line

Split = Literal["train", "eval", "selection", "all"]
FLASHRAG = {  # data set -> its training and evaluation files; None: it has none
    "nq": ("train", "test"),
    "triviaqa": ("train", "test"),
    "popqa": (None, "test"),
    "2wikimultihopqa": ("train", "dev"),
    "musique": ("train", "dev"),
    "bamboogle": (None, "test"),
}
ROW_DATASETS = [name for name in names.DATASETS if name != "world"]  # the world is made, these are read
HOTPOTQA_ID, NQ_HOTPOTQA_ID = "hotpotqa/hotpot_qa", "PeterJinGo/nq_hotpotqa_train"
SQUAD_ID = "rajpurkar/squad"
FLASHRAG_ID = "RUC-NLPIR/FlashRAG_datasets"
REVISIONS = {  # commits on the hub: a run of today and one of next year read the same rows
    HOTPOTQA_ID: "1908d6afbbead072334abe2965f91bd2709910ab",
    NQ_HOTPOTQA_ID: "b7d80abfee334a7a91cb377544f09180d58b34f6",
    SQUAD_ID: "7b6d24c440a36b6815f21b70d25016731768db1f",
    FLASHRAG_ID: "bcafb8dd07d453be3cbeeeb3f78be1841bddf92c",
}
CORPUS_RECIPE = "union of paragraphs 1"
MOST_HELD_OUT = 500
BIG_CORPUS = 64 * 2**20


def load_examples(
    dataset: str, data_path: str | None, split: Split, limit: int | None = None, without: Collection[str] = ()
) -> list[Example]:
    """Loads the questions of one split, in a fixed order; `limit` always takes the same of them, see `subset`.

    A local file serves both splits: a tenth of it (1 to 500, chosen by a hash of the questions) is held out. The split
    `all` is the whole of a local file, and of a data set on the hub its evaluation split. `selection` is of the
    evaluation split what a run is measured on as it trains: of a file's half at most, so that others are left by which
    its best checkpoint was not chosen.

    Args:
        without: keys of questions to leave out (`question_key`); with a limit, others take their places.

    Raises:
        UserError: no such data set or file, a malformed row, no questions, or no network.
    """
    _check_known(dataset)
    if data_path:
        examples, articles = file_examples(dataset, data_path)
        if split != "all":
            refuse_without_articles(data_path, articles)
            examples = own_split(examples, split, articles)
        if not examples and len(set(articles)) == 1:
            raise UserError(
                f"{data_path} is one article, and --dataset squad holds out whole articles; take --dataset jsonl, "
                "which holds out questions"
            )
        if split == "selection":
            limit = min(limit or len(examples), -(-len(examples) // 2))
    else:
        examples = _unique([_example(dataset, row, where) for row, where in _hub_rows(dataset, split)])
    if not examples:
        raise UserError(
            f"{data_path or dataset} holds no questions for the {split} split; the two splits together need at least "
            "two different questions"
        )
    left = [example for example in examples if question_key(example) not in without]
    if not left:
        raise UserError(
            f"every held-out question of {data_path or dataset} helped to choose the checkpoint, or was trained on; "
            "leave out --checkpoint best, or name other questions with --datasets"
        )
    return subset(left, limit)


def file_examples(dataset: str, data_path: str) -> tuple[list[Example], list[str]]:
    """Reads every question of a local file or folder.

    Returns:
        The questions, and with `squad` the article that each is about, "" where its row names none; else nothing.

    Raises:
        UserError: no such file, or a malformed row.
    """
    name = Path(data_path).name.split(".")[0] or "questions" if dataset == "jsonl" else dataset
    rows = (row for file in question_files(Path(data_path)) for row in answerable(file))
    read = [(_example(name, row, where), row_article(row)) for row, where in rows]
    examples = _unique(example for example, _ in read)
    if dataset != "squad":
        return examples, []
    return examples, [article or _paragraph(example) for example, article in read]


def refuse_without_articles(data_path: str, articles: Sequence[str]) -> None:
    """Refuses to hold out articles where not every question has one, rather than holding out questions.

    Raises:
        UserError: says what a row lacks.
    """
    if n := sum(not article for article in articles):
        raise UserError(
            f'{data_path}: {n} of its questions name no article, as their "title", "passage_id" or "context" would, '
            "and --dataset squad holds out whole articles; take --dataset jsonl, which holds out questions"
        )


def subset(examples: list[Example], limit: int | None) -> list[Example]:
    """Takes `limit` questions by a hash of their text: the same in any order; a higher limit only adds to them."""
    if limit is None or limit >= len(examples):
        return examples
    border = sorted((_hash(example), index) for index, example in enumerate(examples))[limit - 1]
    return [example for index, example in enumerate(examples) if (_hash(example), index) <= border]


def question_key(example: Example) -> str:
    """Hashes a question as a prompt shows it, whatever its case."""
    return _digest(normalize_question(example.question).casefold())[:16]


def _hash(example: Example) -> str:
    return _digest(example.question)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_corpus(
    corpus: str | None, dataset: str, data_path: str | None, terms: Terms = DEFAULT_TERMS
) -> Sequence[Passage]:
    """Loads the passages of a file or folder (`--corpus`), or the paragraphs in `data_path`, of HotpotQA or of SQuAD.

    Files of more than `BIG_CORPUS` bytes become a store on disk, indexed by `terms`, and are not held in memory.

    Raises:
        UserError: the data set brings no passages, or as `load_examples`.
    """
    _check_known(dataset)
    name = corpus or (dataset if not data_path else None)
    if name in BRING_PASSAGES:
        passages = _hub_corpus(name)
    elif corpus:
        folder = Path(corpus) if Path(corpus).is_dir() else None
        files, skipped = corpus_files(Path(corpus))
        parsed = passages_in(files, folder, skipped)
        is_big = sum(file.stat().st_size for file in files if file.is_file()) > BIG_CORPUS
        passages = open_store(files, parsed, terms, folder) if is_big else distinct(parsed)
        if folder is not None and not passages:
            reasons = ", ".join(f"{file.name}: {why}" for file, why in skipped[:5])
            raise UserError(one_line(f"the corpus {folder} is empty; skipped {len(skipped)}: {reasons}"))
        if folder is not None:
            tell(folder, len(passages), len(files) - len({file for file, _ in skipped} & set(files)), skipped)
    elif not data_path:
        raise UserError(
            f"data set {dataset} brings no passages; name a jsonl file or folder with --corpus, take --corpus hotpotqa "
            "(half a million paragraphs), or use --retriever http"
        )
    else:
        rows = (row for file in question_files(Path(data_path)) for row in read_rows(file))
        passages = distinct(context_passages(rows))
    if not passages:
        raise UserError(f"the corpus {corpus or data_path or dataset} is empty; each line needs one passage")
    return passages


def _check_known(dataset: str) -> None:
    if dataset not in ROW_DATASETS:
        raise UserError(
            f"unknown data set {dataset!r}{suggest(dataset, ROW_DATASETS)}; known: {', '.join(ROW_DATASETS)}"
        )


def _hub_rows(dataset: str, split: Split) -> Iterator[tuple[dict[str, Any], str]]:
    if dataset == "hotpotqa":
        return _from_hub(HOTPOTQA_ID, "train" if split == "train" else "validation", name="distractor")
    if dataset == "squad":
        return _from_hub(SQUAD_ID, "train" if split == "train" else "validation")
    if dataset == "nq_hotpotqa":
        return _from_hub(NQ_HOTPOTQA_ID, "train" if split == "train" else "test")
    if dataset in FLASHRAG:
        file = FLASHRAG[dataset][split != "train"]
        if file is None:
            raise UserError(f"data set {dataset} is for evaluation only; train on hotpotqa, nq_hotpotqa or nq")
        return _from_hub(FLASHRAG_ID, "train", data_files=f"{dataset}/{file}.jsonl")
    raise UserError(f"data set {dataset} is read from a file; name it with --data-path")


def _from_hub(hub_id: str, split: str, **arguments: Any) -> Iterator[tuple[dict[str, Any], str]]:
    ask_hub_first(hub_id)
    import datasets

    try:
        rows = datasets.load_dataset(hub_id, split=split, revision=REVISIONS[hub_id], **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"cannot load data set {hub_id} at revision {REVISIONS[hub_id]} from the hub "
            f"({' '.join(str(error).split())[:150]}); check the network, or name local files with --data-path (and "
            "--corpus)"
        ) from error
    return ((row, f"{hub_id}, row {number}") for number, row in enumerate(rows, start=1))


def _example(dataset: str, row: dict[str, Any], where: str) -> Example:
    """One row of any known form: HotpotQA, FlashRAG, the paper's parquet, or plain question and answers."""
    question = next((row[name] for name in QUESTION_FIELDS if is_text(row.get(name))), None)
    if question is None:
        raise UserError(
            f'{where}: no usable "question"; each row needs "question" and "answer" or "golden_answers"{_held(row)}'
        )
    try:
        answers, why = golden_answers(row), ""
    except ValueError as error:
        answers, why = (), f": {error}"
    if not answers:
        raise UserError(f'{where}: no usable "answer" (text) or "golden_answers" (a list of texts){why}{_held(row)}')
    source = row.get("data_source") or dataset
    if not is_text(source):
        raise UserError(f'{where}: "data_source" is {source!r}; it must be a text such as "nq"')
    ids = (row[name] for name in ("id", "_id") if row.get(name) not in (None, ""))
    id_ = next(ids, hashlib.sha256(question.encode()).hexdigest()[:16])
    if not is_text(str(id_)):
        raise UserError(f'{where}: "id" is blank or broken Unicode; fix the row or leave the field out')
    return Example(f"{source}/{id_}", question, answers, source, _supporting(row, where))


def answerable(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Reads a file's rows without those that are marked as questions without an answer (SQuAD 2.0, MuSiQue-Full)."""
    n_left_out = 0
    for row, where in read_rows(file):
        if is_unanswerable(row):
            n_left_out += 1
        else:
            yield row, where
    if n_left_out:
        _tell_left_out(file, n_left_out)


@cache
def _tell_left_out(file: Path, n_left_out: int) -> None:
    """Prints it once, though each split reads the file."""
    print(f"{file}: {n_left_out} questions without an answer are left out", file=sys.stderr, flush=True)


def _held(row: dict[str, Any]) -> str:
    return "; this one holds " + (one_line(", ".join(map(str, row)))[:200] or "nothing")


def _supporting(row: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    """Supporting titles, from HotpotQA's `supporting_facts` in either form or MuSiQue's `paragraphs`; () for none."""
    if is_squad(row):
        return row_support(row) if is_text(row["context"]) else ()
    facts, paragraphs = held_in(row, "supporting_facts"), held_in(row, "paragraphs") or []
    try:
        if facts:
            titles = facts["title"] if isinstance(facts, dict) else [title for title, _ in facts]
        else:
            titles = [paragraph["title"] for paragraph in paragraphs if paragraph.get("is_supporting")]
        if not all(isinstance(title, str) for title in titles):
            raise TypeError("a title is no text")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f'{where}: "supporting_facts" is not a list of [title, sentence], nor "paragraphs" one of {{"title", '
            f'"is_supporting"}} ({error}); fix the row or leave the field out'
        ) from error
    return tuple((title, "") for title in dict.fromkeys(titles))


def _unique(examples: Iterable[Example]) -> list[Example]:
    """Examples with ids of their own: a repeated id gets a number, since groups are keyed by it."""
    examples = list(examples)
    taken = {example.id for example in examples}
    seen: dict[str, int] = {}
    out = []
    for example in examples:
        number = seen[example.id] = seen.get(example.id, 0) + 1
        new_id = example.id
        while number > 1 and new_id in taken:  # "a#2" may be an id of the file itself
            new_id, number = f"{example.id}#{number}", number + 1
        taken.add(new_id)
        out.append(replace(example, id=new_id))
    return out


def own_split(examples: list[Example], split: Split, articles: Sequence[str] = ()) -> list[Example]:
    """Holds out a stable tenth, chosen by a hash of the question, so equal questions stay on one side.

    `articles`: that of each question; they are held out whole, by a hash of their titles, so that no paragraph is both
    trained and evaluated on; the tenth is then as near as articles allow, and at least one of two.
    """
    if not examples:
        return []
    n_held_out = min(max(len(examples) // 10, 1), MOST_HELD_OUT)
    named = zip(examples, articles or [""] * len(examples), strict=True)
    keys = [_digest(article) if article else _hash(example) for example, article in named]
    border = sorted(keys)[n_held_out - 1]
    held_out = [example for example, key in zip(examples, keys, strict=True) if key <= border]
    if split != "train":
        return held_out
    asked = set(map(question_key, held_out))  # in other letters or without its question mark it is the same question
    left = [example for example, key in zip(examples, keys, strict=True) if key > border]
    return [example for example in left if question_key(example) not in asked]


def _paragraph(example: Example) -> str:
    """Names a question's paragraph, which without a title is an article of its own."""
    return next(filter(None, example.supporting[0]), "") if example.supporting else ""


def _hub_corpus(dataset: str) -> list[Passage]:
    """The paragraphs of both splits of a data set on the hub without repeats, built once and kept in the cache."""
    hub_id = {"hotpotqa": HOTPOTQA_ID, "squad": SQUAD_ID}[dataset]
    recipe = f"{hub_id} {REVISIONS[hub_id]} {'distractor ' if dataset == 'hotpotqa' else ''}{CORPUS_RECIPE}"
    path = cache_dir() / "corpora" / f"{dataset}-{_digest(recipe)[:16]}.jsonl"
    if path.is_file():
        return [parse_passage(*row) for row in read_rows(path)]
    rows = (row for split in ("train", "eval") for row in _hub_rows(dataset, split))
    passages = distinct(context_passages(rows))
    with kept_at(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(vars(passage)) + "\n" for passage in passages)
    return passages
