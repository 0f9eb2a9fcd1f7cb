"""A folder of notes: texts, Markdown, HTML and PDF; how each becomes passages, and what is skipped and why."""

from __future__ import annotations

import codecs
import importlib.util
import json
import logging
import os
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path

import regex

from searchr1_mini.storage.extras import require
from searchr1_mini.storage.printable import one_line

PLAIN, HTML, PDF = (".txt", ".md", ".markdown"), (".html", ".htm", ".xhtml"), (".pdf",)
NOTES = (*PLAIN, *HTML, *PDF)
LEAST_WORDS, MOST_WORDS = 50, 150  # of a passage of a text: about 100, as in the paper's wiki-18
MOST_LINE = 10_000  # characters; a longer line is cut there
MOST_PAGE = 2**26  # bytes of an HTML file
SHOWN = 5  # skipped files that are named

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_SENTENCE = regex.compile(r"[^。！？｡…]*[。！？｡…]+[”’」』）】]*|[^。！？｡…]+")
CHARACTERS_A_WORD = 2  # in scripts without blanks between words
MOST_PIECE = 100  # characters of such a script that are not parted
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset=["']?([\w.:-]{1,40})""", re.IGNORECASE)
_BLOCKS = frozenset(
    "address article aside blockquote body dd details div dl dt fieldset figcaption figure footer form "
    "h1 h2 h3 h4 h5 h6 header hr html li main nav ol p pre section summary table tbody thead title tr ul".split()
)


class Unread(Exception):
    """Why a file gives no passages, to be told beside its name."""


