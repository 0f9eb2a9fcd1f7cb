"""The longer checks stay in step with the package: every deliberate bug still has its place, and is Python."""

from __future__ import annotations

import ast
import runpy
import shutil

import pytest
from helpers.paths import ROOT

MUTATIONS = runpy.run_path(str(ROOT / "checks" / "mutations.py"))


@pytest.mark.parametrize("bug", MUTATIONS["BUGS"], ids=lambda bug: bug.name)
def test_a_bug_has_its_place_and_its_tests(bug, tmp_path):
    (source,) = (ROOT / "searchr1_mini").rglob(f"{bug.module}.py")
    path = tmp_path / source.relative_to(ROOT)
    path.parent.mkdir(parents=True)
    shutil.copy(source, path)
    sound = path.read_text()
    MUTATIONS["put"](bug, tmp_path)
    assert ast.dump(ast.parse(path.read_text())) != ast.dump(ast.parse(sound))
    for file, _, test in (MUTATIONS["path_of"](name).partition("::") for name in bug.tests.split()):
        assert f"def {test}(" in (ROOT / file).read_text() if test else (ROOT / file).is_file()


def test_there_are_enough_of_them():
    assert len({bug.name for bug in MUTATIONS["BUGS"]}) == len(MUTATIONS["BUGS"]) >= 25
