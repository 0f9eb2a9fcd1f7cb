"""SQuAD (Rajpurkar et al., 2016) as an open question set, with the union of its paragraphs as the corpus."""

from __future__ import annotations

from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rewards import compared_title
from searchr1_mini.data.rows import is_text

LEAD = 60  # characters of a paragraph that tell it from the others of its article


def is_squad(row: dict[str, Any]) -> bool:
    """Tells whether a row has its paragraph as one text."""
    return isinstance(row.get("context"), str)


def row_title(row: dict[str, Any]) -> str:
    """Turns `University_of_Notre_Dame` into `University of Notre Dame`."""
    title = row.get("title")
    return compared_title(title) if isinstance(title, str) else ""


def row_article(row: dict[str, Any]) -> str:
    """Names the article that a question is about: its title, or what the id of its passage begins with; "" for neither.

    Of `Super_Bowl_50/3`, the fourth paragraph of an article, it is `Super Bowl 50`.
    """
    id_ = str(row["passage_id"]) if isinstance(row.get("passage_id"), str | int) else ""
    return next(filter(is_text, (row_title(row), compared_title(id_.rpartition("/")[0] or id_))), "")


def row_support(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns the paragraph that a question is about, as `Example.supporting`."""
    return ((row_title(row), row["context"].strip()[:LEAD]),)


def row_paragraph(row: dict[str, Any], where: str) -> Passage:
    """Returns the paragraph of a row.

    Raises:
        UserError: it is blank or broken Unicode; it names where the row stands.
    """
    if not is_text(row["context"]):
        raise UserError(f'{where}: "context" is blank or broken Unicode; fix it, or name the passages with --corpus')
    return Passage("", row_title(row), row["context"].strip())
