"""Gold answers as texts, in whatever form data sets and spreadsheets hold them."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
import warnings
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

from searchr1_mini.data.rows import ANSWER_FIELDS, is_whole

MOST_LISTED = 100_000  # characters of a text that is taken for a list
MOST_NESTED = 8  # lists and objects inside one another
PARTS = ("text", "value", "aliases", "target", "ground_truth", "answer")  # of an answer that is an object, if there
_ARRAY = re.compile(r"array\((\[.*\])(, dtype=\w+)?\)", re.DOTALL)  # as numpy and pandas print it


def golden_answers(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the gold answers of the first field that holds any, and MuSiQue's aliases; () if no field does.

    Raises:
        ValueError: that field holds something else than texts, numbers, truth values, dates, and lists of these.
    """
    found = next((answers for name in ANSWER_FIELDS if (answers := texts_of(row.get(name)))), [])
    return tuple(dict.fromkeys(found + texts_of(row.get("answer_aliases")))) if found else ()


def texts_of(value: Any, depth: int = 0) -> list[str]:
    """Returns the texts in a value: of lists, also such as are written as text, and of objects, those inside.

    What is missing (null, NaN, blank) gives none; true gives `yes` and `true`.

    Raises:
        ValueError: something else, broken Unicode, or nesting without end.
    """
    if depth > MOST_NESTED:
        raise ValueError("lists nested too deep")
    match value:
        case None:
            return []
        case bool():
            return ["yes", "true"] if value else ["no", "false"]
        case int() | Decimal():
            return [str(value)]
        case float():
            if not math.isfinite(value):
                return []
            return [str(int(value)) if value.is_integer() else repr(value)]
        case date():
            return [value.isoformat()]
        case str():
            if not is_whole(value):
                raise ValueError("broken Unicode")
            if (listed := _listed(value)) is not None:
                return texts_of(listed, depth + 1)
            return [value] if value.strip() else []
        case list() | tuple():
            return [text for part in value for text in texts_of(part, depth + 1)]
        case dict() if set(PARTS) & set(value):
            return [text for name in PARTS for text in texts_of(value.get(name), depth + 1)]
    raise ValueError(f"{type(value).__name__} is no text")


def _listed(text: str) -> list[Any] | None:
    """The list that a text spells in JSON or as Python or numpy print it; None if it spells none."""
    text = text.strip()
    if array := _ARRAY.fullmatch(text[:MOST_LISTED]):
        text = array[1]
    if not (text.startswith("[") and text.endswith("]") and len(text) <= MOST_LISTED):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        listed = ast.literal_eval(text)
        strings = [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.STRING]
        # numpy leaves out the commas, and Python then joins what stands side by side
        return [ast.literal_eval(s) for s in strings] if len(strings) > len(listed) else listed
    return None
