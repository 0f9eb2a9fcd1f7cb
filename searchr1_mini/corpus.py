"""Rows of local files, and the passages in them: the paper's corpus format, and HotpotQA's paragraphs."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from searchr1_mini.errors import UserError
from searchr1_mini.pages.printable import one_line
from searchr1_mini.retrieval import Passage, split_contents

CORPUS_FILES = ("*.jsonl", "*.jsonl.gz")
TEXT_FILES = ("*.txt", "*.md")
LEAST_WORDS, MOST_WORDS = 50, 150  # of a passage of a text: about 100, as in the paper's wiki-18
MOST_LINE = 10_000  # characters; a longer line is cut there

_HALF_A_PAIR = re.compile(r"[\ud800-\udfff]")  # JSON can hold a lone surrogate; no tokenizer can encode it


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a .json list, .jsonl, .jsonl.gz or .parquet file, each with where it stands, for messages.

    Raises:
        UserError: there is no such file, it cannot be read, or a line is no JSON object.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; --data-path names a file")
    if not path.is_file():
        raise UserError(f"there is no file {path}; check --data-path and --corpus")
    where = str(path)
    try:
        for where, row in _placed_rows(path):
            row = json.loads(row.decode("utf-8-sig")) if isinstance(row, bytes) else row
            if not isinstance(row, dict):
                raise UserError(f"{where}: not a JSON object")
            yield row, where
    except (ValueError, OSError, EOFError, RecursionError, zlib.error) as error:
        raise UserError(f"{where}: cannot be read: {one_line(str(error))[:200]}; mend it or leave it out") from error


def _placed_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and the row; a line is left as bytes, so that its own number is told if it is no UTF-8."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        rows = chain.from_iterable(batch.to_pylist() for batch in ParquetFile(path).iter_batches())
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
    elif path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(rows, list):
            raise UserError(f"{path}: not a JSON list of rows; for one object a line name the file .jsonl")
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
    elif path.suffix in (".txt", ".md"):
        for number, text in enumerate(text_passages(path), start=1):
            where = f"{path}, passage {number}"
            yield where, {"id": f"{path.name}#{number}", "title": path.stem, "text": text}
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield from ((f"{path}, line {number}", line) for number, line in _numbered(file, path) if line.strip())


def _numbered(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1; what is wrong with the file itself is told by the last line before it."""
    number = 0
    try:
        for line in file:
            number += 1
            yield number, line
    except (OSError, EOFError, zlib.error) as error:
        where = f"{path}, after line {number}" if number else str(path)
        raise UserError(
            f"{where}: cannot be read: {one_line(str(error))[:200]}; it is damaged or cut short: download it again"
        ) from error


def is_text(value: Any) -> bool:
    """A text that is not blank and that UTF-8 can hold."""
    return isinstance(value, str) and bool(value.strip()) and (value.isascii() or not _HALF_A_PAIR.search(value))


def corpus_files(path: Path) -> list[Path]:
    """The file itself, or a folder's corpus files by name, or where it has none its texts.

    Raises:
        UserError: the folder holds neither.
    """
    if not path.is_dir():
        return [path]
    for patterns in (CORPUS_FILES, TEXT_FILES):
        files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
        if files:
            return files
    raise UserError(
        f"the folder {path} holds no {' or '.join(CORPUS_FILES)} (passages, one a line), and no "
        f"{' or '.join(TEXT_FILES)} (texts); put them there, not into folders inside"
    )


def text_passages(path: Path) -> Iterator[str]:
    """A text in passages of 50 to 150 words: short paragraphs are joined, longer ones cut; the last may have fewer.

    Raises:
        UserError: the file holds JSON lines.
        UnicodeDecodeError: it is no UTF-8.
    """
    words: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), "")):
            if number == 0 and line.startswith('{"'):
                raise UserError(f"{path} holds JSON lines, not a text; name it .jsonl")
            is_blank = not line.strip()
            words += line.split()
            while len(words) > MOST_WORDS:
                yield " ".join(words[: MOST_WORDS - LEAST_WORDS])
                del words[: MOST_WORDS - LEAST_WORDS]
            if (is_blank and len(words) >= LEAST_WORDS) or sum(map(len, words)) >= MOST_LINE:
                yield " ".join(words)
                words = []
    if words:
        yield " ".join(words)


def parse_passage(row: dict[str, Any], where: str) -> Passage:
    """One passage from {"id", "contents"} (the paper's wiki-18) or {"id", "title", "text"}.

    Raises:
        UserError: a field is missing, of another type, or blank; it names `where`.
    """
    needed = 'each line needs "id" and "contents" (or "title" and "text")'
    if row.get("id") is None:
        raise UserError(f'{where}: no "id"; {needed}')
    if isinstance(row.get("contents"), str):
        title, text = split_contents(row["contents"])
    elif isinstance(row.get("title"), str) and isinstance(row.get("text"), str):
        title, text = row["title"].strip(), row["text"].strip()
    else:
        raise UserError(f'{where}: no "contents"; {needed}')
    if not is_text(f"{title} {text}"):
        raise UserError(f'{where}: "contents" is blank or broken Unicode; {needed}')
    if _HALF_A_PAIR.search(id_ := str(row["id"])):
        raise UserError(f'{where}: "id" is broken Unicode; {needed}')
    return Passage(id_, title, text)


def hotpotqa_passages(rows: Iterable[tuple[dict[str, Any], str]]) -> Iterator[Passage]:
    """Paragraphs of HotpotQA rows, in the original form [[title, [sentences]], ..] or the hub's {title, sentences}.

    Raises:
        UserError: a row's context is of another form; it names where the row stands.
    """
    for row, where in rows:
        context = row.get("context")
        try:
            if isinstance(context, dict):
                context = list(zip(context["title"], context["sentences"], strict=True))
            paragraphs = [(str(title), "".join(sentences).strip()) for title, sentences in context]
            if not all(is_text(" ".join(paragraph)) for paragraph in paragraphs):
                raise ValueError("blank or broken Unicode")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'{where}: "context" is not a list of [title, [sentences]]; name the passages with --corpus'
            ) from error
        yield from (Passage("", title, text) for title, text in paragraphs)


def distinct(passages: Iterable[Passage]) -> list[Passage]:
    """Passages without repeats of (title, text), in order; those without an id get their number."""
    unique: dict[tuple[str, str], Passage] = {}
    for passage in passages:
        unique.setdefault((passage.title, passage.text), passage)
    return [p if p.id else Passage(str(number), p.title, p.text) for number, p in enumerate(unique.values())]
