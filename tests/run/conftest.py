"""A finished run of seconds, shared by the tests of what may happen to one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.faults import config_of

from searchr1_mini.run.training import train


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory) -> Path:
    """Two steps on the tiny base, undisturbed."""
    return train(config_of(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    """A copy to damage, or to go on with."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))
