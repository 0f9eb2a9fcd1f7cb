"""Which questions, passages and parts of one's own a run rests on, told by hashes in its config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.questions import Example
from searchr1_mini.models.identity import digest
from searchr1_mini.storage.files import read_json

TRAINING_QUESTIONS = "training questions"
CONTENTS = "contents of "  # begins the name of a file of one's own


def data_identity(examples: Sequence[Example], corpus_hash: str) -> dict[str, str]:
    """Hashes the training questions with their answers, and the passages; "" where these are not at hand."""
    rows = [[example.question, example.golden_answers] for example in examples]
    return {TRAINING_QUESTIONS: digest(json.dumps(rows).encode()), "passages": corpus_hash}


def check_data(run_dir: Path, identity: dict[str, str]) -> None:
    """Refuses to go on with a run on other questions, passages or parts of one's own than it began with.

    Raises:
        UserError: names which; the run's config.json is damaged.
    """
    saved = read_json(run_dir / "config.json").get("data_hashes") or {}
    for name, value in identity.items():
        if value and saved.get(name) and saved[name] != value:
            raise UserError(
                f"--resume: the {name} are not those that the run in {run_dir} began with; put the file back as it "
                "was, or start a new run in another --output-dir"
            )
