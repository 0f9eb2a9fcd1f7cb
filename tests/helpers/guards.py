"""What tests guard: an error is one sentence, output is safe to show, time is bounded, nothing is unpickled."""

from __future__ import annotations

import json
import signal
import unicodedata
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

from searchr1_mini.options.outcome import run_command


def told(command, capsys) -> str:
    """The one sentence in which a command ends, with exit code 2."""
    with pytest.raises(SystemExit) as left:
        run_command(command)
    assert left.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().split("\n")
    assert sentence.startswith("error: ") and sentence.isprintable()
    return sentence


@contextmanager
def cpu_seconds(most: int):
    """Ends what runs for longer, on its own CPU time: a guard against what would take minutes, not a measurement."""

    def stop(*_):
        raise TimeoutError(f"more than {most} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def unsafe(text: str) -> set[str]:
    """Characters that must not be shown as they are: controls, direction overrides, halves of pairs, tag characters."""
    return {
        char
        for char in text
        if (unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t")
        or unicodedata.bidirectional(char) in BIDI
        or char in "\u2028\u2029\u200b\u200e\u200f"
        or 0xE0000 <= ord(char) <= 0xE007F
    }


class Tags(HTMLParser):
    """The tags of a page, and its text with that of its data."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.is_data, self.json = [], "", False, ""

    def handle_starttag(self, tag, attrs):
        self.is_data = ("type", "application/json") in attrs
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        if self.is_data:
            self.json += data
        else:
            self.text += data

    def handle_endtag(self, tag):
        if self.is_data:
            self.is_data, self.text = False, "\n".join([self.text, *strings_in(json.loads(self.json))])


def strings_in(value) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, (dict, list)):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in strings_in(part)]
    return [value] if isinstance(value, str) else []


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return Path.touch, (self.sign,)
