"""Reports of two small runs, and pages opened in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.report_runs import write_run
from helpers.watched import Watched

from searchr1_mini.pages.report import write_report


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "grpo", tokenizer), write_run(folder / "ppo", tokenizer, ppo=True)


@pytest.fixture(scope="module")
def report(runs) -> Path:
    return write_report(runs[0])


@pytest.fixture(scope="module")
def both(runs) -> Path:
    return write_report(*runs)


@pytest.fixture
def opened(browser):
    """Opens pages, and closes them with a look at what they did."""
    pages: list[Watched] = []

    def opener(path: Path, *size: int, **options) -> Watched:
        pages.append(Watched(browser, path, *size, **options))
        return pages[-1]

    yield opener
    for watched in pages:
        assert watched.told == []
        watched.page.close()
