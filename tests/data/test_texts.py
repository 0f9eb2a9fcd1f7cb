"""Texts as a corpus: how they are cut into passages, which files are read, what is refused."""

from __future__ import annotations

import pytest
from helpers.files import write_lines
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.errors import UserError
from searchr1_mini.data import datasets
from searchr1_mini.data.corpus import read_rows
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.data.notes import LEAST_WORDS, MOST_LINE, MOST_WORDS, cut_passages, text_lines
from searchr1_mini.retrievers import index

paragraph = st.integers(0, 400).map(lambda n: " ".join(f"w{i}" for i in range(n)))


@given(st.lists(paragraph, max_size=12), st.sampled_from(["\n\n", "\r\n \r\n", "\n\n\n\t\n"]))
def test_passages_hold_every_word_once_and_have_about_100(tmp_path_factory, paragraphs, gap):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_bytes(gap.join(paragraphs).encode())
    passages = [passage.split() for passage in cut_passages(text_lines(path))]
    assert [word for words in passages for word in words] == " ".join(paragraphs).split()
    assert all(LEAST_WORDS <= len(words) <= MOST_WORDS for words in passages[:-1])
    assert all(1 <= len(words) <= MOST_WORDS for words in passages)


def test_a_paragraph_of_about_100_words_stays_whole(tmp_path):
    first, second = ("one " * 110).strip(), ("two " * 90).strip()
    (tmp_path / "a.md").write_text(f"{first}\n\n{second}\n")
    assert list(cut_passages(text_lines(tmp_path / "a.md"))) == [first, second]


def test_a_line_without_an_end_is_cut_and_none_of_it_is_lost(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 1_000_000)
    passages = list(cut_passages(text_lines(tmp_path / "a.txt")))
    assert "".join(passages) == "x" * 1_000_000 and max(map(len, passages)) <= MOST_LINE


def test_a_folder_of_texts_is_a_corpus_by_file_names(tmp_path):
    (tmp_path / "b.txt").write_text("\ufeffBern is old.", encoding="utf-8")
    (tmp_path / "a.md").write_text("# Oslo\n\nOslo is the capital of Norway.\n")
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "more.txt").mkdir()
    found = [vars(passage) for passage in load_corpus(str(tmp_path), "hotpotqa", None)]
    oslo = {"id": "a.md#1", "title": "a", "text": "# Oslo Oslo is the capital of Norway."}
    assert found == [oslo, {"id": "b.txt#1", "title": "b", "text": "Bern is old."}]
    assert load_corpus(str(tmp_path / "b.txt"), "hotpotqa", None)[0].text == "Bern is old."
    write_lines(tmp_path / "c.jsonl", [{"id": "1", "contents": "Rome\nx"}])  # passages go before texts
    assert [passage.id for passage in load_corpus(str(tmp_path), "hotpotqa", None)] == ["1"]


def test_a_folder_is_no_file_of_questions(tmp_path):
    with pytest.raises(UserError, match="is a folder; --data-path names a file"):
        list(read_rows(tmp_path))


def test_a_big_folder_of_texts_becomes_a_store_on_disk(tmp_path, monkeypatch):

    monkeypatch.setattr(datasets, "BIG_CORPUS", 1000)
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t").mkdir()
    for name in ("a", "b"):
        (tmp_path / "t" / f"{name}.txt").write_text("".join(f"{name}{n} " for n in range(600)))
    store = load_corpus(str(tmp_path / "t"), "hotpotqa", None)
    assert not isinstance(store, list) and len(store) == 12 and index.__name__ in type(store).__module__
    assert {passage.title for passage in store} == {"a", "b"}
    (tmp_path / "t" / "b.txt").rename(tmp_path / "t" / "c.txt")  # a title is the file's name
    assert {passage.title for passage in load_corpus(str(tmp_path / "t"), "hotpotqa", None)} == {"a", "c"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"Oslo\n\n\xff\xfe", "a.txt: cannot be read: 'utf-8'"),
        ("a.txt", b'{"id": "1", "contents": "x"}\n', "a.txt: holds JSON lines, not a text; name it .jsonl"),
        ("a.txt", b" \n", "is empty"),
        ("a.pdf", b"x", "a.pdf: cannot be read"),
        (
            "a.docx",
            b"x",
            "and no text (.txt, .md, .markdown, .html, .htm, .xhtml, .pdf), not even in the folders inside it",
        ),
        ("a.html", b'<meta charset="utf-8"><p>K\xf6ln', "a.html: not in the encoding utf-8"),
        ("a.html", b'<meta charset="rot13"><p>x', "a.html: not in the encoding rot13"),
        ("a.html", b"<script>x</script> <style>p", "a.html: empty"),
        ("a.txt", "Oslo\n".encode("utf-16-le"), "holds NUL bytes"),
    ],
)
def test_what_is_no_text_is_told_in_one_sentence(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_corpus(str(tmp_path), "hotpotqa", None)
    assert told in str(error.value) and "\n" not in str(error.value)
