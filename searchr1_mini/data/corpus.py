"""Rows of local files, and the passages in them: the paper's corpus format, and HotpotQA's paragraphs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.notes import NOTES, Unread, note_files, note_rows
from searchr1_mini.data.rows import held_in, in_form, is_text, is_whole, table_rows
from searchr1_mini.data.squad import is_squad, row_paragraph
from searchr1_mini.retrievers.passages import split_contents
from searchr1_mini.storage.printable import one_line

CORPUS_FILES = ("*.jsonl", "*.jsonl.gz")


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields rows of a file of any form, or passages of a text, as `in_form`, each with where it stands, for messages.

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
            yield in_form(row), where
    except (ValueError, OSError, EOFError, RecursionError, Unread) as error:
        raise UserError(f"{where}: cannot be read: {one_line(str(error))[:200]}; fix it or leave it out") from error


def _placed_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() not in NOTES:
        return table_rows(path)
    return ((f"{path}, passage {number}", row) for number, row in enumerate(note_rows(path, path.name), start=1))


def corpus_files(path: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Lists the file itself, or a folder's corpus files by name, else its notes; and what else is in it.

    Returns:
        The files, and those of the folder that are skipped, each with a reason.

    Raises:
        UserError: the folder holds neither.
    """
    if not path.is_dir():
        return [path], []
    notes, skipped = note_files(path)
    files = sorted({file for pattern in CORPUS_FILES for file in path.glob(pattern) if file.is_file()})
    if files:
        others = [(file, f"beside {files[0].name}, which holds passages") for file in notes]
        return files, [*others, *((file, why) for file, why in skipped if file not in files)]
    if notes:
        return notes, skipped
    raise UserError(
        f"the folder {path} holds no {' or '.join(CORPUS_FILES)} (passages, one per line) and no text "
        f"({', '.join(NOTES)}), not even in the folders inside it"
        + (f"; skipped {one_line(skipped[0][0].name)} ({skipped[0][1]})" if skipped else "")
    )


def passages_in(files: Sequence[Path], folder: Path | None, skipped: list[tuple[Path, str]]) -> Iterator[Passage]:
    """Yields the passages of a corpus' files.

    Args:
        files: as `corpus_files` gives them.
        folder: that they lie in; None for a file by itself.
        skipped: takes notes of a folder that give no passages, with the reason; a file by itself is refused instead.

    Raises:
        UserError: as `read_rows` and `parse_passage`.
    """
    for file in files:
        if folder is None or file.suffix.lower() not in NOTES:
            yield from (parse_passage(*row) for row in read_rows(file))
            continue
        try:
            rows = list(note_rows(file, file.relative_to(folder).as_posix()))  # all of a note, or nothing of it
        except UnicodeDecodeError as error:
            rows, why = [], f"cannot be read: {one_line(str(error))[:100]}; save it in UTF-8"
        except (Unread, OSError) as error:
            rows, why = [], one_line(str(error))
        else:
            why = "" if rows else "empty"
        skipped += [(file, why)] if why else []
        yield from (parse_passage(row, f"{file}, passage {number}") for number, row in enumerate(rows, start=1))


def parse_passage(row: dict[str, Any], where: str) -> Passage:
    """Parses one passage of the form {"id", "contents"} (the paper's wiki-18), or {"id", "text"}, maybe with "title".

    BEIR's `_id` and KILT's `wikipedia_title`, with its text as a list of paragraphs, do as well.

    Raises:
        UserError: a field is missing, of another type, or blank; it names `where`.
    """
    needed = 'each line needs "id" and "contents" (or "title" and "text")'
    id_ = next((row[name] for name in ("id", "_id") if row.get(name) is not None), None)
    if id_ is None:
        raise UserError(f'{where}: no "id"; {needed}')
    if isinstance(row.get("contents"), str):
        title, text = split_contents(row["contents"])
    elif (text := _joined(row.get("text"))) is not None:
        title = next((row[name].strip() for name in ("title", "wikipedia_title") if isinstance(row.get(name), str)), "")
    else:
        raise UserError(f'{where}: no "contents"; {needed}')
    if not is_text(f"{title} {text}"):
        raise UserError(f'{where}: "contents" is blank or broken Unicode; {needed}')
    if not is_whole(id_ := str(id_)):
        raise UserError(f'{where}: "id" is broken Unicode; {needed}')
    return Passage(id_, title, text)


def _joined(text: Any) -> str | None:
    """A text, or the paragraphs of one; None of anything else."""
    if isinstance(text, list) and text and all(isinstance(part, str) for part in text):
        text = "\n".join(map(str.strip, text))
    return text.strip() if isinstance(text, str) else None


def context_passages(rows: Iterable[tuple[dict[str, Any], str]]) -> Iterator[Passage]:
    """Paragraphs of HotpotQA rows, in the original form [[title, [sentences]], ..] or the hub's {title, sentences}.

    2WikiMultihopQA calls the sentences `content`, MuSiQue has `paragraphs`, and FlashRAG keeps either under `metadata`.
    A context that is one text, as in SQuAD, is a paragraph.

    Raises:
        UserError: a row's context is of another form; it names where the row stands.
    """
    for row, where in rows:
        if is_squad(row):
            yield row_paragraph(row, where)
            continue
        context = held_in(row, "context")
        try:
            if isinstance(context, dict):
                sentences = context["sentences" if "sentences" in context else "content"]
                context = list(zip(context["title"], sentences, strict=True))
            elif context is None:
                context = [(part["title"], part["paragraph_text"]) for part in held_in(row, "paragraphs")]
            parts = [sentence for _, sentences in context for sentence in sentences[1:]]
            between = "" if any(sentence[:1].isspace() for sentence in parts) else " "  # 2WikiMultihopQA's bring none
            paragraphs = [
                (str(title), (sentences if isinstance(sentences, str) else between.join(sentences)).strip())
                for title, sentences in context
            ]
            if not all(is_text(" ".join(paragraph)) for paragraph in paragraphs):
                raise ValueError("blank or broken Unicode")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'{where}: "context" is not a list of [title, [sentences]], nor "paragraphs" one of {{"title", '
                '"paragraph_text"}; name the passages with --corpus'
            ) from error
        yield from (Passage("", title, text) for title, text in paragraphs)


def distinct(passages: Iterable[Passage]) -> list[Passage]:
    """Drops repeats of (title, text) from passages, in order; those without an id get their number."""
    unique: dict[tuple[str, str], Passage] = {}
    for passage in passages:
        unique.setdefault((passage.title, passage.text), passage)
    return [p if p.id else Passage(str(number), p.title, p.text) for number, p in enumerate(unique.values())]
