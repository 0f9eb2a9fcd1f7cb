"""The paper's form of a passage: a title in quotes, a line break, the text."""

from __future__ import annotations

MOST_TITLE = 256  # characters; Wikipedia's titles are at most 255 bytes


def split_contents(contents: str) -> tuple[str, str]:
    """Splits the paper's corpus format, `"Title"\\ntext`, into title and text; quotes inside the title stay.

    A first line without quotes is a title if text follows it and it is no longer than titles are; else all is text.
    What follows a title in quotes is kept to the byte, as the public code shows it.
    """
    first, _, text = contents.partition("\n")
    title = first.strip()
    if len(title) > 1 and title[0] == title[-1] == '"' and len(first) < len(contents):
        return title[1:-1], text
    if not text.strip() or len(title) > MOST_TITLE:
        return "", contents.strip()
    return title, text.strip()
