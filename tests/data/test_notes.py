"""A folder of notes as users have it: every form of text, folders inside, and one line about what became of it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.data import datasets, notes
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.data.notes import MOST_WORDS, cut_passages

PAGE = """<!DOCTYPE html><html><head><title>Oslo &amp; around</title><style>p {color: red}</style>
<script>var hidden = "</p>";</script></head><body><nav>Home</nav><h1>Oslo</h1>
<p>Oslo is the <b>cap</b>ital<br>of Norway&nbsp;&mdash; since 1814.<ul><li>one<li>two</ul>
<table><tr><td>a</td><td>b</td></tr></table><!-- a comment --></body></html>"""


def pdf_of(text: str) -> bytes:
    """A PDF of one page, written by hand."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, starts = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, content in enumerate(objects, start=1):
        starts.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    table = out.tell()
    out.write(b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % start for start in starts))
    out.write(b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % table)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "notes"
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "x.md").write_text("hidden")
    (root / ".hidden.txt").write_text("hidden")
    (root / "deep" / "round").symlink_to(root)
    (root / "nowhere.txt").symlink_to(root / "gone.txt")
    (root / "a.md").write_text("# Bern\n\nBern is old.")
    (root / "deep" / "a.md").write_text("Rome is older.")
    (root / "deep" / "deeper" / "page.HTML").write_text(PAGE)
    (root / "deep" / "letter.pdf").write_bytes(pdf_of("Lima lies by the sea."))
    (root / "scan.pdf").write_bytes(pdf_of(""))
    (root / "wide.txt").write_text("Zürich liegt am See.", encoding="utf-16")
    (root / "latin.txt").write_bytes("Köln am Rhein".encode("latin-1"))
    (root / "latin.htm").write_bytes(b'<meta content="text/html; charset=iso-8859-1"><p>K\xf6ln \x96 Rhein')
    (root / "blank.txt").write_text(" \n")
    for name in ("b.docx", "c.docx", "d.csv"):
        (root / name).write_bytes(b"PK\x03\x04")
    return root


def test_every_note_is_read_and_what_is_not_is_told_in_one_line(folder, capsys):
    found = {p.id: (p.title, p.text) for p in load_corpus(str(folder), "jsonl", None)}
    assert found == {
        "a.md#1": ("a", "# Bern Bern is old."),
        "deep/a.md#1": ("a", "Rome is older."),
        "deep/deeper/page.HTML#1": (
            "Oslo & around", "Home Oslo Oslo is the capital of Norway — since 1814. one two a b"
        ),
        "deep/letter.pdf#1": ("letter", "Lima lies by the sea."),
        "wide.txt#1": ("wide", "Zürich liegt am See."),
        "latin.htm#1": ("latin", "Köln – Rhein"),
    }  # fmt: skip
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(
        f"{folder}: 6 passages from 6 files; skipped 8: 2 .docx (not a form"
    )
    for part in (
        "d.csv (not a form that is read)", "round (a link to a folder)", "nowhere.txt (no file)", "blank.txt (empty)",
    ):  # fmt: skip
        assert part in told or "and others" in told
    assert "hidden" not in told


def test_the_line_names_each_reason_once():
    skipped = [(notes.Path(f"{n}.docx"), "not a form that is read") for n in range(3)] + [
        (notes.Path("a.pdf"), "no text")
    ]
    told = notes.summary(notes.Path("x"), 9, 1, skipped)
    assert told == "x: 9 passages from 1 file; skipped 4: 3 .docx (not a form that is read), a.pdf (no text)"


def test_without_pypdf_a_pdf_is_skipped_or_refused(folder, capsys, monkeypatch):
    """Skipped in a folder, refused when named by itself; either way the remedy is told."""
    monkeypatch.setattr(notes.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    assert len(load_corpus(str(folder), "jsonl", None)) == 5
    assert '2 .pdf (needs `pip install -e ".[pdf]"' in capsys.readouterr().err
    with pytest.raises(UserError, match=r"\.\[pdf\]"):
        load_corpus(str(folder / "deep" / "letter.pdf"), "jsonl", None)


@pytest.mark.parametrize("name", ["a.md", "deep/letter.pdf", "deep/deeper/page.HTML", "wide.txt"])
def test_a_note_by_itself_is_a_corpus(folder, name):
    assert len(load_corpus(str(folder / name), "jsonl", None)) == 1


def test_texts_beside_passages_are_told(folder, capsys):
    (folder / "p.jsonl").write_text('{"id": "1", "contents": "Oslo"}\n')
    assert len(load_corpus(str(folder), "jsonl", None)) == 1
    assert "1 passage from 1 file; skipped" in capsys.readouterr().err


def test_a_big_folder_is_a_store_that_knows_where_its_notes_lie(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "BIG_CORPUS", 10)
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    first = load_corpus(str(folder), "jsonl", None)
    assert {"deep/a.md#1", "a.md#1"} <= {passage.id for passage in first}
    (folder / "deep").rename(folder / "moved")
    assert "moved/a.md#1" in {passage.id for passage in load_corpus(str(folder), "jsonl", None)}


def test_a_chinese_text_is_cut_behind_its_sentences(tmp_path):
    sentences = [f"这是第{n}句话，它讲的是北京的历史和文化。" for n in range(100)]
    (tmp_path / "a.txt").write_text("".join(sentences), encoding="utf-8")
    passages = [passage.text for passage in load_corpus(str(tmp_path / "a.txt"), "jsonl", None)]
    assert "".join(passages) == "".join(sentences) and len(passages) > 5
    assert all(passage.endswith("。") and 100 <= len(passage) <= 320 for passage in passages[:-1])


@given(st.lists(st.text("ab 一二三。！ ก\n", max_size=400), max_size=4))
def test_no_character_is_lost_whatever_the_script(paragraphs):
    text = "\n\n".join(paragraphs)
    passages = list(cut_passages(text.splitlines(keepends=True)))
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(passage.strip() and len(passage.split()) <= MOST_WORDS for passage in passages)


def test_an_odd_marked_section_skips_the_page_and_not_the_folder(tmp_path, capsys):
    (tmp_path / "a.html").write_text("<p>In SGML, write <![%draft;[ text ]]> </p>")
    (tmp_path / "b.html").write_text("<title>Home</title><svg><title>Search icon</title></svg><p>Words.</p>")
    (tmp_path / "c.html").write_text("<svg><title>Search icon</title></svg><p>Of a page without a title.</p>")
    first, second = load_corpus(str(tmp_path), "jsonl", None)
    assert (first.title, first.text) == ("Home", "Words.") and "a.html (damaged" in capsys.readouterr().err
    assert (second.title, second.text) == ("c", "Of a page without a title.")


def test_json_among_notes_is_skipped_and_a_text_like_it_read(tmp_path, capsys):
    (tmp_path / "settings.txt").write_text('{"color": 1}\n')
    (tmp_path / "story.txt").write_text('{"A fine day"} she said.\n')
    (passage,) = load_corpus(str(tmp_path), "jsonl", None)
    assert passage.text == '{"A fine day"} she said.'
    assert "settings.txt (holds JSON lines, not a text; name it .jsonl" in capsys.readouterr().err


def test_no_word_of_a_long_line_is_cut(tmp_path):
    words = [f"Constantinople{n}" for n in range(3000)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    found = " ".join(passage.text for passage in load_corpus(str(tmp_path), "jsonl", None)).split()
    assert found == words
