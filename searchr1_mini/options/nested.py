"""Configs made of one dataclass per concern, seen as the flat options that flags, files and presets name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

from searchr1_mini.core.config import option

Config = TypeVar("Config")


def sections_of(config_class: type) -> dict[str, type]:
    """Maps each attribute to the dataclass of its concern; empty for a config that is flat."""
    hints = get_type_hints(config_class)
    return {f.name: hints[f.name] for f in fields(config_class) if is_dataclass(hints[f.name])}


@lru_cache(maxsize=16)
def options_of(config_class: type) -> Mapping[str, Field]:
    """Returns every option of a config by its name, in order of declaration."""
    sections = sections_of(config_class)
    parts = sections.values() if sections else (config_class,)
    return {option.name: option for part in parts for option in fields(part)}


@lru_cache(maxsize=16)
def option_sections(config_class: type) -> Mapping[str, str]:
    """Maps the name of an option to the attribute of its concern; empty for a config that is flat."""
    return {option.name: name for name, part in sections_of(config_class).items() for option in fields(part)}


@lru_cache(maxsize=16)
def type_hints(config_class: type) -> Mapping[str, Any]:
    """Maps the name of an option to its type."""
    parts = sections_of(config_class).values() or (config_class,)
    return {name: hint for part in parts for name, hint in get_type_hints(part).items()}


def flag_name(name: str) -> str:
    """Turns `max_turns` into `--max-turns`."""
    return "--" + name.replace("_", "-")


def default_value(config_class: type, name: str) -> Any:
    """Returns the default of an option."""
    return options_of(config_class)[name].default


def grouped(group: str, default: Any, help_text: str, **bounds: float):
    """Declares an option of a config that is flat, with its section in --help."""
    own = option(default, help_text, **bounds)
    return field(default=default, metadata={"group": group} | dict(own.metadata))


def shared(group: str, config_class: type, name: str, default: Any = None, note: str = ""):
    """Declares an option that another command has too, as it is there, with a default of this command's.

    Args:
        note: what the default is, where None does not say it.
    """
    declared = options_of(config_class)[name].metadata
    meaning = declared["help"].partition(" [default: ")[0]
    return field(default=default, metadata={**declared, "group": group, "help": meaning + note})


def get(config: Any, name: str) -> Any:
    """Returns the value of an option by its name."""
    section = option_sections(type(config)).get(name)
    return getattr(getattr(config, section) if section else config, name)


def flat(config: Any) -> dict[str, Any]:
    """Returns every option with its value, as config.json holds them."""
    return {name: get(config, name) for name in options_of(type(config))}


def make(config_class: type[Config], **values: Any) -> Config:
    """Makes a config with these options; the others are at their defaults.

    Raises:
        TypeError: there is no such option.
    """
    return with_options(config_class(), **values)


def with_options(config: Config, **values: Any) -> Config:
    """Returns the same config with other values for some options.

    Raises:
        TypeError: there is no such option.
    """
    sections = option_sections(type(config))
    if not sections:
        return replace(config, **values)
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in sections:
            raise TypeError(f"{type(config).__name__} has no option {name!r}")
        parts.setdefault(sections[name], {})[name] = value
    return replace(config, **{part: replace(getattr(config, part), **changes) for part, changes in parts.items()})
