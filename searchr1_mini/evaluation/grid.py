"""A table of texts, drawn for the terminal, Markdown and LaTeX."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from searchr1_mini.storage.printable import markdown_text, one_line, plain


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first column is left-aligned, the others are numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]


def markdown(grid: Grid) -> str:
    """Renders a Markdown table with its title."""
    cells = [[markdown_text(cell) for cell in row] for row in (grid.header, *grid.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---" + "|---:" * (len(grid.header) - 1) + "|")
    return f"**{grid.title}**\n\n" + "\n".join(lines)


def latex(grid: Grid) -> str:
    """Renders a LaTeX tabular with booktabs' rules."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_escape_latex(one_line(cell)) for cell in cells) + r" \\"

    columns = "l" + "r" * (len(grid.header) - 1)
    body = "\n".join(map(line, grid.rows))
    return (
        f"% {grid.title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(grid.header)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}"
    )


def _escape_latex(text: str) -> str:
    special = {**{char: "\\" + char for char in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
               "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}  # fmt: skip
    return "".join(special.get(char, char) for char in text)


def terminal(grid: Grid, width: int | None = None) -> str:
    """Renders a table by rich as plain text; columns beyond `width` go into further tables below each other.

    Args:
        width: characters of a line; None takes the terminal's, or any where the output is no terminal.
    """
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return "\n\n".join(drawn(part) for part in folded(grid, width))


def folded(grid: Grid, width: int) -> list[Grid]:
    """Folds a table into parts that fit, each with the columns that name its rows; a part has one column at least."""
    from rich.cells import cell_len  # of a wide character 2

    n_names = 2 if grid.header[1:2] == ["source"] else 1
    widths = [
        max(cell_len(plain(row[index])) for row in (grid.header, *grid.rows)) + 3 for index in range(len(grid.header))
    ]
    parts: list[list[int]] = []
    for index in range(n_names, len(grid.header)):
        if not parts or sum(widths[:n_names]) + sum(widths[i] for i in parts[-1]) + widths[index] > width:
            parts.append([])
        parts[-1].append(index)
    picked = [[*range(n_names), *part] for part in parts or [[]]]
    titles = [grid.title] + [f"{grid.title}, more columns"] * (len(picked) - 1)
    return [
        Grid(title, [grid.header[i] for i in part], [[row[i] for i in part] for row in grid.rows])
        for title, part in zip(titles, picked, strict=True)
    ]


def drawn(grid: Grid) -> str:
    """Draws a table as wide as it must be; names from outside send no markup."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=grid.title, box=SIMPLE, title_justify="left")
    for index, name in enumerate(grid.header):
        table.add_column(Text(plain(name)), justify="right" if index else "left", no_wrap=True)
    for row in grid.rows:
        table.add_row(*(Text(plain(cell).replace("\n", " ")) for cell in row))
    text = io.StringIO()
    console = Console(file=text, width=sys.maxsize, color_system=None)
    console.print(table, width=console.measure(table).maximum)  # in less room rich would cut cells
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").split("\n"))
