"""Executes the notebooks: each `NN_name.py` (percent format) into its `NN_name.ipynb`, outputs kept.

    python notebooks/build.py                    # all; or the paths of some
    python notebooks/build.py --student FOLDER   # copies to hand out: no solutions, no outputs
    python notebooks/build.py --teacher FOLDER   # copies with the solutions unfolded

The text is the source, the .ipynb is made from it. What would differ from one machine to the next is left out: cell ids,
timings, versions. Where the code is published, every notebook begins with a badge and a cell that installs; both are
written here, so that the repository's address stands in one place, and are left out as long as there is none.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
REPOSITORY = ""  # owner/name on GitHub; set it where the code is published, then `make notebooks`
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_TIMEOUT_S = 600
SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?</details>", re.DOTALL)
HEAD = """\
# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb)

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("searchr1_mini") is None:  # on Colab; elsewhere this cell does nothing
    address = "https://github.com/{repository}"
    subprocess.run(["git", "clone", "--depth", "1", address, "repository"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./repository[notebooks]"], check=True)
    sys.path.append("repository/notebooks")

"""
AFTER_HEAD = "# %% [markdown]\n# # "  # every notebook goes on with its title


def sources() -> list[Path]:
    """The texts of the notebooks, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def head(name: str) -> str:
    """The badge and the install, for a notebook of a repository that has an address."""
    return HEAD.format(repository=REPOSITORY, name=name) if REPOSITORY else ""


def with_head(text: str, name: str) -> str:
    """The text of a notebook with what precedes its title as it should be.

    Raises:
        ValueError: it has no title.
    """
    _, title, after = text.partition(AFTER_HEAD)
    if not title:
        raise ValueError(f"{name}.py has no cell that begins with a title ({AFTER_HEAD!r})")
    return head(name) + title + after


def read(text: str) -> NotebookNode:
    """A notebook without outputs from its text, with stable cell ids."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", NotebookNode()
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Runs every cell in a fresh kernel, from top to bottom, inside `folder`; the notebook then holds the outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # else lines fall into outputs by chance
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": folder}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries warn of differs from machine to machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def build(path: Path) -> None:
    """Rewrites the head of a notebook's text, executes it, and writes the .ipynb beside it."""
    text = with_head(path.read_text(encoding="utf-8"), path.stem)
    path.write_text(text, encoding="utf-8")
    began = time.perf_counter()
    notebook = execute(read(text), path.parent)
    target = path.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB, {time.perf_counter() - began:.1f} s", flush=True)


def for_students(notebook: NotebookNode) -> NotebookNode:
    """The notebook without its solutions and outputs; the checks stay, and know right answers by their digests."""
    for cell in notebook.cells:
        cell.source = SOLUTION.sub("", cell.source).strip()
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    return notebook


def for_teachers(notebook: NotebookNode) -> NotebookNode:
    """The notebook with its solutions open to read."""
    for cell in notebook.cells:
        cell.source = cell.source.replace("<details><summary>Solution", "<details open><summary>Solution")
    return notebook


def hand_out(change: Callable[[NotebookNode], NotebookNode], folder: Path) -> None:
    """Writes a copy of every notebook, the modules that they import and the pages that they show, into a new folder."""
    (folder / "docs").mkdir(parents=True)
    for path in sources():
        text = path.read_text(encoding="utf-8").replace("(../docs/", "(docs/")
        nbformat.write(change(read(text)), folder / f"{path.stem}.ipynb")
    for page in (*FOLDER.parent.glob("docs/*.md"), *FOLDER.parent.glob("docs/*.svg")):
        shutil.copy(page, folder / "docs")
    for module in ("exercises.py", "lesson.py"):
        shutil.copy(FOLDER / module, folder)
    print(f"{len(sources())} notebooks in {folder}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="texts to execute; all if none is named")
    parser.add_argument(
        "--student", type=Path, metavar="FOLDER", help="write copies without solutions into a new folder"
    )
    parser.add_argument(
        "--teacher", type=Path, metavar="FOLDER", help="write copies with open solutions into a new folder"
    )
    asked = parser.parse_args()
    for change, folder in ((for_students, asked.student), (for_teachers, asked.teacher)):
        if folder and folder.exists():
            sys.exit(f"{folder} is there already; name a new folder")
        if folder:
            hand_out(change, folder)
    if not (asked.student or asked.teacher):
        for source in asked.paths or sources():
            build(source)
