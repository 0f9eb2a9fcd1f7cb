"""Pages that need no request: a template with its parts, and a policy by which nothing else is run or loaded."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from searchr1_mini.storage.files import write_text_atomic


def write_page(path: Path, template: Path, parts: Mapping[str, str], style: str, script: str = "") -> Path:
    """Writes a template with its `{{parts}}`, `{{style}}`, `{{script}}` and `{{policy}}`, which allows just these two.

    Args:
        parts: HTML by name; foreign text in it is already escaped.
    """
    allowed = f"script-src '{_hash(script)}'; " if script else ""
    policy = f"default-src 'none'; {allowed}style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    filled = {**parts, "style": style, "script": script, "policy": policy}
    page = template.read_text(encoding="utf-8")
    write_text_atomic(path, re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], page))
    return path


def _hash(source: str) -> str:
    """As a content security policy names an inline script or style that may be used."""
    return "sha256-" + b64encode(sha256(source.encode()).digest()).decode()
