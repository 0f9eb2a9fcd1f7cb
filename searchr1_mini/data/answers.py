"""Gold answers as texts, in whatever form data sets and spreadsheets hold them."""

from __future__ import annotations

import math
import re
from datetime import date
from decimal import Decimal
from typing import Any

from searchr1_mini.data.rows import ANSWER_FIELDS, is_whole
from searchr1_mini.data.spelled import spelled

MOST_NESTED = 8  # lists and objects inside one another
PARTS = ("text", "value", "aliases", "target", "ground_truth", "answer")  # of an answer that is an object, if there
_AN_OBJECT = re.compile(r"""\s*\[?\s*\{\s*["'](?:text|value|aliases|target|ground_truth|answer)["']\s*:""")


def golden_answers(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the gold answers of the first field that holds any, and MuSiQue's aliases; () if no field does.

    Raises:
        ValueError: that field holds something else than texts, numbers, truth values, dates, and lists of these.
    """
    found = next((answers for name in ANSWER_FIELDS if (answers := texts_of(row.get(name)))), [])
    return tuple(dict.fromkeys(found + texts_of(row.get("answer_aliases")))) if found else ()


def is_unanswerable(row: dict[str, Any]) -> bool:
    """Tells whether a row says that its question has no answer, by a flag or by `answers` of which there are none."""
    answers = row.get("answers")
    answers = spelled(answers) if isinstance(answers, str) else answers
    is_empty = answers == [] or (isinstance(answers, dict) and answers.get("text") == [])
    has_other = any(row.get(name) for name in ANSWER_FIELDS if name != "answers")
    flags = [str(row.get(name)).lower() for name in ("answerable", "is_impossible")]  # text in a table's cell
    return (is_empty and not has_other) or flags[0] == "false" or flags[1] == "true"


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
            found = spelled(value)
            if isinstance(found, list) or (isinstance(found, dict) and set(PARTS) & set(found)):
                return texts_of(found, depth + 1)
            if _AN_OBJECT.match(value):
                raise ValueError("an object that is cut short or damaged")
            return [value] if value.strip() else []
        case list() | tuple():
            return [text for part in value for text in texts_of(part, depth + 1)]
        case dict() if set(PARTS) & set(value):
            return [text for name in PARTS for text in texts_of(value.get(name), depth + 1)]
    raise ValueError(f"{type(value).__name__} is no text")
