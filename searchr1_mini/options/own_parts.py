"""Parts of the user's own (`my_rewards.py:brevity`, `package.module:brevity`), imported and checked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.models.identity import digest

FITS = {  # option -> what it is called with, and how that reads
    "reward": (("trajectory", "example"), "a function of a trajectory and its example that returns a number"),
    "retriever": (("passages",), "a class made from a list of passages, with search(queries, topk)"),
    "method": (("question",), "a generator function of a question, see searchr1_mini/core/methods.py"),
}


def is_own(value: Any) -> bool:
    """Tells whether an option names a part of the user's own: not an address, and not a path with a drive."""
    return isinstance(value, str) and ":" in value and value.rpartition(":")[2].isidentifier()


def own_part(option: str, value: str) -> Callable:
    """Imports the object that an option names.

    Raises:
        UserError: there is no such file, module or name, it cannot be imported, or it does not fit.
    """
    where, _, name = value.rpartition(":")
    part = getattr(load_module(option, where), name, None)
    if part is None:
        known = [known for known in vars(load_module(option, where)) if not known.startswith("_")]
        raise UserError(f"--{option} {value}: {where} has no {name}{suggest(name, known)}")
    given, wanted = FITS[option]
    is_fit = callable(part) and takes(part, given)
    if option == "retriever":
        search = getattr(part, "search", None)
        is_fit = is_fit and callable(search) and takes(search, ("self", "queries", "topk"))
    if option == "method":
        is_fit = is_fit and inspect.isgeneratorfunction(part)
    if not is_fit:
        raise UserError(f"--{option} {value}: {name} does not fit; it must be {wanted}")
    return part


@lru_cache(maxsize=16)
def load_module(option: str, where: str) -> Any:
    """Imports the module of a file or a dotted name.

    Raises:
        UserError: it is not there, or cannot be imported.
    """
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise UserError(f"--{option} {where}: there is no such file; name one as my_{option}s.py:NAME")
        spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:  # whatever code of the user's own raises
        told = " ".join(str(error).split())[:200]
        raise UserError(f"--{option} {where} cannot be imported ({type(error).__name__}: {told}); fix it") from error


def own_hashes(values: Mapping[str, str]) -> dict[str, str]:
    """Hashes the files of the parts of the user's own among the values of some options; by file.

    Raises:
        UserError: as `own_part`.
    """
    places = {option: value.rpartition(":")[0] for option, value in values.items() if is_own(value)}
    files = {place: inspect.getsourcefile(load_module(option, place)) for option, place in places.items()}
    return {place: digest(Path(file).read_bytes()) for place, file in files.items() if file}


def takes(function: Callable, names: tuple[str, ...]) -> bool:
    """Tells whether a function can be called with so many arguments by position."""
    try:
        inspect.signature(function).bind(*names)
    except (TypeError, ValueError):
        return False
    return True


def own_method(value: str, **settings: Any) -> MakeMethod:
    """Returns a method of the user's own, with those of these settings that it has a parameter for."""
    function = own_part("method", value)
    has = inspect.signature(function).parameters
    return partial(function, **{name: setting for name, setting in settings.items() if name in has})
