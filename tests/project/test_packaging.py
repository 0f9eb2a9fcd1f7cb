"""What keeps the repository in shape: the direction of imports, and what ships."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "searchr1_mini"
# each room may import itself and those before it; "" is the package's root, which holds the commands
ROOMS = [*"core variants storage models retrievers data options run pages evaluation chat ablations tiny".split(), ""]


def room_of(module: Sequence[str]) -> str:
    """The room of a dotted name, less the package's own."""
    return module[0] if module and (PACKAGE / module[0]).is_dir() else ""


def rooms_imported(path: Path) -> Iterator[tuple[str, str]]:
    """(room, what is imported of it) for every import of the package's own modules, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "searchr1_mini":
            for alias in node.names:
                module = [*node.module.split(".")[1:], alias.name]
                if module != ["__version__"]:
                    yield room_of(module), ".".join(module)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_those_before_it(path):
    own = ROOMS.index(room_of(path.relative_to(PACKAGE).with_suffix("").parts))
    assert not [imported for room, imported in rooms_imported(path) if ROOMS.index(room) > own]


def reached_from(module: str, seen: set[str]) -> set[str]:
    """Dotted names of the package's modules that importing one brings in, itself included."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    if module in seen or not path.is_file():
        return seen
    seen.add(module)
    for _, imported in rooms_imported(path):
        for name in (imported, imported.rpartition(".")[0]):
            reached_from(name, seen)
    return seen


def test_the_loop_fits_a_screen_and_reaches_the_core_alone():
    reached = reached_from("core.training", set())
    assert len(reached) > 20 and {module.split(".")[0] for module in reached} == {"core"}
    files = [PACKAGE / (module.replace(".", "/") + ".py") for module in reached] + [PACKAGE / "core" / "__init__.py"]
    n_lines = {file.name: len(file.read_text().splitlines()) for file in files}
    assert sum(n_lines.values()) <= 3200, n_lines
    tree = ast.parse((PACKAGE / "core" / "training.py").read_text())
    (loop,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train_policy")
    assert loop.end_lineno - loop.lineno + 1 <= 60


def test_the_tiny_base_ships_and_is_small():
    files = list((PACKAGE / "tiny_base").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < 5_000_000


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    """Not only a clone: whoever installs the package without -e gets what is in the wheel and no more."""
    pytest.importorskip("setuptools", reason="setuptools is not installed, which builds the wheel")
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {str(file.relative_to(source)) for file in (source / PACKAGE.name).rglob("*") if file.is_file()}


def test_files_are_short_enough_to_read():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_names_of_tests_are_short_enough_to_read():
    names = re.findall(r"def (test_\w+)", "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py")))
    assert len(names) > 1000 and [name for name in names if len(name) > 60] == []


def test_no_function_stands_in_two_modules():
    """Whatever it is called: the same parameters and the same lines."""
    homes: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                lines = node.body[ast.get_docstring(node) is not None :]
                homes.setdefault("".join(map(ast.dump, [node.args, *lines])), []).append(f"{path.name}: {node.name}")
    assert [places for places in homes.values() if len(places) > 1] == []


def test_the_method_can_be_read_in_an_afternoon():
    """The reading list of docs/architecture.md is the core, each module once, and about as long as it says."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## The method, in an afternoon")[1].split("## All modules")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    modules = re.findall(r"`(\w+\.py)`", "\n".join(rows))
    assert sorted(modules) == sorted(modules_of("core"))
    n_lines = sum(len((PACKAGE / "core" / module).read_text().splitlines()) for module in modules)
    assert n_lines < 4000
    for told in (section, (ROOT / "README.md").read_text()):
        n_told, lines_told = re.search(r"(\d+) modules,\s+about\s+([\d,]+)\s+lines", told).groups()
        assert int(n_told) == len(modules) and abs(n_lines - int(lines_told.replace(",", ""))) <= 100


def modules_of(room: str) -> list[str]:
    """The names of a room's files, those in folders inside included, less `__init__.py`."""
    folder = PACKAGE / room
    return [path.name for path in (folder.rglob if room else folder.glob)("*.py") if path.stem != "__init__"]


def test_every_module_is_in_the_table_of_modules_once():
    """Under its room, whose rows stand in the order of the imports."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `?(\w+)/?`? \| (`.+?`) \| .+ \|$", page.split("## All modules")[1], re.MULTILINE)
    named: dict[str, list[str]] = {}
    for room, modules in rows:
        named.setdefault(room.replace("commands", ""), []).extend(re.findall(r"`([^`]+)`", modules))
    assert list(named) == ROOMS
    for room, modules in named.items():
        assert sorted(modules) == sorted(modules_of(room)), room


def test_the_page_tells_the_order_of_imports():
    section = (ROOT / "docs" / "architecture.md").read_text().split("## Rooms")[1].split("\n## ")[0]
    assert section.split("\n    ")[1].splitlines()[0].split() == [*ROOMS[:-1], "(commands)"]