def note_files(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Lists the visible files of a folder, and of those inside, that may be notes, and the others with a reason.

    Links to folders are not followed: they may lead round in a circle.
    """
    files, skipped = [], []
    has_pypdf = importlib.util.find_spec("pypdf") is not None
    for where, inside, names in os.walk(folder):
        links = [name for name in inside if Path(where, name).is_symlink()]
        skipped += [(Path(where, name), "a link to a folder") for name in links if not name.startswith(".")]
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            if not path.is_file():
                skipped.append((path, "no file"))
            elif path.suffix.lower() not in NOTES:
                skipped.append((path, "not a form that is read"))
            elif path.suffix.lower() in PDF and not has_pypdf:
                skipped.append((path, 'needs `pip install -e ".[pdf]" -c constraints.txt`'))
            else:
                files.append(path)
    return sorted(files), sorted(skipped)


def summary(folder: Path, n_passages: int, n_files: int, skipped: list[tuple[Path, str]]) -> str:
    """Says in one line how many passages came from how many files, and what was skipped, and why."""
    told = f"{folder}: {n_passages} passage{'s' * (n_passages != 1)} from {n_files} file{'s' * (n_files != 1)}"
    if not skipped:
        return one_line(told)
    kinds = Counter((path.suffix.lower() or "others", why) for path, why in skipped)
    named = {(path.suffix.lower() or "others", why): path.name for path, why in reversed(skipped)}
    parts = [named[kind] if n == 1 else f"{n} {kind[0]}" for kind, n in kinds.most_common(SHOWN)]
    reasons = [f"{part} ({why})" for part, ((_, why), _) in zip(parts, kinds.most_common(SHOWN), strict=True)]
    more = ["and others"] * (len(kinds) > SHOWN)
    return one_line(f"{told}; skipped {len(skipped)}: {', '.join(reasons + more)}")


def tell(folder: Path, n_passages: int, n_files: int, skipped: list[tuple[Path, str]]) -> None:
    """Prints the summary on stderr, once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(summary(folder, n_passages, n_files, skipped), file=sys.stderr)


def note_rows(path: Path, name: str) -> Iterator[dict[str, str]]:
    """Cuts a note into rows of a corpus, numbered under its name; its title is the page's or the file's.

    Raises:
        Unread: it holds no text, is damaged or too large, or is locked by a password.
        UserError: it is a PDF and pypdf is not installed.
        UnicodeDecodeError: it is a text and no UTF-8.
    """
    form, title = path.suffix.lower(), path.stem
    if form in HTML:
        title, lines = html_lines(path)
    else:
        lines = pdf_lines(path) if form in PDF else text_lines(path)
    for number, text in enumerate(cut_passages(lines), start=1):
        yield {"id": f"{name}#{number}", "title": title or path.stem, "text": text}


def cut_passages(lines: Iterable[str]) -> Iterator[str]:
    """Yields passages of 50 to 150 words: short paragraphs are joined, longer ones cut; the last may have fewer.

    In scripts without blanks between words, two characters count as a word, and a cut falls behind a sentence where one
    ends.
    """
    pieces: list[tuple[str, int]] = []
    for line in lines:
        is_blank = not line.strip()
        pieces += _pieces(line)
        while (ends := list(accumulate(words for _, words in pieces))) and ends[-1] > MOST_WORDS:
            end = max(bisect_right(ends, MOST_WORDS - LEAST_WORDS), 1)
            yield _joined(pieces[:end])
            del pieces[:end]
        if (is_blank and ends and ends[-1] >= LEAST_WORDS) or sum(len(piece) for piece, _ in pieces) >= MOST_LINE:
            yield _joined(pieces)
            pieces = []
    if pieces:
        yield _joined(pieces)


def _pieces(line: str) -> list[tuple[str, int]]:
    """What a passage may end behind, with how many words it counts: words; in scripts without blanks, sentences."""
    pieces = []
    for word in line.split():
        if len(_UNSPACED.findall(word)) <= MOST_PIECE // 10:
            pieces.append((word + " ", 1))
            continue
        for sentence in _SENTENCE.findall(word):
            for start in range(0, len(sentence), MOST_PIECE):
                part = sentence[start : start + MOST_PIECE]
                pieces.append((part, max(len(_UNSPACED.findall(part)) // CHARACTERS_A_WORD, 1)))
        pieces[-1] = (pieces[-1][0] + " ", pieces[-1][1])
    return pieces


def _joined(pieces: list[tuple[str, int]]) -> str:
    return "".join(piece for piece, _ in pieces).strip()


def text_lines(path: Path) -> Iterator[str]:
    """Yields lines of a text in UTF-8, or in what its byte order mark says; longer ones than `MOST_LINE` in parts.

    Raises:
        Unread: it holds JSON lines, or NUL bytes.
        UnicodeDecodeError: it is in another encoding.
    """
    with path.open(encoding=_marked_encoding(path) or "utf-8-sig") as file:
        rest = ""  # of a word that a long line was cut in
        for number, part in enumerate(iter(lambda: file.readline(MOST_LINE), "")):
            if number == 0 and (_is_object(part) or (part.startswith('{"') and len(part) == MOST_LINE)):
                raise Unread("holds JSON lines, not a text; name it .jsonl, in a folder of its own")
            if "\0" in part:
                raise Unread("holds NUL bytes, as no text does; save it in UTF-8")
            line, rest = rest + part, ""
            if len(part) == MOST_LINE and not part.endswith("\n"):
                end = line.rfind(" ") + 1 or len(line)
                line, rest = line[:end], line[end:]
            yield line
        if rest:
            yield rest


def _is_object(line: str) -> bool:
    """Whether a line is an object of JSON, and no text that begins like one."""
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _marked_encoding(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(4)
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else None


def html_lines(path: Path) -> tuple[str, list[str]]:
    """Returns the title of an HTML page, "" if it has none, and its text, an empty line between paragraphs.

    Raises:
        Unread: it is larger than `MOST_PAGE`, or not in the encoding that it names (UTF-8 if it names none).
    """
    if path.stat().st_size > MOST_PAGE:
        raise Unread(f"larger than {MOST_PAGE >> 20} MB")
    content = path.read_bytes()
    named = _CHARSET.search(content[:4096])
    encoding = _marked_encoding(path) or (named[1].decode() if named else "utf-8-sig")
    try:
        if codecs.lookup(encoding).name in ("iso8859-1", "ascii"):  # which means this, in HTML
            text = content.decode("cp1252", "replace")
        else:
            text = content.decode("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
    except (LookupError, ValueError) as error:
        raise Unread(f"not in the encoding {encoding} ({one_line(str(error))[:80]}); save it in UTF-8") from error
    page = _Page()
    try:
        page.feed(text)
        page.close()
    except AssertionError as error:  # Python's own of an odd marked section
        raise Unread(f"damaged ({one_line(str(error))[:80]})") from error
    return " ".join("".join(page.title).split()), "".join(page.parts).splitlines()


class _Page(HTMLParser):
    """The text of a page without scripts and styles, and its title."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        self.within = ""
        self.n_titles = self.n_pictures = 0  # pictures that are open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Opens a paragraph, or what is left out of the text."""
        self.within = tag if tag in ("script", "style", "title") else ""
        self.n_pictures += tag == "svg"
        self.n_titles += tag == "title" and not self.n_pictures
        self.parts.append("\n\n" if tag in _BLOCKS else "\n" if tag == "br" else " " if tag in ("td", "th") else "")

    def handle_endtag(self, tag: str) -> None:
        """Closes it."""
        self.within = ""
        self.n_pictures -= tag == "svg" and self.n_pictures > 0
        self.parts.append("\n\n" if tag in _BLOCKS else "")

    def handle_data(self, data: str) -> None:
        """Keeps text; its line breaks mean blanks."""
        if self.within == "title":
            if self.n_titles == 1 and not self.n_pictures:
                self.title.append(data)
        elif not self.within:
            self.parts.append(" ".join(data.splitlines()) if "\n" in data else data)


def pdf_lines(path: Path) -> list[str]:
    """Returns the text of a PDF, an empty line between pages.

    Raises:
        UserError: pypdf is not installed.
        Unread: it is damaged, locked by a password, or holds pictures alone.
    """
    pypdf = require("pypdf", "pdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what is wrong is told in a sentence
    try:
        pages = [page.extract_text() for page in pypdf.PdfReader(path).pages]
    except Exception as error:  # whatever a parser makes of a damaged file
        raise Unread(f"cannot be read: {one_line(str(error) or type(error).__name__)[:80]}") from error
    if not any(map(str.strip, pages)):
        raise Unread("no text in it; if it is a scan, recognize its text first")
    return "\n\n".join(pages).splitlines()
