"""Questions and passages: HotpotQA, the paper's training set, the FlashRAG sets, and local files, on one form each.

Data sets are read as parquet or json lines; loading scripts are an error in `datasets` 4 and later. docs/data.md lists
fields and licences.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from searchr1_mini.errors import UserError
from searchr1_mini.retrieval import Passage, cache_dir, kept_at, split_contents

Split = Literal["train", "eval"]
FLASHRAG = {  # data set -> its training and evaluation files; None: it has none
    "nq": ("train", "test"),
    "triviaqa": ("train", "test"),
    "popqa": (None, "test"),
    "2wikimultihopqa": ("train", "dev"),
    "musique": ("train", "dev"),
    "bamboogle": (None, "test"),
}
HOTPOTQA_ID, NQ_HOTPOTQA_ID, FLASHRAG_ID = (
    "hotpotqa/hotpot_qa",
    "PeterJinGo/nq_hotpotqa_train",
    "RUC-NLPIR/FlashRAG_datasets",
)
CORPUS_RECIPE = "union of paragraphs 1"
MOST_HELD_OUT = 500


@dataclass(frozen=True)
class Example:
    """A question with its gold answers.

    Attributes:
        id: unique over all data sets, as `hotpotqa/5a7a06935542990198eaf050`.
        source: what results are reported by, as `hotpotqa` or `world-2hop`.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    source: str


def load_examples(dataset: str, data_path: str | None, split: Split, limit: int | None = None) -> list[Example]:
    """The questions of one split, in a fixed order; `limit` takes the first of them.

    A local file serves both splits: a tenth of it (at most 500, chosen by a hash of the ids) is held out.

    Raises:
        UserError: no such data set or file, a malformed row, no questions, or no network.
    """
    if data_path:
        rows = [_example(dataset, row, where) for row, where in read_rows(Path(data_path))]
        examples = _own_split(_unique(rows), split)
    else:
        examples = _unique([_example(dataset, row, where) for row, where in _hub_rows(dataset, split)])
    if not examples:
        raise UserError(f"{data_path or dataset} holds no questions for the {split} split")
    return examples[:limit]


