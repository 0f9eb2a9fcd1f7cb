"""The commit that this code is of, and those that a run was trained at."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from searchr1_mini.storage.files import read_json, write_json_atomic

DIRTY = "-dirty"
RESUMED = "resumed_at.json"  # the commits that a run was resumed at, beside the config.json of the one that began it


def git_commit() -> str | None:
    """Reads the commit of the repository that this package lies in, with `-dirty` where its code is another than that.

    None where it is installed without a repository.
    """
    package, git = Path(__file__).parents[1], shutil.which("git")
    if not git or not (package.parent / ".git").exists():  # an installed package may lie in somebody else's repository
        return None

    def told(*words: str) -> str:
        return subprocess.run([git, *words], capture_output=True, text=True, cwd=package).stdout.strip()

    commit, changed = told("rev-parse", "HEAD"), told("--no-optional-locks", "status", "--porcelain", "--", ".")
    return (commit + DIRTY if changed else commit) or None


def keep_commit(run_dir: Path, commit: str | None) -> None:
    """Keeps the commit that a run is resumed at, where that is another than those before."""
    known = trained_at(run_dir)
    if commit not in known:
        write_json_atomic(run_dir / RESUMED, {"commits": [*known[1:], commit]})


def trained_at(run_dir: Path) -> list[str | None]:
    """Returns the commits that a run began and was resumed at, each once; None is one that nobody can tell.

    Raises:
        UserError: its config.json or resumed_at.json is damaged.
    """
    began, path = read_json(run_dir / "config.json").get("git_commit"), run_dir / RESUMED
    resumed = read_json(path, {"commits": [(str, None)]})["commits"] if path.is_file() else []
    return list(dict.fromkeys([began if isinstance(began, str) else None, *resumed]))


def all_trained_at(run_dirs: Iterable[Path]) -> list[str | None]:
    """Returns the commits of several runs in order, each once, one that nobody can tell first."""
    return sorted({commit for run_dir in run_dirs for commit in trained_at(run_dir)}, key=lambda each: each or "")


def named(commit: str | None) -> str:
    """Returns `commit 123456789`, or that it is an unknown one."""
    return short(commit) if commit is None else f"commit {short(commit)}"


def short(commit: str | None) -> str:
    """Returns a commit as people write it: nine digits, and whether the code was changed since."""
    if commit is None:
        return "an unknown commit"
    return commit.removesuffix(DIRTY)[:9] + (DIRTY if commit.endswith(DIRTY) else "")
