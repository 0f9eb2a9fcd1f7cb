"""Writes the page of a run again, or of several side by side.

python -m searchr1_mini.report runs/NAME         # writes runs/NAME/report.html again
python -m searchr1_mini.report runs/A runs/B     # two runs side by side, in runs/A/report-A-B.html
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.cli import parse
from searchr1_mini.options.nested import grouped
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.paths import folders_first, page_path
from searchr1_mini.pages.report import write_report
from searchr1_mini.storage.files import listed_paths


@dataclass(frozen=True)
class ReportConfig:
    """Options of the report."""

    runs: str | None = grouped(
        "what", None, "folders of training runs, separated by commas; they may also stand first, without this flag"
    )
    output: str | None = grouped("what", None, "file for the page [default: report.html in the run's folder]")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, and writes the page.

    Raises:
        UserError: anything that the user can fix.
    """
    words = folders_first(sys.argv[1:] if argv is None else argv, "--runs")
    config = parse(ReportConfig, "python -m searchr1_mini.report", __doc__.splitlines()[0], words)
    if config.runs is None:
        raise UserError("name the run: python -m searchr1_mini.report runs/NAME")
    runs = [Path(name) for name in listed_paths(config.runs)]
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            raise UserError(f"{run} is not the folder of a run (it has no metrics.jsonl); name one as runs/NAME")
    if len(runs) > len(ascii_uppercase):
        raise UserError(f"{len(runs)} runs do not fit a page; name {len(ascii_uppercase)} at most")
    output = None if config.output is None else page_path(config.output, "report.html")
    print(f"written to {write_report(*runs, output=output)}", flush=True)


if __name__ == "__main__":
    run_command(main)
