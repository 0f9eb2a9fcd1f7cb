"""Lists and objects that stand as text in a cell: in JSON, or as Python, numpy or pandas print them."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from contextlib import suppress
from typing import Any

MOST = 100_000  # characters of a text that is taken for an answer's list
_ARRAY = re.compile(r"array\((\[[^\[\]]*\])(?:, dtype=\w+)?\)")
_MISSING = re.compile(r"(?<=[\[,:])\s*nan\s*(?=[,\]}])")


def spelled(text: str, most: int = MOST) -> list[Any] | dict[str, Any] | None:
    """Returns the list or object that a text spells; None if it spells none.

    What is missing (nan) is None.
    """
    text = text.strip()
    if len(text) > most:
        return None
    if "array(" in text:
        text = _ARRAY.sub(r"\1", text)
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    for python in (text, _MISSING.sub("None", text)):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            found = _literal(python)
            return found if isinstance(found, list | dict) else None
    return None


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        found = ast.literal_eval(text)
        if not (isinstance(found, list) and all(isinstance(part, str) for part in found)):
            return found
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        strings = [token.string for token in tokens if token.type == tokenize.STRING]
        # numpy leaves out the commas, and Python then joins what stands side by side
        return [ast.literal_eval(string) for string in strings] if len(strings) > len(found) else found
