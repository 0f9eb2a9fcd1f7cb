"""The notebooks run from their text, are the pair of what is published, and their exercises can be solved."""

from __future__ import annotations

import ast
import re
import shutil
import socket
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.paths import ROOT
from helpers.programs import Program

pytest.importorskip("jupytext", reason="the extra `notebooks` is not installed")
pytest.importorskip("ipykernel", reason="the extra `notebooks` is not installed")
import nbformat
from jupyter_client.provisioning import LocalProvisioner

FOLDER = ROOT / "notebooks"
sys.path[:0] = [str(FOLDER), str(ROOT / "docs")]
import build
import course_pictures
from exercises import check, check_code, digest

from searchr1_mini.options.config import RunConfig
from searchr1_mini.run.museum import active_bug

SOURCES = build.sources()
each_notebook = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
OF_A_MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|mnt|var|work|Users|private)/|\b[A-Z]:\\|\bat 0x[0-9a-f]{6}"
)
MOST_KB, MOST_LINES = 400, 20
SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
MADE_WRONG = """
if isinstance(answer, (int, float)):
    answer = not answer if isinstance(answer, bool) else answer + 1
else:
    answer = (lambda *case: None) if callable(answer) else "not this"
"""


class ForkedKernel(Program):
    """A kernel that finds torch imported, with what a provisioner asks of a `subprocess.Popen`."""

    stderr = stdin = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode


async def launch_by_fork(self, cmd: list[str], *, cwd, env, **others):
    """Starts a kernel in place of `LocalProvisioner.launch_kernel`."""
    self.process = ForkedKernel(*cmd[cmd.index("-m") :], environment=env, folder=cwd)
    self.pid, self.pgid, self.cwd = self.process.pid, None, cwd
    return self.connection_info


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def exercises_of(notebook) -> list[tuple[str, str]]:
    """(call of the check, solution) of each exercise, in order; see notebooks/README.md for their form."""
    calls = [ast.unparse(node) for cell in code_cells(notebook) for node in ast.walk(ast.parse(cell.source))
             if isinstance(node, ast.Call) and ast.unparse(node.func) in ("check", "check_code")]  # fmt: skip
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    solutions = [found for text in texts for found in SOLUTION.findall(text)]
    assert len(calls) == len(solutions), "every check needs a solution in <details>"
    return list(zip(calls, solutions, strict=True))


def with_trials(notebook):
    """The notebook with a cell more for each exercise: its solution must pass, and a wrong answer must not."""
    for call, solution in exercises_of(notebook):
        trial = f"{solution}\nassert {call}, {call}\n{MADE_WRONG}\nassert not {call}"
        notebook.cells.append(nbformat.v4.new_code_cell(trial))
    return notebook


