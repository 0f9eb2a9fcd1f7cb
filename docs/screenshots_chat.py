"""The pictures in docs/chat.md: `python docs/screenshots_chat.py runs/NAME`, a run on the tiny base; with Chromium."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from searchr1_mini.data.world import make_world

ROOT = Path(__file__).parent.parent
QUESTION = "Who was the teacher of the person who is mayor of Apple Park?"


def shoot_chat(browser, address: str, question: str, path: Path, width: int, height: int, scheme: str) -> Path:
    """A picture of the chat's page once it has answered a question.

    Args:
        browser: Chromium, by playwright.
        address: of the page.
        path: the picture, a PNG.
        width, height: of the window, in CSS pixels.
        scheme: light or dark.
    """
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(address)
    page.locator("#about:not(:empty)").wait_for()
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.locator(".answer").wait_for()
    page.screenshot(path=path)
    page.close()
    return path


@contextmanager
def served(run: Path) -> Iterator[str]:
    """`eval.py --web` for a run, with a world that it has not seen as a folder of texts; gives the page's address."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.mkdir()
        for passage in make_world(511, "eval", "natural", 0).passages:
            (notes / f"{passage.title}.txt").write_text(passage.text, encoding="utf-8")
        (Path(folder) / run.name).symlink_to(run.resolve())
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        command = [sys.executable, str(ROOT / "eval.py"), "--web", "--port", port]
        command += ["--run", run.name, "--corpus", "notes"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
        try:
            words = (word for line in process.stdout for word in line.split())
            address = next((word for word in words if word.startswith("http")), None)
            if address is None:
                sys.exit(f"eval.py --web did not start for {run}; what it says stands above")
            yield address
        finally:
            process.terminate()
            process.wait()


def shoot_all_of_chat(browser, run: Path, folder: Path) -> list[Path]:
    """The pictures of docs/chat.md."""
    with served(run) as address:
        return [
            shoot_chat(browser, address, QUESTION, folder / "chat.png", 900, 940, "light"),
            shoot_chat(browser, address, QUESTION, folder / "chat_phone.png", 390, 844, "dark"),
        ]


def main() -> None:
    """Writes the pictures to docs/."""
    from screenshots import chromium  # beside this file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    with chromium() as browser:
        for path in shoot_all_of_chat(browser, run, Path(__file__).parent):
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
