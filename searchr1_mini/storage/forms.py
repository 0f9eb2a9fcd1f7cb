"""The forms of the files that a run writes, so that one that was changed or damaged is told before it is used.

A form is a type; a value that must be that very one; a tuple of forms, of which one must fit; a list with the form of
each element; or a dict with the forms of names, those that begin with `?` optional, and under `str` that of all others.
"""

from __future__ import annotations

from typing import Any

from searchr1_mini.storage.printable import cut_short

NUMBER = object()  # a float as it was logged, nan and inf too; `float` is a finite number
MOST = 1e15  # nothing that is counted or measured is larger, and charts and tables can still show it

_PART = {"em": float, "searches": float, "response_tokens": float, "n": int}
SUMMARY_PART = _PART | {"by_source": {str: _PART}}
METRICS = {"step": int, str: (float, None)}
WARNING = {"step": int, "warning": str}
SUMMARY = {
    "steps": int, "train_seconds": float, "peak_memory_gb": float, "before": SUMMARY_PART, "after": SUMMARY_PART,
    "?after_cold_start": (SUMMARY_PART, None), "?after_without_retriever": (SUMMARY_PART, None),
    "?cold_start_seconds": float, "?settings": {str: (str, bool, float, None)},
}  # fmt: skip
OF_AN_ARM = {"after": {"searches": float, "response_tokens": float, "by_source": {str: {"em": float}}}}
_SEGMENT = {"kind": ("prompt", "policy", "observation"), "token_ids": [int], "text": str}
_NUMBERS = [(NUMBER, None)]
ROLLOUT = {
    "example_id": str, "question": str, "golden_answers": [str], "source": str, "reward": (NUMBER, None),
    "?advantage": (NUMBER, None), "finish_reason": str, "answer": (str, None), "queries": [str],
    "?in_update": (bool, None), "?group": (int, None),
    "segments": [_SEGMENT | {"?logprobs": _NUMBERS, "?ratios": _NUMBERS, "?advantages": _NUMBERS}],
}  # fmt: skip
TRAJECTORY = {
    "example_id": str, "segments": [_SEGMENT | {"logprobs": [NUMBER]}], "?finish_reason": str, "?answer": (str, None),
    "?queries": [str], "?retrieved": [str], "?titles": [[str]], "?invalid_actions": int,
    "?asides": [_SEGMENT | {"logprobs": [NUMBER]}],
}  # fmt: skip
PROGRESS = {
    "step": int, "updates": int, "before": (SUMMARY_PART, None), "train_seconds": float, "total_seconds": float,
    "?after_cold_start": (SUMMARY_PART, None),
    "?cold_start_seconds": float, "?evaluated_at": int, "skipped_in_a_row": int, "tokens_per_micro_batch": int,
    "micro_batch_tokens": int, "samples_before": [TRAJECTORY],
}  # fmt: skip
DEMONSTRATIONS = {"sampled": int, "right": [TRAJECTORY]}
CELL = {"example_id": str, "question": str, "source": str, "scores": {"em": float, str: float}}


def misfit(value: Any, form: Any, where: str = "") -> str | None:
    """Tells what of a value, as JSON gives it, is not of its form, in words; None if it fits."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{where or 'it'} is {_shown(value)}, and must be an object"
        named = {name.removeprefix("?"): of for name, of in form.items() if name is not str}
        missing = [name for name in form if name is not str and name[0] != "?" and name not in value]
        if missing:
            return f"{where or 'it'} has no {missing[0]}"
        known = [(name, part, named.get(name, form.get(str))) for name, part in value.items()]
        return _first(misfit(part, of, f"{where}.{name}" if where else name) for name, part, of in known if of)
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{where or 'it'} is {_shown(value)}, and must be a list"
        return _first(misfit(part, form[0], f"{where}[{number}]") for number, part in enumerate(value))
    if isinstance(form, tuple):
        told = [misfit(value, each, where) for each in form]
        return None if None in told else told[0]
    return None if _fits(value, form) else f"{where or 'it'} is {_shown(value)}, and must be {_named(form)}"


def _first(told: Any) -> str | None:
    return next((each for each in told if each is not None), None)


def _fits(value: Any, form: Any) -> bool:
    if form in (float, NUMBER):
        if isinstance(value, float):
            return form is NUMBER or abs(value) <= MOST
        return type(value) is int and abs(value) <= MOST
    if form is int:
        return type(value) is int and abs(value) <= MOST
    return type(value) is form if isinstance(form, type) else value == form and type(value) is type(form)


def _named(form: Any) -> str:
    words = {int: "a whole number", float: "a finite number", NUMBER: "a number", str: "text", bool: "true or false"}
    return words.get(form, repr(form)) if form is not None else "null"


def _shown(value: Any) -> str:
    return cut_short(repr(value))
