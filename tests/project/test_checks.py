"""The longer checks stay in step with the package: every deliberate bug still has its place, and is Python."""

from __future__ import annotations

import ast
import shutil
import sys

import pytest
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "checks"))
from bugs import BUGS
from mutations import path_of, put


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_has_its_place_and_its_tests(bug, tmp_path):
    (source,) = (ROOT / "searchr1_mini").rglob(f"{bug.module}.py")
    path = tmp_path / source.relative_to(ROOT)
    path.parent.mkdir(parents=True)
    shutil.copy(source, path)
    sound = path.read_text()
    put(bug, tmp_path)
    assert ast.dump(ast.parse(path.read_text())) != ast.dump(ast.parse(sound))
    for file, _, test in (path_of(name).partition("::") for name in bug.tests.split()):
        assert f"def {test}(" in (ROOT / file).read_text() if test else (ROOT / file).is_file()


def test_there_are_enough_of_them():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 25
