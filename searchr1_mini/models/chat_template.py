"""A model's chat template: a program of strangers, rendered as a function of the messages and a day alone.

A template may write today's date, draw at random, raise anything, or never end. So the day is given, the random state
is fixed, and before a template is used for the first time it is rendered by a process of its own, with a deadline.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.storage.printable import first_line

CPU_SECONDS, WALL_SECONDS = 5, 120  # a sound template takes milliseconds; on a busy machine Python starts slowly
MOST_BYTES = 2**31  # of the process that renders
MOST_CHARACTERS = 200_000  # of a rendered probe
DIRECTIVES = "aAbBcdDeFGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
QUESTION, ANSWER = "Which river flows through Zanzibar-4711?", "ANSWER"
REMEDY = "fix it, or remove it to prompt without one: chat_template.jinja, or chat_template in tokenizer_config.json"


def render(
    template: str, messages: Sequence[dict[str, str]], special: dict[str, Any], day: date, is_prompt: bool
) -> str:
    """Renders messages by a chat template; the same for the same arguments, whenever and wherever.

    Args:
        special: the tokenizer's special tokens by name, which the template may write.
        day: what the template takes for today.
        is_prompt: whether the assistant's turn is opened after the messages.

    Raises:
        Exception: whatever the template, or Jinja, raises.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    # a template that can think by itself (Qwen3) would spend the turn on it; the prompt asks for <think> anyway
    told = special | ({"enable_thinking": False} if is_prompt else {})
    state = random.getstate()
    random.seed(0)
    try:
        (text,), _ = render_jinja_template(
            [list(messages)], chat_template=_dated(template, day), add_generation_prompt=is_prompt, **told
        )
    finally:
        random.setstate(state)
    return text


@lru_cache(maxsize=1)
def today() -> date:
    """Returns the day that this process asked for first: a run that goes on past midnight stays on it."""
    return date.today()


def parse_day(text: str, name: str = "--date") -> date:
    """Parses a day as `--date` takes it; `name` is how the error calls it.

    Raises:
        UserError: it is none, or not as 2026-11-25.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise UserError(f"{name} {text[:40]}: it must be a day, as 2026-11-25")
    return day


@lru_cache(maxsize=8)
def _dated(template: str, day: date) -> str:
    """The template, after a macro that hides `strftime_now`, which would ask the clock, where it is named."""
    if "strftime_now" not in template:
        return template
    at, filters = datetime(day.year, day.month, day.day), ""
    for code in [f"-{letter}" for letter in DIRECTIVES] + [*DIRECTIVES, "%"]:
        with suppress(ValueError):  # a code that this system does not know stays as it is
            filters += f" | replace({json.dumps('%' + code)}, {json.dumps(at.strftime('%' + code))})"
    return "{% macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro %}\n" + template


def template_of(tokenizer: Any, source: str) -> str | None:
    """Returns the tokenizer's chat template, the one named default if it has several; None where it has none.

    Raises:
        UserError: there are several and none is the default, or it is no text.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(
                f"{source} has {len(template)} chat templates ({', '.join(map(str, template))}) and none is named "
                "default; call the one to use default in tokenizer_config.json, or keep that one alone"
            )
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise UserError(f"the chat template of {source} is {type(template).__name__}, not text; {REMEDY}")
    return template or None


def special_tokens(tokenizer: Any) -> dict[str, Any]:
    """Returns the special tokens that a template may name, as plain text."""
    plain = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    lists = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, list)}
    return plain | {name: [str(token) for token in tokens] for name, tokens in lists.items()}


def rendered(template: str, tokenizer: Any, content: str, day: date, before: Sequence[tuple[str, str]] = ()) -> str:
    """Renders the prompt that a checked template makes of a user's message.

    Args:
        before: what was asked and answered before it; see `takes_turns`.

    Raises:
        UserError: the template refuses it.
    """
    messages = [*_turns(before), {"role": "user", "content": content}]
    try:
        return render(template, messages, special_tokens(tokenizer), day, is_prompt=True)
    except Exception as error:  # Jinja hands on whatever a template's own code raises
        raise UserError(f"the model's chat template cannot be rendered ({first_line(error)}); {REMEDY}") from error