def load_corpus(corpus: str | None, dataset: str, data_path: str | None) -> list[Passage]:
    """The passages of a file (`--corpus`), or the union of the paragraphs that come with HotpotQA.

    Raises:
        UserError: the data set brings no passages, or as `load_examples`.
    """
    if corpus:
        passages = _distinct(_passage(row, where) for row, where in read_rows(Path(corpus)))
    elif dataset != "hotpotqa":
        raise UserError(
            f"data set {dataset} brings no passages; name a jsonl file with --corpus, or use --retriever http"
        )
    elif data_path:
        passages = _distinct(_hotpotqa_passages(read_rows(Path(data_path))))
    else:
        passages = _hotpotqa_corpus()
    if not passages:
        raise UserError(f"the corpus {corpus or data_path or dataset} is empty")
    return passages


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a .json list, .jsonl, .jsonl.gz or .parquet file, each with where it stands, for messages.

    Raises:
        UserError: there is no such file, it cannot be read, or a line is no JSON object.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    where = str(path)
    try:
        for where, row in _placed_rows(path):
            row = json.loads(row.decode("utf-8-sig")) if isinstance(row, bytes) else row
            if not isinstance(row, dict):
                raise UserError(f"{where}: not a JSON object")
            yield row, where
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def _placed_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and the row; a line is left as bytes, so that its own number is told if it is no UTF-8."""
    if path.suffix == ".parquet":
        import datasets

        rows = datasets.Dataset.from_parquet(str(path))
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
    elif path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(rows, list):
            raise UserError(f"{path}: not a JSON list of rows; for one object a line name the file .jsonl")
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield from ((f"{path}, line {number}", line) for number, line in enumerate(file, start=1) if line.strip())


def _hub_rows(dataset: str, split: Split) -> Iterator[tuple[dict[str, Any], str]]:
    if dataset == "hotpotqa":
        return _from_hub(HOTPOTQA_ID, "train" if split == "train" else "validation", name="distractor")
    if dataset == "nq_hotpotqa":
        return _from_hub(NQ_HOTPOTQA_ID, "train" if split == "train" else "test")
    if dataset in FLASHRAG:
        file = FLASHRAG[dataset][split == "eval"]
        if file is None:
            raise UserError(f"data set {dataset} is for evaluation only; train on hotpotqa, nq_hotpotqa or nq")
        return _from_hub(FLASHRAG_ID, "train", data_files=f"{dataset}/{file}.jsonl")
    raise UserError(f"data set {dataset} is read from a file; name it with --data-path")


def _from_hub(hub_id: str, split: str, **arguments: Any) -> Iterator[tuple[dict[str, Any], str]]:
    import datasets

    try:
        rows = datasets.load_dataset(hub_id, split=split, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"cannot load data set {hub_id} from the hub ({' '.join(str(error).split())[:150]}); check the network, or "
            "name local files with --data-path (and --corpus)"
        ) from error
    return ((row, f"{hub_id}, row {number}") for number, row in enumerate(rows, start=1))


def _example(dataset: str, row: dict[str, Any], where: str) -> Example:
    """One row of any known form: HotpotQA, FlashRAG, the paper's parquet, or plain question and answers."""
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f'{where}: no "question"; each row needs "question" and "answer" or "golden_answers"')
    answers = row.get("golden_answers", row.get("answer"))
    if answers is None:
        answers = _ground_truth(row.get("reward_model"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise UserError(f'{where}: no usable "answer" (text) or "golden_answers" (a list of texts)')
    source = row.get("data_source") or dataset
    if not isinstance(source, str):
        raise UserError(f'{where}: "data_source" is {source!r}; it must be a text such as "nq"')
    id_ = row.get("id") or row.get("_id") or hashlib.sha256(question.encode()).hexdigest()[:16]
    return Example(f"{source}/{id_}", question, tuple(answers), source)


def _ground_truth(reward_model: Any) -> Any:
    """The gold answers of the paper's parquet, {"ground_truth": {"target": [..]}}; None if it is of another form."""
    ground_truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    return ground_truth.get("target") if isinstance(ground_truth, dict) else None


def _unique(examples: list[Example]) -> list[Example]:
    """Examples with ids of their own: a repeated id gets a number, since groups are keyed by it."""
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


def _own_split(examples: list[Example], split: Split) -> list[Example]:
    """A stable tenth is held out: chosen by a hash of the question, so equal questions stay on one side."""
    if len(examples) < 2:
        return examples

    def key(example: Example) -> str:
        return hashlib.sha256(example.question.encode()).hexdigest()

    n_held_out = min(max(len(examples) // 10, 1), MOST_HELD_OUT)
    border = sorted(map(key, examples))[n_held_out - 1]
    return [example for example in examples if (key(example) <= border) == (split == "eval")]


def _passage(row: dict[str, Any], where: str) -> Passage:
    id_ = row.get("id")
    if id_ is None:
        raise UserError(f'{where}: no "id"; each line needs "id" and "contents" (or "title" and "text")')
    if isinstance(row.get("contents"), str):
        title, text = split_contents(row["contents"])
    elif isinstance(row.get("title"), str) and isinstance(row.get("text"), str):
        title, text = row["title"].strip(), row["text"].strip()
    else:
        raise UserError(f'{where}: no "contents"; each line needs "id" and "contents" (or "title" and "text")')
    return Passage(str(id_), title, text)


def _hotpotqa_passages(rows: Iterable[tuple[dict[str, Any], str]]) -> Iterator[Passage]:
    """Paragraphs of HotpotQA rows, in the original form [[title, [sentences]], ..] or the hub's {title, sentences}."""
    for row, where in rows:
        context = row.get("context")
        try:
            if isinstance(context, dict):
                context = list(zip(context["title"], context["sentences"], strict=True))
            paragraphs = [(str(title), "".join(sentences).strip()) for title, sentences in context]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'{where}: "context" is not a list of [title, [sentences]]; name the passages with --corpus'
            ) from error
        yield from (Passage("", title, text) for title, text in paragraphs)


def _distinct(passages: Iterable[Passage]) -> list[Passage]:
    """Passages without repeats of (title, text), in order; those without an id get their number."""
    unique: dict[tuple[str, str], Passage] = {}
    for passage in passages:
        unique.setdefault((passage.title, passage.text), passage)
    return [p if p.id else Passage(str(number), p.title, p.text) for number, p in enumerate(unique.values())]


def _hotpotqa_corpus() -> list[Passage]:
    """About half a million paragraphs: those of both splits, built once and kept in the cache folder."""
    recipe = hashlib.sha256(f"{HOTPOTQA_ID} distractor {CORPUS_RECIPE}".encode()).hexdigest()[:16]
    path = cache_dir() / "corpora" / f"hotpotqa-{recipe}.jsonl"
    if path.is_file():
        return [Passage(**row) for row, _ in read_rows(path)]
    rows = (row for split in ("train", "eval") for row in _hub_rows("hotpotqa", split))
    passages = _distinct(_hotpotqa_passages(rows))
    with kept_at(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(vars(passage)) + "\n" for passage in passages)
    return passages
