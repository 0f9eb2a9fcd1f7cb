"""The terms that BM25 counts: words of any script, folded, without English function words, stemmed where asked for."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import ModuleType
from typing import Any
from unicodedata import digit, normalize

import regex

from searchr1_mini.core.errors import UserError

VERSION = 2  # of what follows: part of the names of indexes on disk
STOP_WORDS = frozenset(
    "a an and are as at be by did do does for from had has have he her his how in is it its of on or she that the "
    "their they this to was were what when where which who whom whose why will with".split()
)
# scripts without blanks between words; Korean has them, but its words end in particles
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー]"
_WORD = regex.compile(rf"(?V1)(?P<unspaced>(?:{_UNSPACED}\p{{M}}*)+)|[[\w\p{{M}}]--{_UNSPACED}]+")
_SIMPLE_WORD = re.compile(r"\w+")
# Latin, Greek and Cyrillic without marks, and dashes and quotes: most texts, for which the faster pattern does
_IS_SIMPLE = re.compile(r"[\x00-\u02ff\u0370-\u03ff\u0400-\u0481\u048a-\u052f\u1e00-\u1fff\u2010-\u2027\u2030-\u205f]*")
_CHARACTER = regex.compile(r"\P{M}\p{M}*|\p{M}+")
_BREAK = regex.compile("[\u200b™℠]")  # a blank of no width; signs that folding would turn into letters of the word
# what no reader sees (soft hyphens, joiners), the vowel points of Arabic and Hebrew, and Arabic's stretching
_UNSEEN = regex.compile(r"[\p{DI}\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u065f\u0670\u0640]")
_DIGIT = regex.compile(r"(?V1)[\p{Nd}--0-9]")


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
        """What names of indexes on disk end in, so that none serves another setting or version.

        With stems goes the version of the stemmer, whose rules change now and then.

        Raises:
            UserError: stemming is asked for, and PyStemmer is not installed.
        """
        stems = f"-snowball{_snowball().version()}" if self.stemming else ""
        return stems + ("" if self.stop_words else "-allwords") + f"-words{VERSION}"


DEFAULT_TERMS = Terms()
ALL_WORDS = Terms(stop_words=False)


def tokenize(text: str, terms: Terms = DEFAULT_TERMS, singles: bool = False) -> list[str]:
    """Splits a text into terms: folded words of letters, marks, digits and underscores, as `terms` says.

    Scripts without blanks between words give their pairs of neighboring characters, or the one that stands alone.

    Args:
        text: a query, or what a passage is found by.
        terms: how.
        singles: also each such character by itself, as a query of one character needs it of a passage.

    Raises:
        UserError: stemming is asked for, and PyStemmer is not installed.
    """
    return reduced(words_of(text, singles), terms)


def reduced(words: list[str], terms: Terms) -> list[str]:
    """Drops function words and cuts words down to their stems, as `terms` says."""
    if terms.stop_words:
        words = [word for word in words if word not in STOP_WORDS]
    return _stemmer(threading.get_ident()).stemWords(words) if terms.stemming else words


def words_of(text: str, singles: bool = False) -> list[str]:
    """Returns the words of a text, see `tokenize`, those that carry no meaning included."""
    if text.isascii():
        return _SIMPLE_WORD.findall(text.lower())
    text = folded(text)
    if _IS_SIMPLE.fullmatch(text):
        return _SIMPLE_WORD.findall(text)
    words = []
    for found in _WORD.finditer(text):
        if found["unspaced"] is None:
            words.append(found[0])
            continue
        characters = _CHARACTER.findall(found[0])
        words += characters if singles or len(characters) == 1 else []
        words += [first + second for first, second in pairwise(characters)]
    return words


def folded(text: str) -> str:
    """Folds the text to one spelling: Unicode's NFKC case folding, and beyond it what only differs in writing.

    `Straße` as `STRASSE`, `ΟΔΟΣ` as `οδος`, `İstanbul` and `ısı` with a plain i, full-width and all other digits as
    ASCII, words without soft hyphens, joiners, vowel points. Accents stay: `schön` is not `schon`.
    """
    text = normalize("NFKC", _BREAK.sub(" ", text)).casefold()
    text = normalize("NFKC", text).replace("i\u0307", "i").replace("ı", "i")  # normalized again: after lowering
    return _DIGIT.sub(lambda found: str(digit(found[0], found[0])), _UNSEEN.sub("", text))


def _snowball() -> ModuleType:
    try:
        import Stemmer  # an extra
    except ImportError as error:
        raise UserError(f'{error}; run `pip install -e ".[stem]" -c constraints.txt` in its folder') from error
    return Stemmer


@lru_cache(maxsize=64)
def _stemmer(thread: int) -> Any:
    """A stemmer of the thread's own: they are not safe to share."""
    return _snowball().Stemmer("english")
