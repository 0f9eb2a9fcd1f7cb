"""What the report's page holds of a run's rollouts: whole groups, the same rule for every run, in few bytes."""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.run.log import WATCHED
from searchr1_mini.storage.files import read_json, read_jsonl
from searchr1_mini.storage.forms import ROLLOUT
from searchr1_mini.storage.printable import one_line, plain

BUDGET = 7_500_000  # bytes of rollouts in a page, over all of its runs
KINDS = ("prompt", "policy", "observation")
MOST_TOKENS = 8192  # of a segment, shown
CUT = " [..]"
MOST_CHARACTERS = 4000  # of a question, an answer, or a segment whose tokens are not known
THINNINGS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # every so many steps; round, as those of evaluations are
COLUMNS = ("logprobs", "ratios", "advantages")
MOST_WATCHED = 40  # evaluations

Pieces = Callable[[dict[str, Any]], "list[tuple[int, str]] | None"]


class Vocabulary:
    """Numbers (id, text) pairs, so that the page holds the text of a token once."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, str], int] = {}

    def __call__(self, pairs: Sequence[tuple[int, str]]) -> list[int]:
        return [self.numbers.setdefault(pair, len(self.numbers)) for pair in pairs]

    def as_json(self) -> dict[str, list]:
        """Returns parallel lists: ids (-1 for what is no token) and texts."""
        return {"ids": [id_ for id_, _ in self.numbers], "texts": [text for _, text in self.numbers]}


def report_data(run_dirs: Sequence[Path]) -> dict[str, Any]:
    """Collects the page's data: `vocabulary`; of each run its name and mask, its `kept_steps`, and what it watched."""
    vocabulary, runs = Vocabulary(), []
    for run_dir, name in zip(run_dirs, run_names(run_dirs), strict=True):
        config = read_config(run_dir)
        runs.append(
            {
                "name": short(name),
                "masks_observations": config.get("mask_observations", True),
                "steps": kept_steps(run_dir, BUDGET // len(run_dirs), vocabulary, pieces_of(run_dir, config)),
                "watched": read_watched(run_dir),
            }
        )
    return {"vocabulary": vocabulary.as_json(), "runs": runs}


def run_names(run_dirs: Sequence[Path]) -> list[str]:
    """Names runs by their folders, also `.`, and by as many of those above as tell the runs apart: `masked/seed-0`."""
    parts = [run_dir.absolute().parts[1:] for run_dir in run_dirs]
    depths = range(1, max(map(len, parts), default=1) + 1)
    n = next((n for n in depths if len({part[-n:] for part in parts}) == len(set(parts))), 1)
    return ["/".join(part[-n:]) for part in parts]


def as_json(value: Any) -> str:
    """Writes compact JSON that no HTML parser leaves early: without a `<` there is neither a tag nor a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's config.json, empty where there is none."""
    return read_json(run_dir / "config.json") if (run_dir / "config.json").exists() else {}


def kept_steps(run_dir: Path, budget: int, vocabulary: Vocabulary, pieces: Pieces) -> list[dict[str, Any]]:
    """Keeps of every step the first groups, whole, as many as its share of `budget` bytes holds, and one at least.

    Where not even one a step fits, every second, 5th, 10th, .. step is kept, and the first and the last.
    """
    files = sorted((run_dir / "rollouts").glob("step-*.jsonl"))
    steps, sizes = [], []
    for path in files:
        rows = read_jsonl(path, ROLLOUT)
        groups = [list(rows_) for _, rows_ in groupby(rows, key=lambda row: (row["example_id"], row.get("group")))]
        kept, size, times = [], 0, Counter()
        for group in groups:
            packed = pack_group(group, vocabulary, pieces)
            times[packed["id"]] += 1
            if (n := times[packed["id"]]) > 1:  # a step may draw a question twice; the page knows groups by their ids
                packed["id"] += f" ({n})"
            n_bytes = len(as_json(packed).encode())
            if kept and size + n_bytes > budget / len(files):
                break
            kept.append(packed)
            size += n_bytes
        steps.append({"step": int(path.stem[5:]), "n_groups": len(groups), "groups": kept})
        sizes.append(size)
    for every in THINNINGS:
        numbers = [i for i, step in enumerate(steps) if step["step"] % every == 0 or i in (0, len(steps) - 1)]
        if sum(sizes[i] for i in numbers) <= budget:
            break
    return [steps[i] for i in numbers]


def read_watched(run_dir: Path) -> list[dict[str, Any]]:
    """Reads the same held-out questions at each evaluation, from the base on; of many, some evenly spread."""
    files = sorted((run_dir / WATCHED).glob("*.jsonl"))  # base.jsonl comes first
    every = -(-len(files) // MOST_WATCHED) or 1
    files = [path for n, path in enumerate(files) if n % every == 0 or path == files[-1]]
    return [
        {
            "when": "before training" if path.stem == "base" else f"after step {int(path.stem[5:])}",
            "answers": [
                {
                    "question": short(row["question"]),
                    "gold": [short(answer) for answer in row["golden_answers"][:20]],
                    "answer": row["answer"] and short(row["answer"]),
                    "is_right": row["reward"] == 1,
                    "segments": [
                        [KINDS.index(segment["kind"]), shortened(plain(segment["text"][: 2 * MOST_CHARACTERS]))]
                        for segment in row["segments"]
                        if segment["kind"] != "prompt"
                    ],
                }
                for row in read_jsonl(path, ROLLOUT)
            ],
        }
        for path in files
    ]


def pack_group(rows: list[dict[str, Any]], vocabulary: Vocabulary, pieces: Pieces) -> dict[str, Any]:
    """Packs the rollouts of one question; the prompt that they share is held once."""
    first = rows[0]
    prompt = first["segments"][0] if first["segments"] and first["segments"][0]["kind"] == "prompt" else None
    rollouts = []
    for row in rows:
        segments = row["segments"]
        own = segments[1:] if segments and segments[0] == prompt else segments
        rollouts.append(
            {
                "reward": rounded(row["reward"]),
                "advantage": rounded(row.get("advantage")),
                "finish": short(row["finish_reason"]),
                "answer": row["answer"] and short(row["answer"]),
                "is_right": exact_match(row["answer"], row["golden_answers"]) == 1,
                "searches": len(row["queries"]),
                "in_update": row.get("in_update"),
                "segments": [pack_segment(segment, vocabulary, pieces) for segment in own],
            }
        )
    return {
        "id": short(first["example_id"]),
        "question": short(first["question"]),
        "gold": [short(answer) for answer in first["golden_answers"][:20]],
        "source": short(first["source"]),
        "prompt": prompt and pack_segment(prompt, vocabulary, pieces),
        "rollouts": rollouts,
    }


def pack_segment(segment: dict[str, Any], vocabulary: Vocabulary, pieces: Pieces) -> list:
    """Packs [kind, tokens, log-probs, ratios, advantages]: an index, numbers of the vocabulary, thousandths or nothing.

    Where the tokens are not known: [kind, text].
    """
    kind, pairs = KINDS.index(segment["kind"]), pieces(segment)
    if pairs is None:
        return [kind, shortened(plain(segment["text"][: 2 * MOST_CHARACTERS]))]
    columns = [[thousandths(value) for value in islice(segment.get(name, ()), MOST_TOKENS)] for name in COLUMNS]
    if len(pairs) > MOST_TOKENS:
        pairs = [*pairs[:MOST_TOKENS], (-1, CUT)]
    packed = [kind, vocabulary(pairs), *columns]
    while len(packed) > 2 and not packed[-1]:
        packed.pop()
    return packed


def pieces_of(run_dir: Path, config: dict[str, Any]) -> Pieces:
    """Tells how a segment of this run falls into tokens: (id, text) pairs, or None where the tokenizer is not at hand.

    The run's newest checkpoint has it, or else the model that the run started from, if that is a local folder.
    """
    folders = [path / "model" for path in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)]
    folders += [Path(str(config.get("resolved_model") or run_dir))]
    folder = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
    if folder is None:
        return lambda segment: None
    from searchr1_mini.core.stops import token_bytes
    from searchr1_mini.models.bases import load_tokenizer  # a second, which --help does not wait for

    try:
        table = token_bytes(load_tokenizer(str(folder)))
    except UserError:  # not byte-level, or damaged: the text is there all the same
        return lambda segment: None

    alone = [None if "\ufffd" in (text := piece.decode(errors="replace")) else plain(text) for piece in table]

    def pieces(segment: dict[str, Any]) -> list[tuple[int, str]] | None:
        ids = segment["token_ids"]
        if any(not 0 <= id_ < len(table) for id_ in ids):
            return None
        texts = [alone[id_] for id_ in ids]
        if None in texts:  # a part of a character
            texts = list(texts_of([table[id_] for id_ in ids]))
        return list(zip(ids, texts, strict=True))

    return pieces


def texts_of(pieces: list[bytes]) -> Iterator[str]:
    """Returns the safe text of each token; a character that takes several stands with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for index, piece in enumerate(pieces):
        yield plain(decoder.decode(piece, final=index == len(pieces) - 1))


def short(text: str) -> str:
    """Puts foreign text on one line, of bounded length."""
    return shortened(one_line(text[: 2 * MOST_CHARACTERS]))


def shortened(text: str) -> str:
    """Returns the start of a text that is too long for a page."""
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + CUT


def rounded(value: float | None) -> float | None:
    """Rounds to three decimals; None for what is no finite number."""
    return round(value, 3) if value is not None and math.isfinite(value) else None


def thousandths(value: float | None) -> int | None:
    """Rounds to thousandths, whole and at most a million: shorter than a float; None for what is no finite number."""
    return round(min(max(value, -1e6), 1e6) * 1000) if value is not None and math.isfinite(value) else None