def shown(notebook) -> str:
    """All that the outputs of a notebook say in words."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    parts = [output.get("text", "") for output in outputs]
    parts += [str(text) for output in outputs for kind, text in output.get("data", {}).items() if "image" not in kind]
    return "\n".join(parts)


def assert_tells_no_machine(notebook) -> None:
    text = shown(notebook)
    assert not OF_A_MACHINE.search(text) and str(ROOT) not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


@each_notebook
def test_a_notebook_runs_and_its_exercises_can_be_solved(path, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(FOLDER, tmp_path / "notebooks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    if path != SOURCES[0]:  # which starts as a reader's does
        monkeypatch.setattr(LocalProvisioner, "launch_kernel", launch_by_fork)
    notebook = with_trials(build.read((copy / path.name).read_text(encoding="utf-8")))
    assert_tells_no_machine(build.execute(notebook, copy))


@each_notebook
def test_the_published_notebook_is_the_pair_of_its_text(path):
    text = path.read_text(encoding="utf-8")
    assert text == build.with_head(text, path.stem), "run `make notebooks`"
    published = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    wanted = build.read(text)
    assert [(cell.id, cell.cell_type, cell.source) for cell in published.cells] == [
        (cell.id, cell.cell_type, cell.source) for cell in wanted.cells
    ], "run `make notebooks`"
    assert published.metadata == wanted.metadata and all(not cell.metadata for cell in published.cells)


@each_notebook
def test_a_published_notebook_has_its_outputs_and_is_small(path):
    target = path.with_suffix(".ipynb")
    notebook = nbformat.read(target, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", {})}
    assert "image/png" in kinds or "image/svg+xml" in kinds, "no picture"
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert target.stat().st_size <= MOST_KB * 1000
    assert_tells_no_machine(notebook)


@each_notebook
def test_a_notebook_holds_calls_and_no_library(path):
    owned = {
        node.name
        for module in (ROOT / "searchr1_mini").rglob("*.py")
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    notebook = build.read(path.read_text(encoding="utf-8"))
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= MOST_LINES, cell.source
        defined = {node.name for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef)}
        assert not defined & owned, f"the package has {defined & owned}: import it"
    assert 2 <= len(exercises_of(notebook)) <= 3


@each_notebook
def test_a_title_begins_with_the_number_of_its_notebook(path):
    titles = re.findall(r"^# # (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(titles) == 1 and re.match(rf"{int(path.stem[:2])}\. [A-Z]", titles[0])


def test_badge_and_install_come_before_the_title_with_an_address(monkeypatch):
    text = SOURCES[0].read_text(encoding="utf-8")
    monkeypatch.setattr(build, "REPOSITORY", "")
    hidden = build.with_head(text, "01_x")
    assert hidden.startswith(build.AFTER_HEAD) and not re.search("badge|git clone|OWNER", hidden)
    monkeypatch.setattr(build, "REPOSITORY", "ada/search")
    published = build.with_head(hidden, "01_x")
    assert "colab.research.google.com/github/ada/search/blob/main/notebooks/01_x.ipynb" in published
    assert 'address = "https://github.com/ada/search"' in published and published.endswith(hidden)
    assert build.with_head(published, "01_x") == published


def test_the_bug_hunt_names_its_faults_in_solutions_alone():
    published = nbformat.read(FOLDER / "11_the_bug_hunt.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in code_cells(published))
    numbers = [int(n) for n in re.findall(r"(?:NUMBER, STEPS = |repaired\(answer, )(\d+)", code)]
    faults = {active_bug(RunConfig(mystery=number)) for number in numbers}
    assert len(numbers) == len(faults) == 2
    texts = [SOLUTION.sub("", cell.source) for cell in published.cells if cell.cell_type == "markdown"]
    for fault in faults:
        assert fault not in shown(published) + code
        assert "\n".join(texts).count(fault) == 1, "in the list of suspects"


def test_every_notebook_has_its_pair():
    assert SOURCES and [path.stem for path in SOURCES] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_the_course_is_complete_and_its_pictures_are_current(tmp_path):
    course = (ROOT / "docs/course.md").read_text(encoding="utf-8")
    assert all(f"(../notebooks/{path.stem}.ipynb)" in course for path in SOURCES)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in course_pictures.write(tmp_path)}
    assert drawn and all(f"({name})" in course for name in drawn)
    for name, text in drawn.items():
        ElementTree.fromstring(text)
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "run `python docs/course_pictures.py`"


@pytest.mark.parametrize(
    ("right", "also", "wrong"),
    [
        (42, [42.0, 42.01], [41, 43, True, None]),
        (1234, [1234.0], [1235, 1233]),
        (0.1875, [3 / 16, 0.188, 0.18751, Decimal("0.1875")], [0.18, 0.19, -0.1875]),
        ("Oak Bay", ["oak  bay", " OAK BAY "], ["Oakbay", ""]),
        (True, [True], [False, 1]),
        ([1, 2], [(1, 2)], [[2, 1], [1], {1, 2}]),
        ({1, 2}, [{2, 1}], [{1}, [1, 2]]),
    ],
)
def test_an_answer_is_checked_by_its_hash(right, also, wrong):
    expected = digest("9.9", right)
    assert all(check("9.9", answer, expected, "h") for answer in [right, *also])
    for answer in wrong:
        assert repr(check("9.9", answer, expected, "look again")) == "exercise 9.9: not yet; hint: look again"
    assert "no answer yet" in repr(check("9.9", ..., expected, "h"))
    assert not check("9.8", right, expected, "the salt is the exercise's")


@pytest.mark.parametrize("flag", ["--bug no-last-turn", "--bug=no-last-turn", "no_last_turn", "No-last-turn"])
def test_a_fault_is_named_in_each_way_that_a_flag_is(flag):
    assert check("9.9", flag, digest("9.9", "no-last-turn"), "h") and not check("9.9", flag, digest("9.9", "no"), "h")


def test_a_function_is_checked_against_the_packages_own():
    import torch

    cases = [(torch.tensor([1.0, 0.0]),), (torch.tensor([0.25]),)]
    assert check_code("9.9", lambda x: x + x, lambda x: 2 * x, cases, "h")
    assert "case 2 of 2 differs; h" in repr(check_code("9.9", lambda x: 2 * x.round(), lambda x: 2 * x, cases, "h"))
    assert not check_code("9.9", lambda x: (2 * x)[:1], lambda x: 2 * x, cases, "of another shape")
    assert "case 1 raised ZeroDivisionError" in repr(check_code("9.9", lambda x: 1 / 0, lambda x: x, cases, "h"))
    assert not check_code("9.9", ..., lambda x: x, cases, "h")


def test_tensors_are_valid_answers_and_inputs_stay_unchanged():
    """A function that changes its arguments is wrong, whatever it returns."""
    import numpy as np
    import torch

    for answer in (torch.tensor(42), torch.tensor(42.0), np.int64(42), np.array(42)):
        assert check("9.9", answer, digest("9.9", 42), "h")
    assert check("9.9", torch.tensor([1, 2]), digest("9.9", [1, 2]), "h")
    cases = [([1, 2, 3],)]
    for make in (np.array, torch.tensor):
        assert check_code("9.9", lambda x, make=make: make(x), lambda x: x, cases, "h")
    assert not check_code("9.9", lambda x: x.clear() or [], lambda x: list(x), cases, "h")
    assert cases == [([1, 2, 3],)]
    of_a_graph = torch.ones(2, requires_grad=True) * 2
    assert check_code("9.9", lambda x: x + x, lambda x: 2 * x, [(of_a_graph,)], "h")


def test_the_guard_knows_a_path_and_leaves_a_flag_alone():
    for text in ("saved to /home/ada/runs", "in C:\\Users", "<Line2D at 0x7fab12cd90>"):
        assert OF_A_MACHINE.search(text)
    assert not OF_A_MACHINE.search("https://example.org/home/ and reward/em, docs/usr/")


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_copies_to_hand_out_hold_solutions_for_teachers_alone(tmp_path, kind):
    out = tmp_path / "out"
    command = [sys.executable, str(FOLDER / "build.py"), f"--{kind}", str(out)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert subprocess.run(command, capture_output=True).returncode == 1, "a folder that is there is left alone"
    written = sorted(out.glob("*.ipynb"))
    assert len(written) == len(list(FOLDER.glob("[0-9][0-9]_*.py"))) and (out / "exercises.py").is_file()
    for path in written:
        notebook, text = nbformat.read(path, as_version=4), path.read_text(encoding="utf-8")
        nbformat.validate(notebook)
        linked = [out / name for name in re.findall(r"\]\((?!http|#)([^)#]+)", text)]
        assert all(name.is_file() for name in linked), "a copy works wherever it lies"
        full = nbformat.read(FOLDER / path.name, as_version=4)
        solutions = [solution for _, solution in exercises_of(full)]
        assert ("Solution" in text) == (kind == "teacher" and bool(solutions))
        sources = "\n".join(cell.source for cell in notebook.cells)
        assert all((solution in sources) == (kind == "teacher") for solution in solutions if "\n" in solution.strip())
        assert sources.count("check(") + sources.count("check_code(") == sum(
            cell.source.count("check(") + cell.source.count("check_code(") for cell in code_cells(full)
        )
