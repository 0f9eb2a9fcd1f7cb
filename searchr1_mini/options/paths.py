"""Paths on the command line: a home, and the newest run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.needs import shown
from searchr1_mini.options.nested import flag_of


def at_home(name: str, value: Any) -> Any:
    """Spells out `~/runs`, as a shell does where it stands alone; other values stay as they are.

    Raises:
        UserError: nobody knows where that home is.
    """
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise UserError(
            f"{flag_of(name)} {shown(value)}: {value.split('/')[0]} is no known home; write ./~ for a name of that form"
        )
    return path


def latest_run() -> str:
    """Returns the folder below runs/ in which a run was begun last.

    Raises:
        UserError: there is none.
    """
    begun = {path.parent: path.stat().st_mtime for path in Path("runs").glob("*/config.json")}
    if not begun:
        raise UserError("latest: there is no run below runs/ yet; name a run's folder")
    return str(max(begun, key=begun.__getitem__))
