"""The command line: flags, presets and yaml files onto a config; errors as one sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, make_dataclass
from typing import Annotated, Any, TypeVar

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS, REAL, TINY
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import default_value, make, option_sections, options_of, type_hints
from searchr1_mini.options.option_files import brought_otherwise, preset_values, yaml_values
from searchr1_mini.options.paths import at_home, named_runs
from searchr1_mini.options.words import check_words, spell_out_switches, take

Config = TypeVar("Config")
OF_PRESETS = (TrainConfig, EvalConfig)
NAME_RUNS = ("run", "runs", "folders", "init")  # options in which `latest` names the newest run


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

    Only configs of `OF_PRESETS` have a --preset: of others it would set some options by chance, and most not. An
    evaluation takes less of it, see `preset_values` and `brought_otherwise`.

    Returns:
        The config, and the options whose values come from `base` or the preset: nobody asked for them by name.

    Raises:
        UserError: an unknown flag, preset or yaml key (with the closest known one), a wrong value, an unreadable file,
            a preset where there are none.
        SystemExit: --help was asked for (0).
    """
    import tyro

    argv, preset = take(list(sys.argv[1:] if argv is None else argv), "--preset")
    if preset is not None and config_class not in OF_PRESETS:
        raise UserError("--preset sets options of train.py, eval.py or preflight; leave it out, and give flags")
    argv, file = take(argv, "--config")
    known, hints = options_of(config_class), type_hints(config_class)
    argv = spell_out_switches(argv, [name for name, hint in hints.items() if hint == bool | None])
    several = ("--preset", "--config") if config_class in OF_PRESETS else ("--config",)
    flags = check_words(argv, hints, several)
    unasked = dict(base or {}) | preset_values(preset, config_class)
    of_file = yaml_values(file, hints)
    defaults = unasked | of_file
    sections = option_sections(config_class) or {name: option.metadata["group"] for name, option in known.items()}
    grouped_class = _grouped_class(known, sections, hints, defaults, tyro)
    epilogue = "Also: --config FILE.yaml sets several at once; flags go over it."
    if config_class in OF_PRESETS:
        epilogue = f"Also: --preset {'|'.join(PRESETS)} and --config FILE.yaml set several at once; flags go over both."
    description += f"\n\n{epilogue}"
    parsed = tyro.cli(grouped_class, prog=prog, description=description, args=argv, config=(tyro.conf.OmitArgPrefixes,))
    values = {name: getattr(getattr(parsed, sections[name]), name) for name in known}
    values = {name: value if name == "ask" else at_home(name, value) for name, value in values.items()}
    values |= {name: named_runs(values[name]) for name in NAME_RUNS if values.get(name)}
    by_nobody = set(unasked) - set(of_file) - flags
    if config_class is EvalConfig:
        values |= {name: default_value(EvalConfig, name) for name in by_nobody & brought_otherwise(values)}
    return make(config_class, **values), by_nobody


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
