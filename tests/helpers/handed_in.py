"""Runs as students hand them in: a summary.json with its settings, and a config.json, without the training."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from helpers.report_runs import PART

from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import flat
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.evaluations import NO_SETTINGS


def measured(one_hop: float, two_hops: float, n: int = 200) -> dict[str, Any]:
    """An evaluation of `n` questions, half of them of each number of hops."""
    parts = {f"world-{hops}hop": {**PART, "em": em, "n": n // 2} for hops, em in ((1, one_hop), (2, two_hops))}
    return {**PART, "em": (one_hop + two_hops) / 2, "n": n, "by_source": parts}


@cache
def settings_with(flags: str) -> dict[str, Any]:
    """Every option of train.py with these flags."""
    return flat(resolve(*parse_asked(TrainConfig, "train.py", "", flags.split())))


def hand_in(folder: Path, one_hop: float, two_hops: float, flags: str = "", emptied: float = 0.0, n: int = 200) -> Path:
    """Writes the files of a finished run of train.py with these flags."""
    settings = settings_with(flags)
    summary = {
        "before": measured(0.0, 0.0, n), "after": measured(one_hop, two_hops, n),
        "after_without_retriever": measured(emptied, emptied, n), "cold_start_seconds": 2.0, "train_seconds": 120.4,
        "total_seconds": 140.0, "steps": settings["steps"], "peak_memory_gb": 0.9,
        "settings": {name: value for name, value in settings.items() if name not in NO_SETTINGS},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings | {"output_dir": "elsewhere", "date": "2026-01-01"}))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def change(path: Path, **values: Any) -> None:
    """Puts other values into a JSON file; `...` takes one out."""
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not ...}))
