"""What a base is called in files that others get to see: never by where it lies on this machine."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def base_name(source: str) -> str:
    """Returns a hub id as it is, also that of a folder in the hub's cache; of another folder the name alone."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return source
    cached = next((part for part in path.resolve().parts if part.startswith("models--")), None)
    return "/".join(cached.split("--")[1:]) if cached else path.resolve().name


def is_same_name(one: str, other: str) -> bool:
    """Tells whether two names may mean one model, as a hub id and a folder that is called like it."""
    last = [re.split(r"[/\\]", base_name(name).rstrip("/\\"))[-1].casefold() for name in (one, other)]
    return last[0] == last[1]


def is_instructed(name: str) -> bool:
    """Tells whether a model was taught to follow instructions, by its name: many bases have a chat template too."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    words = set(re.findall("[a-z0-9]+", last))
    return bool(words & {"instruct", "chat", "it"}) or (last.startswith("qwen3") and "base" not in words)


def base_revision(source: str) -> str | None:
    """Returns the commit on the hub that this machine holds of a hub id; None where there is none."""
    path = Path(source).expanduser()
    if not path.is_dir():
        from huggingface_hub import try_to_load_from_cache  # heavy

        found = try_to_load_from_cache(source, "config.json") if source.count("/") == 1 else None
        path = Path(found).parent if isinstance(found, str) else path
    return path.resolve().name if path.resolve().parent.name == "snapshots" else None
