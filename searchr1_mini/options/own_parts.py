"""Parts of the user's own (`my_rewards.py:brevity`, `package.module:brevity`), imported and checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.models.identity import digest
from searchr1_mini.options.own_files import Own, load
from searchr1_mini.options.own_results import CheckedEngine, checked_method

FITS = {  # option -> what it is called with, and how that reads
    "reward": (("trajectory", "example"), "a function of a trajectory and its example that returns a number"),
    "retriever": (("passages",), "a class made from a list of passages, with search(queries, topk)"),
    "method": (("question",), "a generator function of a question, see searchr1_mini/core/methods.py"),
}
METHOD_SETTINGS = ("max_turns", "max_new_tokens", "topk")  # a method gets those that it has a parameter for
FROM_PYTHON = "python"  # the place of a function that was given to `train`


def is_own(value: Any) -> bool:
    """Tells whether an option names a part of the user's own: not an address, and not a path with a drive."""
    return isinstance(value, str) and ":" in value and value.rpartition(":")[2].isidentifier()


def is_from_python(value: Any) -> bool:
    """Tells whether an option names a function that was given to `train`."""
    return is_own(value) and value.rpartition(":")[0] == FROM_PYTHON


def from_python(function: Callable) -> str:
    """Names a function that was given to `train`, as config.json does: `python:brevity`."""
    name = getattr(function, "__name__", type(function).__name__).strip("<>")
    return f"{FROM_PYTHON}:{name}"


def with_whole_path(value: Any) -> Any:
    """Returns the same part with the whole path of its file, and any other value as it is."""
    where, _, name = str(value).rpartition(":")
    return f"{Path(where).resolve()}:{name}" if is_own(value) and where.endswith(".py") else value


def short_name(value: Any) -> Any:
    """Returns a part's name without the folder of its file, and any other value as it is."""
    return Path(value).name if is_own(value) else value


def told_name(value: str) -> str:
    """Returns what a sentence calls a part: its name without a folder, or that of a function from Python alone."""
    return value.rpartition(":")[2] if is_from_python(value) else short_name(value)


def own_part(option: str, value: str) -> Callable:
    """Imports the object that an option names.

    Raises:
        UserError: there is no such file, module or name, it cannot be imported, or it does not fit.
    """
    where, _, name = value.rpartition(":")
    if is_from_python(value):
        raise UserError(
            f"the {option} {name} was given to train() in Python, and is in no file; go on from there, by "
            f"train(config, {option}={name})"
        )
    module = imported(option, where).module
    part = getattr(module, name, None)
    if part is None:
        known = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(f"--{option} {told_name(value)}: {Path(where).name} has no {name}{suggest(name, known)}")
    check_fit(option, part, f"--{option} {told_name(value)}: {name}")
    return part


def check_fit(option: str, part: Any, told: str) -> None:
    """Refuses a part that cannot be called as it will be.

    Args:
        told: how the sentence calls it.

    Raises:
        UserError: says what it must be.
    """
    given, wanted = FITS[option]
    settings = dict.fromkeys(settings_of_method(part)) if option == "method" and callable(part) else {}
    is_fit = callable(part) and takes(part, given, settings) and not inspect.iscoroutinefunction(part)
    if option == "retriever":
        search = getattr(part, "search", None)
        is_fit = is_fit and callable(search) and takes(search, ("self", "queries", "topk"))
        is_fit = is_fit and not inspect.iscoroutinefunction(search)
    if not is_fit:
        raise UserError(f"{told} does not fit; it must be {wanted}")


def imported(option: str, where: str) -> Own:
    """Imports the module of a file or a dotted name; whichever options name it, it is one.

    Raises:
        UserError: it is not there, or cannot be imported.
    """
    place = Path(where).resolve() if where.endswith(".py") else where
    if isinstance(place, Path) and not place.is_file():
        raise UserError(f"--{option} {where}: there is no such file; name one as my_{option}s.py:NAME")
    try:
        return load(place)
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"--{option} {Path(where).name} leaves the program when it is imported; put what runs it as a script under "
            'if __name__ == "__main__":'
        ) from error
    except Exception as error:  # whatever code of the user's own raises
        raise UserError(f"--{option} {Path(where).name} cannot be imported ({in_one_line(error)}); fix it") from error


def own_hashes(values: Mapping[str, str]) -> dict[str, str]:
    """Hashes the files of the parts of the user's own among the values of some options, as they were executed.

    Returns:
        Hashes by the names of the files within their folders; of files by one name a single one.

    Raises:
        UserError: as `own_part`.
    """
    named: dict[str, dict[Path, bytes]] = {}
    for option, value in values.items():
        if is_own(value) and not is_from_python(value):
            _, folder, contents = imported(option, value.rpartition(":")[0])
            for path, content in contents.items():
                named.setdefault(path.relative_to(folder).as_posix(), {})[path] = content
    return {name: digest(b"".join(content for _, content in sorted(files.items()))) for name, files in named.items()}


def source_hash(function: Callable) -> str:
    """Hashes the source of a function, or of an object's class; "" where it is in no file."""
    while isinstance(function, partial):
        function = function.func
    try:
        return digest(inspect.getsource(function if inspect.isroutine(function) else type(function)).encode())
    except (OSError, TypeError):
        return ""


def takes(function: Callable, names: Sequence[str], settings: Mapping[str, Any] | None = None) -> bool:
    """Tells whether a function can be called with so many arguments by position, and these by name."""
    try:
        inspect.signature(function).bind(*names, **settings or {})
    except (TypeError, ValueError):
        return False
    return True


def settings_of_method(method: Callable) -> list[str]:
    """Returns those of `METHOD_SETTINGS` that a method has a parameter for, which takes them by name."""
    try:
        has = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in METHOD_SETTINGS if name in has and has[name].kind != inspect.Parameter.POSITIONAL_ONLY]


def unread_settings(method: str) -> list[str]:
    """Lists those of `METHOD_SETTINGS` that a method of the user's own has no parameter for; none of a built-in one.

    Raises:
        UserError: as `own_part`.
    """
    if not is_own(method):
        return []
    read = settings_of_method(own_part("method", method))
    return [name for name in METHOD_SETTINGS if name not in read]


def own_method(value: str, **settings: Any) -> MakeMethod:
    """Returns a method of the user's own, with those of these settings that it has a parameter for."""
    function = own_part("method", value)
    given = {name: settings[name] for name in settings_of_method(function) if name in settings}
    return checked_method(partial(function, **given), told_name(value))


def own_engine(value: str, passages: Sequence[Passage]) -> CheckedEngine:
    """Makes an engine of the user's own from the passages.

    Raises:
        UserError: as `own_part`, or it cannot be made.
    """
    make = own_part("retriever", value)
    try:
        return CheckedEngine(make(passages), told_name(value))
    except UserError:
        raise
    except Exception as error:  # whatever code of the user's own raises
        raise UserError(
            f"--retriever {told_name(value)} cannot be made from the passages ({in_one_line(error)}); fix it"
        ) from error


def in_one_line(error: Exception) -> str:
    """Tells what an error was, shortly."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
