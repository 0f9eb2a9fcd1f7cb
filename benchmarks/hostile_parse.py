"""Milliseconds to read hostile text: `python benchmarks/hostile_parse.py`.

Every function that reads tags or answers, on 1 MB of each unit repeated, best of three; then the whole making of an
observation from three passages of 10 MB. What is linear takes ten times as long at `--mb 10`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from transformers import AutoTokenizer

from searchr1_mini.core.encoding import observation_ids
from searchr1_mini.core.prompts import neutralize_tags, parse_action
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rewards import contains_gold, normalize_answer
from searchr1_mini.core.scores import f1_score
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.run.metrics import empty_think
from searchr1_mini.run.rewards import is_well_formed
from searchr1_mini.storage.printable import plain

UNITS = ("<search>", "<think>", "</answer>", "</answer", "<", "< ", "word ")


def said(text: str) -> Trajectory:
    """A trajectory whose policy wrote the text in one thought."""
    return Trajectory("q", [Segment("policy", [1], [-1.0], f"<think>{text}</think>")], answer=text)


READERS: dict[str, Callable[[str], object]] = {
    "parse_action": parse_action,
    "is_well_formed": lambda text: is_well_formed(said(text)),
    "empty_think": lambda text: empty_think(said(text)),
    "neutralize_tags": neutralize_tags,
    "normalize_answer": normalize_answer,
    "contains_gold": lambda text: contains_gold(text, ["x y"]),
    "f1_score": lambda text: f1_score(text, ["x y"]),
    "plain": plain,
}


def milliseconds(work: Callable[[], object]) -> float:
    """Best of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return min(times)


def main() -> None:
    """Prints a line a function, a column a unit, and the observation's line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=1.0)
    parser.add_argument("--tokenizer", default="tiny", help="as --model of train.py, or a folder")
    args = parser.parse_args()
    print(f"{'ms':>18}" + "".join(f"{unit!r:>12}" for unit in UNITS))
    for name, read in READERS.items():
        texts = [unit * int(args.mb * 1e6 / len(unit)) for unit in UNITS]
        shown = "".join(f"{milliseconds(lambda read=read, text=text: read(text)):>12.1f}" for text in texts)
        print(f"{name:>18}" + shown, flush=True)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(args.tokenizer))
    passages = [[Passage("", unit * 100, unit * (10_000_000 // len(unit)))] * 3 for unit in UNITS]
    times = [milliseconds(lambda found=found: observation_ids(found, tokenizer, 500)) for found in passages]
    print(f"{'observation_ids':>18}" + "".join(f"{value:>12.1f}" for value in times))


if __name__ == "__main__":
    main()
