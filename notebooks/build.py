"""Executes the notebooks: each `NN_name.py` (percent format) into its `NN_name.ipynb`, outputs kept.

    python notebooks/build.py                    # all; or the paths of some

The text is the source, the .ipynb is made from it. What would differ from one machine to the next is left out: cell ids,
timings, versions. The first two cells of every notebook are written here, so that the repository's address stands in
one place.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
REPOSITORY = "OWNER/REPOSITORY"  # on GitHub; set it where the code is published, then `make notebooks`
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_TIMEOUT_S = 600
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
    """The first two cells of a notebook: the badge and the install."""
    return HEAD.format(repository=REPOSITORY, name=name)


def with_head(text: str, name: str) -> str:
    """The text of a notebook with its first two cells as they should be; all before its title is replaced.

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


if __name__ == "__main__":
    for source in map(Path, sys.argv[1:]) if sys.argv[1:] else sources():
        build(source)
