"""Packages that only some options need."""

from __future__ import annotations

import importlib
from types import ModuleType

from searchr1_mini.core.errors import UserError


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an extra of this package.

    Raises:
        UserError: it is not installed, or broken; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f'{error}; run `pip install -e ".[{extra}]" -c constraints.txt` in its folder') from error
