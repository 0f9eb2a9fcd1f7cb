"""Lists and objects that stand as text in a cell: in JSON, or as Python, numpy or pandas print them."""

from __future__ import annotations

import ast
import io
import json
import tokenize
import warnings
from contextlib import suppress
from typing import Any

MOST = 100_000  # characters of a text that is taken for an answer's list
# what Python makes of text that is no literal
NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError)


def spelled(text: str, most: int = MOST) -> list[Any] | dict[str, Any] | None:
    """Returns the list or object that a text spells; None if it spells none.

    What is missing (nan) is None.
    """
    text = text.strip()
    is_array = text.startswith("array(") and text.endswith(")")
    if len(text) > most or not (is_array or (text[:1], text[-1:]) in (("[", "]"), ("{", "}"))):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(*NO_LITERAL), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        found = ast.literal_eval(_Plain().visit(ast.parse(text, mode="eval").body))
        if isinstance(found, list) and all(isinstance(part, str) for part in found):
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            strings = [token.string for token in tokens if token.type == tokenize.STRING]
            # numpy leaves out the commas, and Python then joins what stands side by side
            return [ast.literal_eval(string) for string in strings] if len(strings) > len(found) else found
        return found if isinstance(found, list | dict) else None
    return None


class _Plain(ast.NodeTransformer):
    """Takes `array([..])` for its list, and nan for None."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Unwraps an array."""
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and bool(node.args)
        return self.visit(node.args[0]) if is_array else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replaces what is missing."""
        return ast.Constant(None) if node.id == "nan" else node
