"""The command line: flags, presets and yaml files onto a config; errors as one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, field, make_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar

from searchr1_mini.core.errors import FULL_DISK, UserError, is_out_of_memory, suggest
from searchr1_mini.options.defaults import PRESETS, REAL, TINY
from searchr1_mini.options.entry import INTERRUPTED, is_reader_gone, lost_output, signals_raise
from searchr1_mini.options.needs import SHOWN, convert, shown
from searchr1_mini.options.nested import flag_of, hints_of, make, options_of, section_of
from searchr1_mini.options.option_files import read_options
from searchr1_mini.storage.printable import plain

Config = TypeVar("Config")
RENAMED = {  # flags of older versions
    f"--bug-{old}": f"--bug {old.replace('retokenise', 'retokenize')}"
    for old in (
        "retokenise", "colliding-groups", "masked-in-denominator", "tool-tokens-in-length", "no-last-turn",
        "reward-from-whole-text",
    )
}  # fmt: skip
UNWRITABLE = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY),
)


def parse(
    config_class: type[Config],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Reads a config, see `parse_asked`."""
    return parse_asked(config_class, prog, description, argv, base)[0]


def parse_asked(
    config_class: type[Config],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> tuple[Config, set[str]]:
    """Reads a config: defaults, `base`, --preset, --config file.yaml, then flags, each over the one before.

    Returns:
        The config, and the options whose values come from `base` or the preset: nobody asked for them by name.

    Raises:
        UserError: an unknown flag, preset or yaml key (with the closest known one), a wrong value, an unreadable file.
        SystemExit: --help was asked for (0).
    """
    import tyro

    argv, preset = _take(list(sys.argv[1:] if argv is None else argv), "--preset")
    argv, file = _take(argv, "--config")
    known, hints = options_of(config_class), hints_of(config_class)
    argv = _spell_out_switches(argv, [name for name, hint in hints.items() if hint == bool | None])
    flags = _check_words(argv, hints)
    unasked = dict(base or {}) | _preset_values(preset, known)
    of_file = _yaml_values(file, hints)
    defaults = unasked | of_file
    sections = section_of(config_class) or {name: option.metadata["group"] for name, option in known.items()}
    grouped_class = _grouped_class(known, sections, hints, defaults, tyro)
    epilogue = f"\n\nAlso: --preset {'|'.join(PRESETS)} and --config FILE.yaml set several at once; flags go over both."
    parsed = tyro.cli(
        grouped_class, prog=prog, description=description + epilogue, args=argv, config=(tyro.conf.OmitArgPrefixes,)
    )
    values = {name: getattr(getattr(parsed, sections[name]), name) for name in known}
    values = {name: value if name == "ask" else at_home(name, value) for name, value in values.items()}
    return make(config_class, **values), set(unasked) - set(of_file) - flags


def at_home(name: str, value: Any) -> Any:
    """`~/runs` spelled out, as a shell does where it stands alone; other values as they are.

    Raises:
        UserError: nobody knows where that home is.
    """
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise UserError(
            f"{flag_of(name)} {shown(value)}: {value.split('/')[0]} is no known home; write ./~ for a name of that form"
        )
    return path


def _grouped_class(
    known: Mapping[str, Field],
    sections: Mapping[str, str],
    hints: Mapping[str, Any],
    defaults: dict[str, Any],
    tyro: Any,
) -> type:
    """The options again, nested by section, with their help and these defaults, as tyro wants them."""
    groups: dict[str, list] = {}
    for name, option in known.items():
        text, _, resolved = option.metadata["help"].partition("[default: ")
        if option.default is None and name in TINY and not resolved and "steps" in known:
            resolved = f"{TINY[name]} for tiny, else {REAL[name]}"
        hint = f"(default: {resolved.rstrip(']')})" if resolved and defaults.get(name) is None else None
        annotated = Annotated[hints[name], tyro.conf.arg(help=text.strip(), help_behavior_hint=hint)]
        groups.setdefault(sections[name], []).append((name, annotated, defaults.get(name, option.default)))
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


def _check_words(argv: Sequence[str], hints: dict[str, Any]) -> set[str]:
    """Refuses an unknown flag, a missing value or a wrong one in one sentence, where tyro would draw a box.

    Returns:
        The names of the options that are given.
    """
    flags = {flag_of(name): hint for name, hint in hints.items()}
    switches = {"--no-" + name.replace("_", "-"): bool for name, hint in hints.items() if hint is bool}
    names = [*flags, *switches, "--preset", "--config", "--help"]
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
        given.add(_name_of(flag, switches))
        hint = flags.get(flag, bool)
        if hint is bool and equals:
            raise UserError(f"{flag} is a switch and takes no value; leave out {word[len(flag) :]}")
        if hint is not bool and not equals:
            value = next(words, "")
            value = "" if value[:1] == "-" and not value[1:2].isdigit() else value  # the next flag, not a number
        if hint is not bool:
            convert(flag, value, hint)
    return given


def _name_of(flag: str, switches: Collection[str]) -> str:
    return flag.removeprefix("--no-" if flag in switches else "--").replace("-", "_")


def _preset_values(preset: str | None, known: Mapping[str, Field]) -> dict[str, Any]:
    if preset is None:
        return {}
    if preset not in PRESETS:
        known_ones = ", ".join(PRESETS)
        raise UserError(f"unknown preset {shown(preset)!r}{suggest(preset[:SHOWN], PRESETS)}; known: {known_ones}")
    return {name: value for name, value in PRESETS[preset].items() if name in known}


def _yaml_values(file: str | None, hints: dict[str, Any]) -> dict[str, Any]:
    if file is None:
        return {}
    values = {key.replace("-", "_"): value for key, value in read_options(Path(file)).items()}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"--config {file}: unknown option {shown(key)}{suggest(key[:SHOWN], hints)}")
        if not isinstance(value, (str, bool, NoneType)):
            raise UserError(f"--config {file}: {key} must be a single value, not a {type(value).__name__}")
    return {key: convert(f"--config {file}: {key}", value, hints[key]) for key, value in values.items()}


def run_command(command: Callable[[], None]) -> None:
    """Runs a command; what a user can mend becomes one sentence on stderr and exit code 2, Ctrl-C exit code 130.

    Where the output goes nowhere (a full disk, `head`), the work is done all the same, and the exit code tells.
    """
    signals_raise()
    try:
        command()
    except UserError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
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
    if error := lost_output():
        if is_reader_gone(error):
            raise SystemExit(141)
        _leave(f"the output could not be written ({error.strerror}), but the work is done; send it elsewhere", 2)


def _leave(sentence: str, code: int) -> None:
    sentence = plain(sentence).strip().replace("\n", "\\n")  # it may quote a file or a server
    print(f"error: {sentence}" if code == 2 else sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)