def takes_turns(tokenizer: Any) -> bool:
    """Tells whether prompts may show earlier turns, thoughts included: some templates refuse them, or cut thoughts."""
    template = template_of(tokenizer, "the model")
    if template is None:
        return False
    answer = f"<think> {ANSWER} </think>\n<answer> {ANSWER} </answer>"
    try:
        text = rendered(template, tokenizer, QUESTION, date(2026, 1, 1), [(QUESTION, answer)] * 2)
    except UserError:
        return False
    return text.count(answer) == 2 and text.count(QUESTION) == 3


def _turns(asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in asked for role, text in zip(roles, pair, strict=True)]


def answer_end(template: str, tokenizer: Any) -> str:
    """Returns what a template writes after an assistant's answer; nothing where it takes no answers."""
    messages = _turns([(QUESTION, ANSWER)])
    try:
        text = render(template, messages, special_tokens(tokenizer), date(2026, 1, 1), is_prompt=False)
    except Exception:  # a template for prompts alone; EOS ends a turn all the same
        return ""
    return text.rpartition(ANSWER)[2]


def writes_day(tokenizer: Any) -> bool:
    """Tells whether prompts by the tokenizer's chat template, which is checked, depend on the day."""
    template = template_of(tokenizer, "the model")
    if template is None:
        return False
    days = (date(2001, 2, 3), date(2024, 11, 29))  # no part of a date is the same
    return len({rendered(template, tokenizer, QUESTION, day) for day in days}) == 2


def refuse_day(name: str) -> UserError:
    """Builds the error for a `--date` that no prompt would show."""
    return UserError(f"--date does nothing with {name}, whose chat template writes no date; leave it out")


def check_template(template: str, tokenizer: Any, source: str, day: date) -> None:
    """Refuses a template that raises, never ends, loses the message, or is not the same twice.

    Raises:
        UserError: says what it does.
    """
    aside = _rendered_aside(template, json.dumps(special_tokens(tokenizer), sort_keys=True), day)
    if "fault" in aside:
        raise UserError(f"the chat template of {source} {aside['fault']}; {REMEDY}")
    if QUESTION not in aside["prompt"]:
        shown = (
            f"gives {aside['prompt'][:80]!r} for a message, without its text" if aside["prompt"] else "gives nothing"
        )
        raise UserError(f"the chat template of {source} {shown}; {REMEDY}")
    if rendered(template, tokenizer, QUESTION, day) != aside["prompt"]:
        raise UserError(f"the chat template of {source} does not give the same prompt twice; {REMEDY}")


@lru_cache(maxsize=16)
def _rendered_aside(template: str, special: str, day: date) -> dict[str, str]:
    """The probe as another process renders it, or its fault in words; bounded in time and memory."""
    package_home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH"))))
    request = json.dumps({"template": template, "special": special, "day": day.isoformat(), "seconds": CPU_SECONDS})
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=request.encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            env=os.environ | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return {"fault": f"does not end within {WALL_SECONDS} s"}
    if done.returncode < 0:
        return {"fault": f"does not end within {CPU_SECONDS} s of computing"}
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {"fault": f"cannot be rendered ({last[:200]})"}


def _limit_this_process(cpu_seconds: int) -> None:
    try:
        import resource
    except ImportError:  # on Windows the other process's clock is all there is
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + cpu_seconds
    for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MOST_BYTES), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):  # macOS knows not all of them
            resource.setrlimit(limit, (most, most))


def main() -> None:
    """Reads a template from stdin, renders the probe within bounds, and writes it, or its fault, to stdout."""
    asked = json.load(sys.stdin)
    special, day = json.loads(asked["special"]), date.fromisoformat(asked["day"])
    user = {"role": "user", "content": QUESTION}
    render("{{ messages[0].content }}", [user], special, day, is_prompt=True)  # imports what it takes
    _limit_this_process(asked["seconds"])
    try:
        prompt = render(asked["template"], [user], special, day, is_prompt=True)
        answered = _turns([(QUESTION, ANSWER)])
        for messages, is_prompt in ((answered, False), ([*answered, *answered, user], True)):
            with suppress(Exception):  # whether it takes answers is no fault; that it ends is what is tried
                render(asked["template"], messages, special, day, is_prompt)
        if len(prompt) > MOST_CHARACTERS:
            reply = {"fault": f"gives a prompt of {len(prompt):,} characters for a message of {len(QUESTION)}"}
        else:
            reply = {"prompt": prompt}
    except MemoryError:
        reply = {"fault": "takes more memory than a template may"}
    except Exception as error:  # whatever the template raises
        reply = {"fault": f"cannot be rendered ({type(error).__name__}: {first_line(error)})"}
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    main()
