"""Files of the user's own: those of a folder are imported apart from all others, and anew once one was edited."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from searchr1_mini.models.identity import digest

PROGRAM = __name__.partition(".")[0]  # stays itself where a file of the user's own lies beside it
FOLDERS: dict[str, Path] = {}  # by the name of the package that a folder is


class Own(NamedTuple):
    """A module of the user's own, and what it was made of.

    Attributes:
        contents: of its file, and of those of its folder that it imports, at once or in the midst of a function.
    """

    module: ModuleType
    folder: Path
    contents: Mapping[Path, bytes]


def load(place: Path | str) -> Own:
    """Imports a file, or a dotted name that lies in the current folder or is installed.

    A file is executed once, and again after it, or one that it imports from its folder, was edited. What is installed
    is not looked at again.

    Raises:
        Exception: whatever its code raises.
    """
    is_file = isinstance(place, Path)
    folder = place.parent if is_file else Path.cwd()
    file = place if is_file else module_file(folder, place)
    if file is None or (not is_file and place.partition(".")[0] == PROGRAM):
        return installed(place)
    package = package_of(folder)
    importlib.invalidate_caches()  # a file may be new
    forget_edited(package)
    name = f"{package}.{place.stem if is_file else place}"
    if not is_file:
        importlib.import_module(name)
    elif getattr(sys.modules.get(name), "__file__", None) != str(file):
        execute(name, file)
    module = sys.modules[name]
    return Own(module, folder, module.__contents__)


@lru_cache(maxsize=16)
def installed(place: str) -> Own:
    """Imports a dotted name that does not lie in the current folder, once."""
    module = importlib.import_module(place)
    file = Path(getattr(module, "__file__", None) or "")
    return Own(module, file.parent, {file: file.read_bytes()} if file.is_file() else {})


def execute(name: str, file: Path) -> None:
    """Executes a file as the module of this name, whatever its own name is."""
    spec = importlib.util.spec_from_file_location(name, file, loader=OwnLoader(name, str(file)))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise


def package_of(folder: Path) -> str:
    """Returns the name of the package that a folder is, under which no other folder's modules lie."""
    name = f"own_{digest(str(folder).encode())[:8]}"
    if not FOLDERS:
        sys.meta_path.insert(0, OwnFinder())
    if name not in FOLDERS:
        FOLDERS[name] = folder
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations.append(str(folder))
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


class OwnFinder(MetaPathFinder):
    """Finds modules of those packages, as Python finds any, and has them loaded as below."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Finds a module; None where it lies in no such package."""
        package = fullname.partition(".")[0]
        spec = PathFinder.find_spec(fullname, path) if package in FOLDERS else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = OwnLoader(fullname, spec.loader.path)
        return spec


class OwnLoader(SourceFileLoader):
    """Loads a file as it is now, whose imports, whenever they happen, look into its folder first."""

    def get_code(self, fullname: str) -> CodeType:
        """Reads the file itself, never its bytecode, which an edit within a second leaves as it was."""
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module: ModuleType) -> None:
        """Executes the file, and keeps what the module was made of."""
        package = module.__name__.partition(".")[0]
        module.__contents__ = contents_of(Path(self.path), FOLDERS[package])
        # an import statement calls the __import__ among the builtins of its module
        module.__builtins__ = vars(builtins) | {"__import__": partial(import_beside, package)}
        super().exec_module(module)


def import_beside(
    package: str, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0
) -> ModuleType:
    """Imports as `__import__` does, but what lies in the folder before what is installed."""
    top = name.partition(".")[0]
    if level or not is_beside(package, top):
        return importlib.__import__(name, globals, locals, fromlist, level)
    module = importlib.__import__(f"{package}.{name}", globals, locals, fromlist)
    return module if fromlist else sys.modules[f"{package}.{top}"]


def is_beside(package: str, top: str) -> bool:
    """Tells whether a name is that of a module in the folder."""
    spec = None if top == PROGRAM else importlib.util.find_spec(f"{package}.{top}")
    if spec is None or spec.has_location:
        return spec is not None
    # a folder without __init__.py comes after what is installed, as it does elsewhere
    return top not in sys.modules and importlib.util.find_spec(top) is None


def forget_edited(package: str) -> None:
    """Has modules of a folder executed anew whose contents are no longer those that were executed."""
    for name, module in list(sys.modules.items()):
        contents = getattr(module, "__contents__", None) if name.startswith(f"{package}.") else None
        if contents is None:
            continue
        file = Path(module.__file__)
        if not file.is_file() or contents_of(file, FOLDERS[package]) != contents:
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:  # else `from . import child` would find the old one
                vars(sys.modules[parent]).pop(child, None)


def contents_of(file: Path, folder: Path) -> dict[Path, bytes]:
    """Reads a file, and those of its folder that it imports, wherever in it; and what these import, and so on."""
    contents: dict[Path, bytes] = {}
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file in contents or not file.is_relative_to(folder):
            continue
        contents[file] = file.read_bytes()
        inside = [parent for parent in file.parents if parent != folder and parent.is_relative_to(folder)]
        waiting += [path for parent in inside if (path := parent / "__init__.py").is_file()]
        for level, dotted in imports_in(contents[file]):
            waiting += files_named(file.parents[level - 1] if level else folder, dotted)
    return contents


@lru_cache(maxsize=1024)
def imports_in(source: bytes) -> list[tuple[int, str]]:
    """Lists what import statements name, each with its number of leading dots; of what is no Python, nothing."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # which is told when it is executed
        return []
    plain = [(0, alias.name) for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    froms = [(node, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return plain + [(node.level, f"{node.module or ''}.{name}".strip(".")) for node, name in froms]


def files_named(base: Path, dotted: str) -> Iterator[Path]:
    """Yields the files of `a`, `a.b` and `a.b.c` in a folder, as far as there are any."""
    parts = dotted.split(".")
    if parts[0] != PROGRAM:
        found = (module_file(base, ".".join(parts[:n])) for n in range(1, len(parts) + 1))
        yield from (file for file in found if file is not None)


def module_file(base: Path, dotted: str) -> Path | None:
    """Returns the file of a module in a folder; None where there is none."""
    place = base.joinpath(*dotted.split("."))
    both = (place / "__init__.py", place.parent / f"{place.name}.py")
    return next((file for file in both if file.is_file()), None)
