"""requirements.lock against pyproject.toml and constraints.txt, and what is said of its audit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
OF_TORCH = ("nvidia-", "cuda-", "triton")  # which constraints.txt leaves to torch's build


def pins(file: str) -> dict[str, set[str]]:
    """The versions of each package, one for each of its markers."""
    found: dict[str, set[str]] = {}
    for line in re.findall(r"^[^#\s].*", (ROOT / file).read_text(), re.MULTILINE):
        requirement = Requirement(line.rstrip("\\ "))
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier).removeprefix("=="))
    return found


LOCK = pins("requirements.lock")


def test_the_lock_holds_all_dependencies_in_tested_versions():
    tested = pins("constraints.txt")
    assert {name: LOCK[name] for name in LOCK if not name.startswith(OF_TORCH)} == {
        name: versions for name, versions in tested.items() if name in LOCK
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(line for extra in extras if extra not in ("peers", "site") for line in extras[extra]),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name != project["name"]:
            versions = LOCK[canonicalize_name(requirement.name)]
            assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_every_locked_package_has_hashes_and_none_has_a_url():
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[^\s#])", text.partition("\n")[2].strip())
    assert len(blocks) > 100
    for block in blocks:
        assert re.fullmatch(r"[\w.\-]+==[\w.]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", block), block
    assert "://" not in text and " @ " not in text


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (
            json.dumps({"dependencies": [
                {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]},
                {"name": "b", "version": "2", "vulns": []}, {"name": "c", "skip_reason": "?"},
            ]}),
            "warning: a 1: CVE-1, fixed in 1.1\n"
            "audit: 1 known vulnerabilities in 2 packages; the service could not be asked about 1\n",
        ),
        (
            json.dumps({"dependencies": [{"name": "a", "skip_reason": "?"}]}),
            "audit: the vulnerability service knows none of the packages, or is not there; nothing was checked\n",
        ),
        ("", "audit: pip-audit could not ask the vulnerability service (no network); nothing was checked\n"),
    ],
)  # fmt: skip
def test_an_audit_says_what_it_could_not_ask_and_never_fails(tmp_path, program, told):
    source = f"import sys\nprint({program!r})\nprint('no network', file=sys.stderr)\nsys.exit(1)"
    (tmp_path / "pip_audit.py").write_text(source)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "checks/audit.py"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")
