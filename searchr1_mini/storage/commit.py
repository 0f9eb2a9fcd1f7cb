"""The commit that this code is of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

DIRTY = "-dirty"


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


def short(commit: str) -> str:
    """Returns a commit as people write it: nine digits, and whether the code was changed since."""
    return commit.removesuffix(DIRTY)[:9] + (DIRTY if commit.endswith(DIRTY) else "")
