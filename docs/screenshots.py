"""The pictures in docs/report.md: `python docs/screenshots.py runs/A runs/B` (needs Chromium, and the dev install)."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from searchr1_mini.pages.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
MOST_BYTES = 200_000


def chromium_path() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator:
    """A headless Chromium; the sandbox is off, since a container's root has none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=["--no-sandbox", "--disable-gpu", *QUIET.split()]
        )
        try:
            yield browser
        finally:
            browser.close()


def shoot(browser, report: Path, path: Path, width: int, height: int, scheme: str, at: str, color: str = "") -> Path:
    """One picture of a report.

    Args:
        browser: see `chromium`.
        report: the page.
        path: the picture, a PNG.
        width, height: of the window, in CSS pixels.
        scheme: light or dark.
        at: selector of what stands at the top of the window.
        color: what tokens are colored by, as the page's own control has it.
    """
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(report.resolve().as_uri())
    page.locator("#color").select_option(color)
    page.locator(at).evaluate("element => element.scrollIntoView()")
    if at == "#controls":
        page.locator("#panes .policy .token").nth(3).hover()
    page.screenshot(path=path)
    page.close()
    return path


def shoot_all(browser, one: Path, two: Path, folder: Path) -> list[Path]:
    """The pictures of docs/report.md, from the report of a run and that of two runs."""
    return [
        shoot(browser, one, folder / "report_curves.png", 1100, 800, "light", "h2 + .charts"),
        shoot(browser, one, folder / "report_watch.png", 1100, 560, "light", "#watch"),
        shoot(browser, one, folder / "report_group.png", 1100, 800, "light", "#controls", "logprob"),
        shoot(browser, two, folder / "report_two_runs.png", 1100, 800, "dark", "#controls"),
        shoot(browser, one, folder / "report_phone.png", 390, 844, "dark", "#controls"),
    ]


def main() -> None:
    """Writes the reports of two runs to a temporary folder, and their pictures to docs/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path)
    runs = parser.parse_args().runs
    if chromium_path() is None:
        sys.exit(f"there is no browser; install one of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        one = write_report(runs[0], output=Path(folder) / "one.html")
        two = write_report(*runs, output=Path(folder) / "two.html")
        for path in shoot_all(browser, one, two, Path(__file__).parent):
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
            if path.stat().st_size > MOST_BYTES:
                sys.exit(f"{path} is over {MOST_BYTES / 1000:.0f} kB; make the window smaller")


if __name__ == "__main__":
    main()
