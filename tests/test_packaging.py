"""What keeps the repository in shape: the direction of imports, and what ships."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "searchr1_mini"
LEAVES = {"errors", "trajectory", "prompts", "rewards", "algorithms", "logprobs", "defaults"}
KNOW_THE_CONFIG = set(
    "cli resolve task session training update ablate evaluate plan columns tables server retrieval_config eval_config "
    "export model_card memory preflight report live".split()
)


def imports_of(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("searchr1_mini"):
            tail = node.module.split(".")[1:]
            found |= set(tail) if tail else {alias.name for alias in node.names}
    return found - {"__version__"}


GRAPH = {path.stem: imports_of(path) for path in PACKAGE.glob("*.py")}


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
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 330, path.name
