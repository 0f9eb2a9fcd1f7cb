"""Files of questions and passages, as people have them."""

from __future__ import annotations

import gzip
import json


def write_lines(path, rows) -> str:
    """Writes rows (or lines as they are) to a .jsonl or .jsonl.gz file; returns its path."""
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)
