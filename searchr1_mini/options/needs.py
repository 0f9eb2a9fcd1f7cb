"""What holds for every option, whatever it means: its type, its range, and that the run reads it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.options.config import BUGS
from searchr1_mini.options.nested import default_value, flag_name, get, options_of, type_hints, with_options
from searchr1_mini.options.own_parts import is_own
from searchr1_mini.retrievers.names import ENGINES
from searchr1_mini.storage.printable import SHOWN, cut_short

WANTED = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
OPENED_BY_PYTHON = ("data_path", "corpus", "dataset", "datasets", "ask")
MOST_NAME = 255  # bytes of a name in a path, on every common file system

Needs = Mapping[str, tuple | int]
_RL, _GRPO, _PPO = ({"algorithm": names} for names in (("grpo", "ppo"), ("grpo",), ("ppo",)))
_SAMPLES = {"algorithm": ("grpo", "ppo", "rejection-sampling")}
_SEARCHES = {"method": ("search-r1",)}
_FINDS = _SEARCHES | {"retriever": (*ENGINES, "random", "oracle")}
_ASKS = _SEARCHES | {"retriever": (*_FINDS["retriever"], "empty")}
_OF_A_GROUP = {"group_size": 1}
_WORLD = {"dataset": ("world",)}
_SOUND = {"mystery": (None,)}  # what one fault or another would make idle
_OWN_REWARD = _SOUND | {"bug": (None, *(bug for bug in BUGS if bug != "reward-from-whole-text"))}
_OWN_WEIGHTS = _SOUND | {
    "bug": (None, *(bug for bug in BUGS if bug not in ("masked-in-denominator", "tool-tokens-in-length")))
}
# option of training -> what it does nothing without: options with the values under which it is read, or the number
# that they must be above; what only some retrievers read is in retrievers/names.py
NEEDS: dict[str, Needs] = {
    "corpus": _SEARCHES | {"retriever": tuple(name for name in _FINDS["retriever"] if name != "http")},
    "world_difficulty": _WORLD, "world_hops": _WORLD, "world_noise": _WORLD,
    "retriever": _SEARCHES, "topk": _FINDS, "max_turns": _SEARCHES, "max_observation_tokens": _SEARCHES,
    "observation": _FINDS,
    "temperature": _SAMPLES, "group_size": _SAMPLES,
    "demonstration_questions": {"algorithm": ("sft", "rejection-sampling")},
    "cold_start": _SAMPLES | _SEARCHES | {"retriever": ENGINES}, "demonstrations": {"cold_start": 0},
    "cold_start_learning_rate": {"cold_start": 0}, "cold_start_batch_size": {"cold_start": 0},
    "cold_start_multi_hop": {"cold_start": 0},
    "stratify": _RL,
    "reward": _RL | _OWN_REWARD, "retrieval_bonus": _RL | _FINDS | _OWN_REWARD,
    "search_cost": _RL | _ASKS | _OWN_REWARD, "action_penalty": _RL | _ASKS | _OWN_REWARD,
    "overlong": _RL,
    "overlong_buffer": _RL | _OWN_REWARD | {"overlong": ("penalize",)},
    "baseline": _GRPO, "normalize_std": _GRPO | {"baseline": ("group", "batch", "group-batch")},
    "drop_zero_variance": _RL | _OF_A_GROUP, "dynamic_sampling": _GRPO | _OF_A_GROUP,
    "loss_aggregation": _RL | _OWN_WEIGHTS,
    "ratio": _RL, "clip_eps": _RL | {"surrogate": ("clip",)}, "clip_eps_high": _RL, "kl_coef": _RL,
    "kl_estimator": _RL | {"kl_coef": 0}, "entropy_coef": _RL,
    "importance_cap": _RL, "importance_mode": _RL | {"importance_cap": 0}, "llds_coef": _GRPO,
    "surrogate": _RL, "sapo_coef": _GRPO, "sapo_threshold": {"sapo_coef": 0},
    "turn_coef": _GRPO | _OF_A_GROUP | _SOUND | {"bug": (None,)}, "turn_gamma": {"turn_coef": 0},
    "tree_branches": _GRPO | _SEARCHES | _OF_A_GROUP | _SOUND | {"bug": (None,)},
    "critic_learning_rate": _PPO, "critic_warmup_steps": _PPO, "gamma": _PPO, "gae_lambda": _PPO, "value_clip": _PPO,
    "mask_observations": _RL | _SEARCHES, "bug": _RL | _SOUND, "mystery": _GRPO | _SEARCHES,
    "lora_alpha": {"lora_rank": 0}, "check": _RL | _SOUND, "memory_limit": {"memory_check": (True,)},
    "rollout_weights": {"load_in_4bit": (True,)},
}  # fmt: skip
# (option, one of its needs) -> options that read it too where they are above 0, though that need is not met
READ_TOO = {("normalize_std", "baseline"): ("turn_coef", "tree_branches")}


def check_ranges(config: Any) -> None:
    """Refuses what no flag could have set: another type, an unknown choice, a number out of its range, text that no
    file system or model could take.

    Args:
        config: a dataclass of options.

    Raises:
        UserError: names the flag, its value, and what it must be.
    """
    hints = type_hints(type(config))
    for name, option in options_of(type(config)).items():
        value = get(config, name)
        if fault := fault_of(option, hints[name], value):
            raise refused(flag_name(name), hints[name], value, fault)


def fault_of(option: Field, hint: Any, value: Any) -> str | None:
    """Tells what an option's value must be, and is not: of its type, a known choice, in its range; None where it is."""
    return fault_of_type(hint, value) or fault_in_range(option, value)


