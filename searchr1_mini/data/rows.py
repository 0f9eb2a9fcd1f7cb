"""Rows of local files: JSON as lines or as one list, tables with a header, parquet; each with where it stands."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.spelled import spelled
from searchr1_mini.storage.printable import one_line

QUESTION_FIELDS = ("question", "query", "input")
ANSWER_FIELDS = (
    *("golden_answers", "answer", "answers", "possible_answers", "gold_answers", "target", "targets"),
    "reward_model",
)
_OTHER_FIELDS = (
    "answer_aliases id _id data_source supporting_facts metadata paragraphs context "
    "contents title wikipedia_title text turns segments answerable is_impossible passage_id"
)
STRUCTURED = ("context", "supporting_facts", "paragraphs", "metadata")
# nothing else is read of a row, and of parquet nothing else is loaded
READ_FIELDS = frozenset([*QUESTION_FIELDS, *ANSWER_FIELDS, *_OTHER_FIELDS.split()])
FORMS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # and, parquet aside, the same with .gz
ACCEPTED = (
    "questions are read from .jsonl (one object per line), .json (a list of objects, or one object per line), .csv and "
    ".tsv (the first line names the columns), all of them also as .gz, and from .parquet"
)
MOST_ROW = 2**26  # bytes of a line
BLOCK = 2**16  # bytes that are looked at for how a file begins
MOST_LIST = 2**30  # bytes of a file that is one JSON list, which is read as a whole; HotpotQA's is 566 MB
DAMAGE = (OSError, EOFError, zlib.error)  # what reading a damaged or cut file raises

_HALF_A_PAIR = re.compile(r"[\ud800-\udfff]")  # JSON can hold a lone surrogate; no tokenizer can encode it
# words of a file's path that say what its questions are for
_TRAINING = re.compile(r"(?<!s)train")  # and no constraint
_EVALUATION = re.compile(  # and no contest, latest, device, retrieval
    r"(?<!con)(?<!la)(?<!grea)test|(?<![a-z])dev(?!ice|elop)|valid|(?<!ri)(?<!di)eval|(?<![a-z])val(?![a-z])"
)


def is_text(value: Any) -> bool:
    """Tells whether it is a text that is not blank and that UTF-8 can hold."""
    return isinstance(value, str) and bool(value.strip()) and is_whole(value)


def is_whole(text: str) -> bool:
    """Tells whether it is a text without halves of surrogate pairs."""
    return text.isascii() or not _HALF_A_PAIR.search(text)


def file_format(path: Path) -> str:
    """Returns a file's form, `.jsonl` for `a.jsonl.gz` and `B.JSONL`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_question_file(name: str) -> bool:
    """Tells whether a name, as of `--dataset`, is that of a file of questions, by its ending."""
    return file_format(Path(name)) in FORMS


