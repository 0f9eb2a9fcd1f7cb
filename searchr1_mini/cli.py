"""The command line: flags, presets and yaml files onto a flat dataclass; errors as one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from searchr1_mini.config import flag_of
from searchr1_mini.defaults import PRESETS
from searchr1_mini.errors import FULL_DISK, UserError, is_out_of_memory, suggest
from searchr1_mini.pages.printable import plain

Config = TypeVar("Config")
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
WANTED = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def parse(
    config_class: type[Config],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Reads a config: defaults, `base`, --preset, --config file.yaml, then flags, each over the one before.

    Raises:
        UserError: an unknown flag, preset or yaml key (with the closest known one), a wrong value, an unreadable file.
        SystemExit: --help was asked for (0).
    """
    import tyro

    argv, preset = _take(list(sys.argv[1:] if argv is None else argv), "--preset")
    argv, file = _take(argv, "--config")
    known = {option.name: option for option in fields(config_class)}
    hints = get_type_hints(config_class)
    argv = _spell_out_switches(argv, [name for name, hint in hints.items() if hint == bool | None])
    _check_words(argv, hints)
    defaults = dict(base or {}) | _preset_values(preset, known) | _yaml_values(file, hints)
    grouped = _grouped_class(known, hints, defaults, tyro)
    epilogue = f"\n\nAlso: --preset {'|'.join(PRESETS)} and --config FILE.yaml set several at once; flags go over both."
    parsed = tyro.cli(
        grouped, prog=prog, description=description + epilogue, args=argv, config=(tyro.conf.OmitArgPrefixes,)
    )
    return config_class(
        **{name: getattr(getattr(parsed, option.metadata["group"]), name) for name, option in known.items()}
    )


def _grouped_class(known: dict[str, Field], hints: dict[str, Any], defaults: dict[str, Any], tyro: Any) -> type:
    """The flat options again, nested by group, which is how tyro makes sections in --help."""
    groups: dict[str, list] = {}
    for name, option in known.items():
        text, _, resolved = option.metadata["help"].partition("[default: ")
        hint = f"(default: {resolved.rstrip(']')})" if resolved and defaults.get(name) is None else None
        annotated = Annotated[hints[name], tyro.conf.arg(help=text.strip(), help_behavior_hint=hint)]
        groups.setdefault(option.metadata["group"], []).append((name, annotated, defaults.get(name, option.default)))
    sections = {group: make_dataclass(group, options) for group, options in groups.items()}
    for section in sections.values():
        section.__doc__ = " "  # tyro would print the generated signature
    return make_dataclass("options", [(group, cls, field(default_factory=cls)) for group, cls in sections.items()])


def _take(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    """Takes `flag VALUE` or `flag=VALUE` out of the arguments."""
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


def _spell_out_switches(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """`--no-load-in-4bit` -> `--load-in-4bit False`: tyro wants a value where None is one of three; one given stays."""
    values = {flag_of(name): (flag_of(name), "True") for name in names}
    values |= {"--no-" + name.replace("_", "-"): (flag_of(name), "False") for name in names}
    spelled: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        is_bare = following not in ("True", "False", "None")
        spelled += values.get(word.replace("_", "-"), (word,)) if is_bare else (word,)
    return spelled


def _check_words(argv: Sequence[str], hints: dict[str, Any]) -> None:
    """Refuses an unknown flag, a missing value or a wrong one in one sentence, where tyro would draw a box."""
    flags = {flag_of(name): hint for name, hint in hints.items()}
    switches = {"--no-" + name.replace("_", "-"): bool for name, hint in hints.items() if hint is bool}
    names = [*flags, *switches, "--preset", "--config", "--help"]
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in ("--help", "-h"):
            continue
        if not flag.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; options are --name VALUE, switches --name or --no-name")
        if flag not in flags and flag not in switches:
            raise UserError(f"unknown option {flag}{suggest(flag, names)}; see --help")
        hint = flags.get(flag, bool)
        if hint is bool and equals:
            raise UserError(f"{flag} is a switch and takes no value; leave out {word[len(flag) :]}")
        if hint is not bool and not equals:
            value = next(words, "")
            value = "" if value[:1] == "-" and not value[1:2].isdigit() else value  # the next flag, not a number
        if hint is not bool:
            _convert(flag, value, hint)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """The word after a flag, or a yaml value, as the type of its option; `name` is how the error calls it."""
    kinds = (hint,) if get_origin(hint) in (None, Literal) else get_args(hint)
    if value in (None, "None") and type(None) in kinds:
        return None
    if value in (None, ""):
        raise UserError(f"{name} needs a value")
    choices = get_args(kinds[0])
    if choices:
        if value not in choices:
            known = ", ".join(choices)
            raise UserError(f"{name} {value}: it must be one of {known}{suggest(str(value), choices)}")
        return value
    try:
        return {"True": True, "False": False}[str(value)] if kinds[0] is bool else kinds[0](str(value))
    except (ValueError, KeyError):
        raise UserError(f"{name} {value}: it must be {WANTED[kinds[0]]}") from None


def _preset_values(preset: str | None, known: dict[str, Field]) -> dict[str, Any]:
    if preset is None:
        return {}
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}{suggest(preset, PRESETS)}; known: {', '.join(PRESETS)}")
    return {name: value for name, value in PRESETS[preset].items() if name in known}


def _yaml_values(file: str | None, hints: dict[str, Any]) -> dict[str, Any]:
    if file is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read --config {file}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file} must hold `option: value` lines")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"--config {file}: unknown option {key}{suggest(key, hints)}")
        if isinstance(value, (dict, list)):
            raise UserError(f"--config {file}: {key} must be a single value, not {value!r}")
    # yaml reads 3e-5 as text, and 2 as a number where the option is text
    return {key: _convert(f"--config {file}: {key}", value, hints[key]) for key, value in values.items()}


def run_command(command: Callable[[], None]) -> None:
    """Runs a command; what a user can mend becomes one sentence on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        command()
    except UserError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in FULL_DISK + UNWRITABLE:
            raise
        what = f"the disk is full ({error}); what was saved is intact: free some space"
        if error.errno in UNWRITABLE:
            what = f"cannot use {error.filename or 'a file'} ({error.strerror}); what was saved is intact: mend that"
        _leave(f"{what}, and run it again (train.py with --resume, if it had begun)", 2)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _leave(
            "out of memory; lower --tokens-per-micro-batch, --rollout-batch-size or --max-total-tokens, or try "
            "--preset 12gb; a run with checkpoints goes on with --resume",
            2,
        )


def _leave(sentence: str, code: int) -> None:
    sentence = plain(sentence)  # it may quote a file or a server
    print(f"error: {sentence}" if code == 2 else sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)
