"""Grades a bug hunt: which fault of the museum a run of `--mystery N` was trained with.

python -m searchr1_mini.mystery check runs/NAME no-last-turn
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import BUGS, RunConfig
from searchr1_mini.options.nested import grouped
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import saved_config
from searchr1_mini.storage import status

WRONG = 3  # exit code of a wrong guess; 1 is a bug of the program, 2 bad input


@dataclass(frozen=True)
class MysteryConfig:
    """Options of the grading."""

    run: str | None = grouped(
        "what", None, "folder of a run that was trained with --mystery; it may stand first, without this flag"
    )
    guess: str | None = grouped(
        "what", None, "name of the fault, as --bug has it; it may stand second, without this flag"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parses `check RUN GUESS`, and says whether the guess is right.

    Raises:
        UserError: no run of a bug hunt, or a guess that names no fault.
        SystemExit: `WRONG`, the guess is.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words = words[1:] if words[:1] == ["check"] else words
    n = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    named = [word for pair in zip(("--run", "--guess"), words[:n], strict=False) for word in pair]
    about = f"{__doc__.splitlines()[0]}\n\npython -m searchr1_mini.mystery check RUN GUESS"
    config = parse(MysteryConfig, "python -m searchr1_mini.mystery", about, named + words[min(n, 2) :])
    if config.run is None or config.guess is None:
        raise UserError("name the run and your guess: python -m searchr1_mini.mystery check runs/NAME no-last-turn")
    saved = saved_config(Path(config.run))
    if saved.get("mystery") is None:
        raise UserError(f"{config.run} is no bug hunt; train one with --mystery N")
    status.now("looking it up")

    from searchr1_mini.run.museum import active_bug

    if config.guess not in BUGS:
        raise UserError(f"there is no fault {config.guess!r}{suggest(config.guess, BUGS)}; known: {', '.join(BUGS)}")
    is_right = active_bug(RunConfig(mystery=saved["mystery"])) == config.guess
    print(f"{'right' if is_right else 'no'}: mystery {saved['mystery']} is {'' if is_right else 'not '}{config.guess}")
    if not is_right:
        raise SystemExit(WRONG)


if __name__ == "__main__":
    run_command(main)
