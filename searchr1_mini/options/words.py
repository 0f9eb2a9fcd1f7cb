"""The words of a command line, looked at before they are parsed: what is wrong is told in one sentence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.options.needs import SHOWN, convert, shown
from searchr1_mini.options.nested import flag_name

RENAMED = {  # flags of older versions
    f"--bug-{old}": f"--bug {old.replace('retokenise', 'retokenize')}"
    for old in (
        "retokenise", "colliding-groups", "masked-in-denominator", "tool-tokens-in-length", "no-last-turn",
        "reward-from-whole-text",
    )
} | {"--colour": "--color"}  # fmt: skip
RENAMED_VALUES = {"penalise": "penalize", "dequantised": "dequantized"}  # choices, in what older versions saved


def as_now(value: Any) -> Any:
    """Returns the present name of a choice that an older version saved; any other value as it is."""
    return RENAMED_VALUES.get(value, value) if isinstance(value, str) else value


def spell_out_switches(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """Writes `--no-load-in-4bit` as `--load-in-4bit False`, since tyro wants a value; one that is given stays."""
    values = {flag_name(name): (flag_name(name), "True") for name in names}
    values |= {"--no-" + name.replace("_", "-"): (flag_name(name), "False") for name in names}
    spelled: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        is_bare = following not in ("True", "False", "None")
        spelled += values.get(word.replace("_", "-"), (word,)) if is_bare else (word,)
    return spelled


def check_words(argv: Sequence[str], hints: dict[str, Any], others: Sequence[str] = ()) -> set[str]:
    """Refuses an unknown flag, a missing value or a wrong one in one sentence, where tyro would draw a box.

    Args:
        others: flags beside the options, which may be meant by an unknown one.

    Returns:
        The names of the options that are given.

    Raises:
        UserError: names the flag.
    """
    flags = {flag_name(name): hint for name, hint in hints.items()}
    switches = {"--no-" + name.replace("_", "-"): bool for name, hint in hints.items() if hint is bool}
    names = [*flags, *switches, *others, "--help"]
    words, given = iter(argv), set()
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in ("--help", "-h"):
            continue
        if not flag.startswith("--"):
            raise UserError(
                f"unexpected argument {shown(repr(word))}; options are --name VALUE, switches --name or --no-name"
            )
        if flag in RENAMED:
            raise UserError(f"{flag} is now {RENAMED[flag]}")
        if flag not in flags and flag not in switches:
            raise UserError(f"unknown option {shown(flag)}{suggest(flag[:SHOWN], names)}; see --help")
        given.add(_option_name(flag, switches))
        hint = flags.get(flag, bool)
        if hint is bool and equals:
            raise UserError(f"{flag} is a switch and takes no value; leave out {word[len(flag) :]}")
        if hint is not bool and not equals:
            value = next(words, "")
            value = "" if value[:1] == "-" and not value[1:2].isdigit() else value  # the next flag, not a number
        if hint is not bool:
            convert(flag, value, hint)
    return given


def _option_name(flag: str, switches: Collection[str]) -> str:
    return flag.removeprefix("--no-" if flag in switches else "--").replace("-", "_")


def take(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    """Takes `flag VALUE` or `flag=VALUE` out of the arguments.

    Raises:
        UserError: the flag is last, without its value.
    """
    rest, value, position = [], None, 0
    while position < len(argv):
        word = argv[position]
        if word == flag:
            if position + 1 == len(argv):
                raise UserError(f"{flag} needs a value")
            value, position = argv[position + 1], position + 1
        elif word.startswith(flag + "="):
            value = word.split("=", 1)[1]
        else:
            rest.append(word)
        position += 1
    return rest, value
