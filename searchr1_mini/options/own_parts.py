"""Parts of the user's own (`my_rewards.py:brevity`, `package.module:brevity`), imported and checked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.models.identity import digest
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
    module = load_module(option, where)
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


def load_module(option: str, where: str) -> ModuleType:
    """Imports the module of a file or a dotted name, once, whichever options name it.

    Raises:
        UserError: it is not there, or cannot be imported.
    """
    return imported(option, where)[0]


def imported(option: str, where: str) -> tuple[ModuleType, dict[str, Path]]:
    """Imports a module as `load_module` does; returns its files with it, see `execute`.

    Raises:
        UserError: as `load_module`.
    """
    place = Path(where).resolve() if where.endswith(".py") else where
    if isinstance(place, Path) and not place.is_file():
        raise UserError(f"--{option} {where}: there is no such file; name one as my_{option}s.py:NAME")
    try:
        return execute(place)
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"--{option} {Path(where).name} leaves the program when it is imported; put what runs it as a script under "
            'if __name__ == "__main__":'
        ) from error
    except Exception as error:  # whatever code of the user's own raises
        raise UserError(f"--{option} {Path(where).name} cannot be imported ({in_one_line(error)}); fix it") from error


@lru_cache(maxsize=16)
def execute(place: Path | str) -> tuple[ModuleType, dict[str, Path]]:
    """Executes a file, or imports a dotted name, with modules beside it (in the current folder) within reach.

    Returns:
        The module; its file and those that it imported from that folder, by their names in the folder.
    """
    folder = place.parent if isinstance(place, Path) else Path.cwd()
    before = set(sys.modules)
    importlib.invalidate_caches()  # a file may be new
    sys.path.insert(0, str(folder))
    try:
        module = execute_file(place) if isinstance(place, Path) else importlib.import_module(place)
    finally:
        sys.path.remove(str(folder))
    new = [found for name, found in sys.modules.items() if name not in before and not name.startswith("searchr1_mini.")]
    paths = [Path(file) for found in new if (file := getattr(found, "__file__", None))]
    beside = [path for path in paths if path.is_relative_to(folder) and "site-packages" not in path.parts]
    files = {path.relative_to(folder).as_posix(): path for path in beside}
    file = inspect.getsourcefile(module)
    return module, files if file is None or Path(file) in beside else {Path(file).name: Path(file)} | files


def execute_file(path: Path) -> ModuleType:
    """Executes a file as a module of its own, whose name no other file's has."""
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}_{digest(str(path).encode())[:8]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def own_hashes(values: Mapping[str, str]) -> dict[str, str]:
    """Hashes the files of the parts of the user's own among the values of some options; by name, without folders.

    Raises:
        UserError: as `own_part`.
    """
    named: dict[str, set[Path]] = {}
    for option, value in values.items():
        if is_own(value) and not is_from_python(value):
            for name, path in imported(option, value.rpartition(":")[0])[1].items():
                named.setdefault(name, set()).add(path)
    return {name: digest(b"".join(path.read_bytes() for path in sorted(paths))) for name, paths in named.items()}


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
