"""Puts a deliberate bug into the package, one after the other, and sees whether the tests tell.

    python checks/mutations.py                # all, two at a time
    python checks/mutations.py -n 1 std clip  # some, by name, one at a time

Each bug is put into a copy of the repository; the tests named beside it are run there until one fails. A bug that they
all let through is named, and the exit code is 1. Processes are forked off one that has the heavy libraries in memory
already (Linux and macOS).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from bugs import BUGS, Bug

ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds, after which a test that a bug keeps from ending is broken off, and so fails
HEAVY = ("torch", "transformers", "peft", "datasets", "hypothesis", "pytest")


def put(bug: Bug, root: Path) -> None:
    """Puts a bug into the copy of the repository under `root`; ends if its place is not there exactly once."""
    (path,) = (root / "searchr1_mini").rglob(f"{bug.module}.py")
    text = path.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        sys.exit(f"{bug.name}: {bug.old!r} stands {text.count(bug.old)} times in {path.name}; fix the list")
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def copied(scratch: Path) -> Path:
    """A copy of the repository in this folder."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
    return Path(shutil.copytree(ROOT, scratch / "copy", ignore=ignored))


class Failures:
    """A plugin of pytest that remembers which tests failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        self.names += [report.nodeid] if report.failed else []

    pytest_collectreport = pytest_runtest_logreport


def path_of(name: str) -> str:
    """`sft::test_x` -> tests/run/test_sft.py::test_x, for pytest."""
    file, *rest = name.split("::")
    (path,) = ROOT.glob(f"tests/*/test_{file}.py")
    return "::".join([path.relative_to(ROOT).as_posix(), *rest])


def first_failure(names: list[str], root: Path) -> str | None:
    """Runs tests by their names, up to the first failure, with the package under `root`; in a process of its own.

    Its output goes to root/out.
    """
    import pytest

    def give_up(*_) -> None:
        raise TimeoutError(f"not done after {PATIENCE} s")

    with (root / "out").open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path.insert(0, str(root))
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    failures = Failures()
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *map(path_of, names)], [failures])
    return failures.names[0] if failures.names else "pytest itself" if code else None


def with_bug(bug: Bug | None, names: list[str]) -> tuple[str | None, float]:
    """The first test of these files that fails with the bug in, and the seconds that it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        root = copied(Path(scratch))
        if bug:
            put(bug, root)
        return first_failure(names, root), time.monotonic() - began


def try_bugs(bugs: list[Bug], n: int) -> list[str]:
    """Tries each bug, `n` at a time, and says what became of it; returns the names of those that escaped.

    Before that every file of tests is run without a bug: one that fails anyhow would catch all of them.
    """
    for name in HEAVY:
        __import__(name)
    escaped, files = [], list(dict.fromkeys(name for bug in bugs for name in bug.tests.split()))
    with multiprocessing.get_context("fork").Pool(n, maxtasksperchild=1) as pool:
        for name, (failed, _) in zip(files, pool.starmap(with_bug, [(None, [n]) for n in files], 1), strict=True):
            if failed:
                sys.exit(f"{path_of(name)} fails without a bug, at {failed}; fix it first")
        waiting = [(bug, pool.apply_async(with_bug, (bug, bug.tests.split()))) for bug in bugs]
        for number, (bug, result) in enumerate(waiting, start=1):
            failed, seconds = result.get()
            escaped += [] if failed else [bug.name]
            told = f"caught  {bug.name}: {failed}" if failed else f"ESCAPED {bug.name}"
            print(f"{number:3d} {told} ({seconds:.0f} s)", flush=True)
    return escaped


def main() -> None:
    """Tries the bugs that were named, or all; one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only bugs with one of these words in their names")
    parser.add_argument("-n", type=int, default=2, help="bugs at a time [default: 2]")
    asked = parser.parse_args()
    bugs = [bug for bug in BUGS if not asked.words or any(word in bug.name for word in asked.words)]
    escaped = try_bugs(bugs, asked.n)
    print(f"{len(bugs) - len(escaped)} of {len(bugs)} bugs are caught")
    sys.exit(bool(escaped))


if __name__ == "__main__":
    main()
