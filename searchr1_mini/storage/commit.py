"""The commit that this code is of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Reads the commit of the repository that this package lies in; None where it is installed without one."""
    repository, git = Path(__file__).parents[2], shutil.which("git")
    if not git or not (repository / ".git").exists():  # an installed package may lie in somebody else's repository
        return None
    told = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, cwd=repository).stdout
    return told.strip() or None