def question_files(path: Path) -> list[Path]:
    """Lists the file itself, or those of a folder, of the first of the known forms that it holds.

    Raises:
        UserError: the folder holds none, or those of several splits.
    """
    if not path.is_dir():
        return [path]
    there = [file for file in sorted(path.rglob("*")) if not _is_hidden(file.relative_to(path)) and file.is_file()]
    visible = [file for file in there if ".rejected." not in file.name]  # of make-questions
    files = next((found for form in FORMS if (found := [file for file in visible if file_format(file) == form])), [])
    if not files:
        raise UserError(f"the folder {path} holds no file of questions; {ACCEPTED}")
    held = [[f for f in files if part.search(str(f.relative_to(path)).lower())] for part in (_TRAINING, _EVALUATION)]
    if all(held) and held[0] != held[1]:
        raise UserError(
            f"the folder {path} holds questions to train on ({held[0][0].relative_to(path)}) and others to "
            f"evaluate on ({held[1][0].relative_to(path)}); name one of the files, or of the folders"
        )
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def in_form(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row with its field names in lower case, and lists and objects in place of text that spells them.

    Where two names differ in case alone, the one in lower case counts.
    """
    exact = {name: value for name, value in row.items() if name in READ_FIELDS}
    row = {name.strip().lower(): value for name, value in row.items()} | exact
    texts = {name: row[name] for name in STRUCTURED if isinstance(row.get(name), str)}
    found = {name: spelled(text, MOST_ROW) for name, text in texts.items()}
    return row | {name: value for name, value in found.items() if value is not None}


def held_in(row: dict[str, Any], name: str) -> Any:
    """Returns what a field holds, of the row itself or, if nothing, of its `metadata`, where FlashRAG keeps it."""
    holders = [part for part in (row, row.get("metadata")) if isinstance(part, dict)]
    return next((part[name] for part in holders if part.get(name)), row.get(name))


def table_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads rows of any of the forms with where each stands; a JSON line as bytes, so that bad UTF-8 is told.

    Raises:
        UserError: it is of another form, damaged, or a line is longer than `MOST_ROW`.
    """
    form = file_format(path)
    if form == ".parquet":
        yield from _parquet(path)
    elif form in (".csv", ".tsv"):
        yield from _delimited(path, form)
    elif _starts_a_list(path) or (form == ".json" and not _holds_lines(path)):
        yield from _list(path)
    else:
        with _opened(path) as file:
            yield from ((f"{path}, line {number}", line) for number, line in _numbered(file, path) if line.strip())


def _opened(path: Path) -> Any:
    return (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb")


def _starts_a_list(path: Path) -> bool:
    """Whether the first character that is no blank opens a JSON list, which may be one line of any length."""
    try:
        with _opened(path) as file:
            while block := file.read(BLOCK):
                if start := block.lstrip(b"\xef\xbb\xbf \t\r\n"):
                    return start.startswith(b"[")
    except DAMAGE:  # told with its line by the reading of lines that follows
        return False
    return False


def _holds_lines(path: Path) -> bool:
    """Tells whether a .json file holds one object per line, rather than one object that is all of it."""
    with _opened(path) as file:
        lines = (line for _, line in _numbered(file, path, most=MOST_LIST) if line.strip())
        first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
        if len(first) > MOST_ROW:
            return False
        try:
            row = json.loads(first)
        except (ValueError, RecursionError):
            return False
        return isinstance(row, dict) and (bool(READ_FIELDS & {*map(str.lower, row)}) or next(lines, None) is not None)


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    with _opened(path) as file:
        is_long = path.stat().st_size > MOST_LIST
        content = b"" if is_long else file.read(MOST_LIST + 1)
    if is_long or len(content) > MOST_LIST:
        raise UserError(f"{path}: more than {MOST_LIST >> 20} MB in one JSON list; write one object per line (.jsonl)")
    rows = json.loads(content.decode("utf-8-sig"))
    if isinstance(rows, dict) and _are_articles(rows.get("data")):  # SQuAD's own files
        try:
            rows = list(_of_articles(rows["data"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not in SQuAD's form, articles of paragraphs of questions ({error!r})") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: neither a JSON list of rows nor one object per line; {ACCEPTED}")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _are_articles(data: Any) -> bool:
    """Whether it is what SQuAD's own files hold: a list of articles with paragraphs."""
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "paragraphs" in data[0]


def _of_articles(articles: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yields one row per question, in the hub's form, from the nested form of SQuAD's own files.

    Raises:
        KeyError, TypeError, AttributeError: it is of another form.
    """
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = {} if asked.get("is_impossible") else {"answers": asked["answers"]}
                parts = {name: asked.get(name) for name in ("id", "question", "is_impossible")} | answers
                yield {**parts, "title": article.get("title") or "", "context": paragraph["context"]}


def _delimited(path: Path, form: str) -> Iterator[tuple[str, Any]]:
    """Rows of a table by the names in its first line; cells that are empty are left out."""
    limit = csv.field_size_limit(MOST_ROW)
    try:
        with _opened(path) as file:
            place = f"{path}, line 1"
            lines = (line.decode("utf-8-sig" if number == 1 else "utf-8") for number, line in _numbered(file, path))
            first = next(lines, "")
            delimiter = "\t" if form == ".tsv" else max(",;\t", key=first.count)
            reader = csv.reader((line for part in ([first], lines) for line in part), delimiter=delimiter, strict=True)
            names: list[str] = []
            for cells in reader:
                place = f"{path}, line {reader.line_num}"
                if not names:
                    names = [cell.strip() for cell in cells]
                    if twice := [name for name in names if name and names.count(name) > 1]:
                        raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one")
                    if not READ_FIELDS & {name.lower() for name in names}:
                        raise UserError(f"{path}: its first line must name the columns, as in question,answer")
                elif len(cells) > len(names):
                    raise UserError(
                        f"{place}: {len(cells)} cells under {len(names)} columns; put a cell that holds "
                        f"{delimiter!r} in double quotes"
                    )
                elif any(map(str.strip, cells)):
                    yield place, {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read: {one_line(str(error))[:200]}; save it as CSV in UTF-8") from error
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows with the columns that are read, since others may hold what Python cannot, as dates out of its range."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        file = ParquetFile(path)
        names = file.schema_arrow.names
        known = [name for name in names if name.lower() in READ_FIELDS]
        if not known:
            raise UserError(f"{path}: none of its columns ({', '.join(names)[:200]}) is one that is read; {ACCEPTED}")
        for batch in file.iter_batches(columns=known):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pa.ArrowException, ValueError, OverflowError) as error:
        where = f"{path}, after row {number}" if number else str(path)
        raise UserError(
            f"{where}: cannot be read: {one_line(str(error))[:200]}; fix it, or write questions and answers as text"
        ) from error


def _numbered(file: BinaryIO, path: Path, most: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1; what is wrong with the file itself is told by the last line before it.

    Raises:
        UserError: a line is longer than `most` bytes (`MOST_ROW`), or the file is damaged.
    """
    number, most = 0, most or MOST_ROW
    try:
        while line := file.readline(most + 1):
            number += 1
            if len(line) > most:
                raise UserError(f"{path}, line {number}: longer than {most >> 20} MB; write one row per line")
            yield number, line
    except DAMAGE as error:
        where = f"{path}, after line {number}" if number else str(path)
        raise UserError(
            f"{where}: cannot be read: {one_line(str(error))[:200]}; it is damaged or cut short: download it again"
        ) from error
