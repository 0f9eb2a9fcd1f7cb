"""What keeps the repository in shape: the direction of imports, and what ships."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "searchr1_mini"
LEAVES = {"errors", "trajectory", "prompts", "rewards", "algorithms", "logprobs", "defaults"}
KNOW_THE_CONFIG = set(
    "cli options resolve task session schedule held_out training update ablate evaluate plan columns tables server "
    "retrieval_config eval_config export model_card memory preflight report live cold_start diagnosis shots "
    "pretrain".split()
)


def imports_of(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("searchr1_mini"):
            tail = node.module.split(".")[1:]
            is_folder = (PACKAGE.joinpath(*tail)).is_dir()
            found |= {alias.name for alias in node.names} if is_folder else {tail[-1]}
    return found - {"__version__"}


GRAPH = {path.stem: imports_of(path) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}


def test_imports_go_one_way():
    for leaf in LEAVES:
        assert GRAPH[leaf] <= {"errors", "trajectory"}, leaf
    assert {module for module, imported in GRAPH.items() if "training" in imported} == {"ablate", "plan"}
    for low in ("data", "retrieval", "world", "methods"):
        assert not GRAPH[low] & {"generation", "rollout", "models", "batch", "session"}, low
    for module, imported in GRAPH.items():
        assert "config" not in imported or module in KNOW_THE_CONFIG, module


def test_there_is_no_cycle():
    rest = dict(GRAPH)
    while free := [module for module, imported in rest.items() if not imported & set(rest)]:
        for module in free:
            del rest[module]
    assert not rest


def test_the_tiny_base_ships_and_is_small():
    files = list((PACKAGE / "tiny_base").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < 5_000_000


def test_files_are_short_enough_to_read():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_the_method_can_be_read_in_an_afternoon():
    """The reading list of docs/architecture.md: its modules exist, and their lines are about as many as it says."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## The method, in an afternoon")[1].split("## All modules")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    modules = re.findall(r"`(\w+\.py)`", "\n".join(rows))
    n_lines = sum(len((PACKAGE / module).read_text().splitlines()) for module in modules)
    assert len(modules) == 20 and n_lines < 4000
    told = int(re.search(r"about ([\d,]+) lines", section)[1].replace(",", ""))
    assert abs(n_lines - told) <= 100


def test_every_module_is_in_the_table_of_modules_once():
    table = (ROOT / "docs" / "architecture.md").read_text().split("## All modules")[1]
    named = re.findall(r"`(\w+\.py)`", table.split("Imports go one way")[0])
    named.remove("eval.py")
    assert sorted(named) == sorted(path.name for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