def fault_of_type(hint: Any, value: Any) -> str | None:
    """Tells which type, or which choice, a value must be of, and is not."""
    kind, *others = split_union(hint)
    if value is None and type(None) in others:
        return None
    if choices := get_args(kind):
        if value in choices or (str in others and is_own(value)):
            return None
        return f"one of {', '.join(choices)}" + (", or a part of your own as FILE.py:NAME" if str in others else "")
    is_fit = isinstance(value, (int, float) if kind is float else kind)
    return None if is_fit and (kind is bool or not isinstance(value, bool)) else WANTED[kind]


def fault_in_range(option: Field, value: Any) -> str | None:
    """Tells which bound a value of the right type breaks."""
    if isinstance(value, str):
        return fault_of_text(option.name, value)
    if value is None or isinstance(value, bool):
        return None
    least, above, most = (option.metadata[name] for name in ("least", "above", "most"))
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if above is not None and not value > above:
        return f"above {above}"
    if least is not None and not value >= least:
        return f"at least {least}"
    return f"at most {most}" if most is not None and value > most else None


def fault_of_text(name: str, text: str) -> str | None:
    """Tells what text must be to be a path that can be opened, by Python, and but for data by other libraries too."""
    errors = "surrogateescape" if name in OPENED_BY_PYTHON else "strict"
    try:
        parts = text.encode(errors=errors).replace(b",", b"/").split(b"/")
    except UnicodeEncodeError:
        return "text in UTF-8"
    if b"\0" in text.encode(errors=errors):
        return "text without the character NUL"
    if name != "ask" and max(map(len, parts)) > MOST_NAME:
        return f"made of names of at most {MOST_NAME} bytes"
    return None


def refused(told: str, hint: Any, value: Any, fault: str) -> UserError:
    """Returns the error about a value; `told` is what the sentence calls its option."""
    near = suggest(str(value)[:SHOWN].lower(), get_args(split_union(hint)[0]))
    return UserError(f"{told} {shown(value)}: it must be {fault}{near}")


