"""The terms that BM25 counts: lower-cased words, without English function words, stemmed where asked for."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from searchr1_mini.retrievers.extras import require

_WORD = re.compile(r"\w+")
STOP_WORDS = frozenset(
    "a an and are as at be by did do does for from had has have he her his how in is it its of on or she that the "
    "their they this to was were what when where which who whom whose why will with".split()
)


@dataclass(frozen=True)
class Terms:
    """How a text becomes terms, the same for passages and queries.

    Attributes:
        stemming: cut words down to their stems (English Snowball, Porter 2001), after leaving out the function words.
        stop_words: leave out English function words.
    """

    stemming: bool = False
    stop_words: bool = True

    @property
    def suffix(self) -> str:
        """What names of indexes on disk end in, so that none serves another setting.

        `nfc` tells that texts are normalised, as they were not in earlier versions; with stems goes the version of the
        stemmer, whose rules change now and then.

        Raises:
            UserError: stemming is asked for, and PyStemmer is not installed.
        """
        stems = f"-snowball{require('Stemmer', 'stem').version()}" if self.stemming else ""
        return stems + ("" if self.stop_words else "-allwords") + "-nfc"


DEFAULT_TERMS = Terms()


def tokenize(text: str, terms: Terms = DEFAULT_TERMS) -> list[str]:
    """Terms of a text: lower-cased runs of letters, digits and underscores, without function words, stemmed or not.

    Raises:
        UserError: stemming is asked for, and PyStemmer is not installed.
    """
    text = text if text.isascii() else normalize("NFC", text)  # macOS decomposes the names of files
    words = _WORD.findall(text.lower())
    if terms.stop_words:
        words = [word for word in words if word not in STOP_WORDS]
    return _stemmer(threading.get_ident()).stemWords(words) if terms.stemming else words


@lru_cache(maxsize=64)
def _stemmer(thread: int) -> Any:
    """A stemmer of the thread's own: they are not safe to share."""
    return require("Stemmer", "stem").Stemmer("english")
