"""Text from outside made safe to show: on a terminal, in HTML, in an SVG, in a table; numbers with their noun."""

from __future__ import annotations

import re

SHOWN = 60  # characters of a value in a sentence that says what is wrong with it

# controls (ESC among them), bidirectional marks and overrides, what is invisible, line separators, no characters at all
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """Spells out every character that a terminal obeys, or a reader cannot see: ESC becomes `\\x1b`.

    Line breaks and tabs stay; a Windows line break becomes a line break.
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Returns `plain` text without line breaks, so that it stays in its cell, heading or comment."""
    return " ".join(plain(text).split())


def cut_short(text: str) -> str:
    """Returns a text of at most `SHOWN` characters as it is; of a longer one the beginning, and how long it is."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}.. ({len(text)} characters)"


def counted(number: int, noun: str) -> str:
    """Returns `1 step`, `2 steps`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def first_line(error: Exception) -> str:
    """Returns the first line of what an exception says, or its name where it says nothing; at most 200 characters."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


_MARKDOWN = str.maketrans({char: "\\" + char for char in "\\`*_~[]<>|&"})


def markdown_text(text: str) -> str:
    """Returns one line that Markdown shows as it stands: no HTML, link, emphasis, code or end of a table's cell."""
    return one_line(text).translate(_MARKDOWN)
