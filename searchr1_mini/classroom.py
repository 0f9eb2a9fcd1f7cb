"""Gathers the runs of a class on one board: a table here, and one page to show or send round.

python -m searchr1_mini.classroom handed-in            # every run below the folder, in handed-in/classroom.html
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.cli import parse
from searchr1_mini.options.nested import grouped
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.paths import folders_first, page_path
from searchr1_mini.storage import status
from searchr1_mini.storage.files import listed_paths

WIDTH = 120  # characters of a line where the output is no terminal


@dataclass(frozen=True)
class ClassroomConfig:
    """Options of the board."""

    folders: str | None = grouped(
        "what", None, "folders that hold runs, separated by commas; they may also stand first, without this flag"
    )
    output: str | None = grouped(
        "what", None, "file for the page [default: classroom.html in the first of the folders]"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, reads every run below the folders, prints the board and writes its page.

    Raises:
        UserError: anything that the user can fix.
    """
    words = folders_first(sys.argv[1:] if argv is None else argv, "--folders")
    config = parse(ClassroomConfig, "python -m searchr1_mini.classroom", __doc__.splitlines()[0], words)
    if not listed_paths(config.folders or ""):
        raise UserError("name the folder that holds the runs: python -m searchr1_mini.classroom handed-in")
    folders = [Path(name) for name in listed_paths(config.folders)]
    output = folders[0] / "classroom.html" if config.output is None else page_path(config.output, "classroom.html")
    status.now("reading runs")

    from searchr1_mini.pages.classroom import terminal, told, write_classroom
    from searchr1_mini.pages.classroom_data import board

    entries = board(folders)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    print(f"{told(entries)}\n{terminal(entries, width)}")
    print(f"written to {write_classroom(entries, output)}", flush=True)


if __name__ == "__main__":
    run_command(main)
