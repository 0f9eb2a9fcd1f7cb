"""Answers that a notebook can check without showing them: salted hashes, and your function beside the package's.

    answer = ...
    check("2.1", answer, "9f86d081884c", hint="count the title's terms too")

`python -c "from exercises import digest; print(digest('2.1', 42))"` gives the digest of a new exercise. Ask for what
does not depend on the machine: a count, a name, a figure of three digits; nothing that was sampled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from numbers import Number, Real
from typing import Any

ROUNDING = 5e-4  # relative; near the border between two roundings an answer may fall on either side


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, in words for the notebook; true where it is right."""

    is_right: bool
    words: str

    def __bool__(self) -> bool:
        return self.is_right

    def __repr__(self) -> str:
        return self.words


def digest(name: str, answer: Any) -> str:
    """The hash that an answer is known by, salted with the name of its exercise.

    Args:
        name: as "2.1": notebook and exercise.
        answer: a number (fractions count to three digits), a text (case and blanks do not count), a yes or no, or a
            list or set of these.
    """
    return hashlib.sha256(f"searchr1_mini {name}: {_spell(answer)}".encode()).hexdigest()[:12]


def check(name: str, answer: Any, expected: str, hint: str) -> Verdict:
    """Compares an answer with the digest of the right one.

    Args:
        name: as "2.1".
        answer: the reader's; `...` is none yet.
        expected: `digest(name, right answer)`.
        hint: shown with a wrong answer.
    """
    if answer is ...:
        return _unanswered(name)
    answer = answer.tolist() if hasattr(answer, "tolist") else answer  # a tensor or an array
    near = [answer]
    if isinstance(answer, (Real, Decimal)) and not isinstance(answer, bool):
        near = [float(answer) * (1 + nudge) for nudge in (0, -ROUNDING, ROUNDING)]
    elif isinstance(answer, str):  # a fault may be written as its flag is, in each of its spellings
        near += [answer.replace("_", "-").replace("--bug=", "--bug ")]
    return _verdict(name, expected in {digest(name, value) for value in near}, hint)


def check_code(
    name: str, function: Any, reference: Callable, cases: Sequence[tuple], hint: str, tolerance: float = 1e-4
) -> Verdict:
    """Compares what a reader's function returns with what the package's does.

    Args:
        name: as "5.2".
        function: the reader's; `...` is none yet.
        reference: the package's.
        cases: arguments, a tuple a call.
        hint: shown when a result differs, with the number of the case.
        tolerance: largest difference, absolute or relative, between numbers or tensors of one shape.
    """
    if function is ...:
        return _unanswered(name)
    for number, case in enumerate(cases, start=1):
        expected = reference(*map(_copy, case))  # before the reader's function, which may change its arguments
        try:
            result = function(*map(_copy, case))
        except Exception as error:  # the reader's code may raise anything
            return _verdict(name, False, f"case {number} raised {type(error).__name__}: {error}")
        if not _is_close(result, expected, tolerance):
            return _verdict(name, False, f"case {number} of {len(cases)} differs; {hint}")
    return _verdict(name, True, "")


def _copy(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else deepcopy(value)  # a tensor may be part of a graph


def _spell(answer: Any) -> str:
    if isinstance(answer, (set, frozenset)):
        return "{" + ",".join(sorted(map(_spell, answer))) + "}"
    if isinstance(answer, (list, tuple)):
        return "[" + ",".join(map(_spell, answer)) + "]"
    if isinstance(answer, Number) and not isinstance(answer, bool):
        return str(int(answer)) if float(answer).is_integer() else f"{float(answer):.3g}"
    return " ".join(str(answer).lower().split()).removeprefix("--bug ")  # a fault by its name or its flag


def _is_close(ours: Any, theirs: Any, tolerance: float) -> bool:
    if hasattr(theirs, "tolist"):  # a tensor or an array
        if isinstance(ours, (list, tuple)):  # of numbers, or of tensors
            return _is_close(
                [part.tolist() if hasattr(part, "tolist") else part for part in ours], theirs.tolist(), tolerance
            )
        return getattr(ours, "shape", None) == theirs.shape and _is_close(ours.tolist(), theirs.tolist(), tolerance)
    ours = ours.tolist() if hasattr(ours, "tolist") else ours
    if isinstance(theirs, (list, tuple)):
        is_alike = isinstance(ours, (list, tuple)) and len(ours) == len(theirs)
        return is_alike and all(_is_close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    if isinstance(theirs, float) and isinstance(ours, Number):
        return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)
    return ours == theirs


def _unanswered(name: str) -> Verdict:
    return Verdict(False, f"exercise {name}: no answer yet")


def _verdict(name: str, is_right: bool, hint: str) -> Verdict:
    return Verdict(is_right, f"exercise {name}: " + ("right" if is_right else f"not yet; hint: {hint}"))