def convert(name: str, value: Any, hint: Any) -> Any:
    """Converts the word after a flag, or a yaml value, to its option's type; `name` is how the error calls it.

    Raises:
        UserError: it is of another type, or no known choice.
    """
    kinds = split_union(hint)
    if value in (None, "None") and type(None) in kinds:
        return None
    if value in (None, ""):
        raise UserError(f"{name} needs a value")
    meant = spelled_out(str(value), kinds[0])
    if fault := fault_of_type(hint, meant):
        raise refused(name, hint, value, fault)
    return meant


def spelled_out(text: str, kind: Any) -> Any:
    """Returns the number or the truth value that a text spells; text of any other kind, or of none, as it is."""
    if kind is bool:
        return {"True": True, "False": False}.get(text, text)
    is_foreign = text.strip() != text or not text.isascii()  # int() takes digits of any script
    try:
        return kind(text) if kind in (int, float) and not is_foreign else text
    except ValueError:
        return text


def split_union(hint: Any) -> tuple:
    """Splits a hint, `int | None` -> (int, NoneType); a Literal stays whole."""
    return (hint,) if get_origin(hint) in (None, Literal) else get_args(hint)


def shown(value: Any) -> str:
    """Shows a value in a sentence, cut where it is long."""
    return cut_short(str(value))


def check_saved(path: Path, saved: Mapping[str, Any], config_class: type) -> None:
    """Refuses a saved option that no flag could have set, as `check_ranges` does.

    Args:
        path: the file that `saved` was read from.
        config_class: what it is to become; names that it does not have are passed over.

    Raises:
        UserError: the file is damaged; names the option and its value.
    """
    hints = type_hints(config_class)
    for name, option in options_of(config_class).items():
        if name in saved and (fault := fault_of(option, hints[name], saved[name])):
            raise UserError(
                f"{path} is damaged: {name} is {shown(repr(saved[name]))}, and must be {fault}; put back a copy of it, "
                "or name another run"
            )


def idle(config: Any, needs: Mapping[str, Needs]) -> dict[str, tuple[str, str]]:
    """Maps options that a config does not read to what stands in their way, and what they need, in words."""
    found: dict[str, tuple[str, str]] = {}
    for name, conditions in needs.items():
        for other, wanted in conditions.items():
            value = get(config, other)
            if isinstance(wanted, tuple):
                is_met, need = value in wanted or is_own(value), spelled(other, wanted[0])
                need += "".join(f" or {each}" for each in wanted[1:] if wanted[0] is not None)
            else:
                is_met, need = (value or 0) > wanted, f"{flag_name(other)} above {wanted}"
            readers = READ_TOO.get((name, other), ())
            need += "".join(f" or {flag_name(each)} above 0" for each in readers)
            if not is_met and not any(get(config, each) > 0 for each in readers):
                found[name] = spelled(other, value), need
                break
    return found


def spelled(name: str, value: Any) -> str:
    """Spells an option as it is written on a command line: `--no-memory-check`, `--lora-rank 0`."""
    if value is None or value is False:
        return "--no-" + name.replace("_", "-") if value is False else f"no {flag_name(name)}"
    return flag_name(name) if value is True else f"{flag_name(name)} {shown(value)}"


def refuse_idle(
    given: Any, resolved: Any, bare: Any, needs: Mapping[str, Needs], unasked: Collection[str] = ()
) -> None:
    """Refuses an option that the run would not read, rather than letting it do nothing.

    Args:
        given, resolved: the config as it was asked for, and as it will be used.
        bare: what `resolved` would be had nobody asked for the idle options; to ask for that is no fault.
        needs: see `NEEDS`.
        unasked: names whose values come from a preset or an earlier run: they may be idle.

    Raises:
        UserError: names the flag, what stands in its way, and the remedy.
    """
    for name, (obstacle, need) in idle(resolved, needs).items():
        if name not in unasked and get(given, name) not in (default_value(type(given), name), get(bare, name)):
            raise UserError(f"{flag_name(name)} does nothing with {obstacle}; it needs {need}; otherwise leave it out")


def without(config: Any, names: Collection[str]) -> Any:
    """Returns the config with some options at their defaults."""
    return with_options(config, **{name: default_value(type(config), name) for name in names})
