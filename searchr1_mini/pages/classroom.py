"""The board of a class: a table for the terminal, and one self-contained page."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from searchr1_mini.pages.charts import html_text
from searchr1_mini.pages.classroom_data import Entry
from searchr1_mini.pages.self_contained import write_page
from searchr1_mini.storage.printable import one_line

PAGE = Path(__file__).parent / "classroom_page"
STYLE = Path(__file__).parent / "report_page" / "style.css"  # the report's
HOPS = ("world-1hop", "world-2hop", "world-3hop")
UNKNOWN, NOTHING = "-", "nothing"
WIDE = 100  # characters of a line, below which what was changed stands beneath the table
NARROWEST = 80  # below which rich would cut figures


def columns(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Lists the board's columns: place, who, exact match in all and by hops, emptied, steps, seconds, changes."""
    hops = [hop for hop in HOPS if any(hop in entry.hops for entry in entries)]
    by_hops = {f"EM {hop[6]} hop{'s' * (hop[6] != '1')}": [share(e.hops.get(hop)) for e in entries] for hop in hops}
    return {
        "place": places(entries),
        "who": [entry.who for entry in entries],
        "EM": [share(entry.em) for entry in entries],
        **by_hops,
        "emptied": [share(entry.emptied) for entry in entries],
        "steps": [UNKNOWN if entry.steps is None else str(entry.steps) for entry in entries],
        "seconds": [UNKNOWN if entry.seconds is None else f"{entry.seconds:.0f}" for entry in entries],
        "changed": [UNKNOWN if entry.changed is None else " ".join(entry.changed) or NOTHING for entry in entries],
    }


def places(entries: Sequence[Entry]) -> list[str]:
    """Returns 1, 2, .. for those that can be compared; equals share a place."""
    compared = [entry.em for entry in entries if not entry.faults]
    return [UNKNOWN if entry.faults else str(compared.index(entry.em) + 1) for entry in entries]


def share(value: float | None) -> str:
    """Writes a share of the questions, in three decimals."""
    return UNKNOWN if value is None else f"{value:.3f}"


def told(entries: Sequence[Entry]) -> str:
    """Tells how many runs there are, and how many of them can be compared."""
    n_compared = sum(not entry.faults for entry in entries)
    return f"{len(entries)} run{'s' * (len(entries) != 1)}, {n_compared} of which can be compared"


def terminal(entries: Sequence[Entry], width: int) -> str:
    """Writes the board as plain text of a width, with the reasons of what cannot be compared beneath."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    by_column = columns(entries)
    changed = by_column.pop("changed") if width < WIDE else []
    for name in by_column:
        is_text = name in ("who", "changed")
        heading = name.replace("EM ", "EM\n") if changed else name
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in zip(*by_column.values(), strict=True):
        table.add_row(*(Text(one_line(cell)) for cell in row))
    text = io.StringIO()
    console = Console(file=text, width=sys.maxsize, color_system=None)
    console.print(table, width=min(console.measure(table).maximum, max(width, NARROWEST)))
    lines = [line.rstrip() for line in text.getvalue().split("\n")]
    lines = lines[1 : lines.index("", 1)]  # rich draws an empty line above, and one below
    told_beneath = [(entry.who, words) for entry, words in zip(entries, changed, strict=False) if words != NOTHING]
    if told_beneath:
        lines += ["", "changed:", *(one_line(f"{who}: {words}") for who, words in told_beneath)]
    faulty = [entry for entry in entries if entry.faults]
    if faulty:
        lines += ["", "cannot be compared:"]
        lines += [one_line(f"{entry.who}: {'; '.join(entry.faults)}") for entry in faulty]
    return "\n".join(lines)


def write_classroom(entries: Sequence[Entry], path: Path) -> Path:
    """Writes the page: no script, no request."""
    style = STYLE.read_text(encoding="utf-8") + (PAGE / "board.css").read_text(encoding="utf-8")
    by_column = columns(entries)
    header = [f'<th role="columnheader" scope="col"{_cell_class(name)}>{html_text(name)}</th>' for name in by_column]
    cells = zip(*by_column.values(), strict=True)
    rows = [_row(entry, dict(zip(by_column, row, strict=True))) for entry, row in zip(entries, cells, strict=True)]
    parts = {
        "title": "Classroom",
        "told": html_text(told(entries)),
        "header": "".join(header),
        "rows": "\n".join(rows),
    }
    return write_page(path, PAGE / "page.html", parts, style)


def _row(entry: Entry, cells: dict[str, str]) -> str:
    held = ""
    for name, text in cells.items():
        shown = html_text(text)
        if name == "changed" and entry.changed is not None:
            shown = "".join(f"<code>{html_text(word)}</code>" for word in entry.changed) or NOTHING
        if name == "who" and entry.faults:
            shown += _faults(entry.faults)
        if name.startswith("EM") and text != UNKNOWN:
            shown += _bar(float(text))
        held += f'<td role="cell" data-label="{html_text(name)}"{_cell_class(name)}>{shown}</td>'
    return f'<tr role="row"{" class=without" if entry.faults else ""}>{held}</tr>'


def _cell_class(name: str) -> str:
    return f' class="{name if name in ("who", "changed") else "number"}"'


def _faults(faults: Sequence[str]) -> str:
    return f'<ul class="faults">{"".join(f"<li>{html_text(fault)}</li>" for fault in faults)}</ul>'


def _bar(value: float) -> str:
    """A bar as long as a share of 1."""
    return (
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * min(max(value, 0.0), 1.0):.1f}" height="4"/></svg>'
    )
