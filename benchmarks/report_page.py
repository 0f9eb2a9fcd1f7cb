"""Size and speed of the report: `python benchmarks/report_page.py runs/NAME --steps 200` (needs Chromium).

A run of fewer steps is lengthened: its steps follow one another again and again. Opening is timed in a headless browser
from the request to the frame after the page has loaded, when the first group is on the screen; then picking a question.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from searchr1_mini.pages.report import write_report
from searchr1_mini.storage.files import read_metrics, write_jsonl_atomic

SCREENSHOTS = Path(__file__).parent.parent / "docs" / "screenshots.py"
NEXT_FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def lengthened(run: Path, n_steps: int, folder: Path) -> Path:
    """A copy of a run, without its weights, whose steps are repeated until there are `n_steps`."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.safetensors", "state.pt", "tensorboard", "*.html"))
    rows, files = read_metrics(run / "metrics.jsonl"), sorted((run / "rollouts").glob("step-*.jsonl"))
    write_jsonl_atomic(folder / "metrics.jsonl", [rows[n % len(rows)] | {"step": n + 1} for n in range(n_steps)])
    for n in range(n_steps):
        shutil.copy(files[n % len(files)], folder / "rollouts" / f"step-{n + 1:06d}.jsonl")
    return folder


def main() -> None:
    """Prints megabytes, seconds to write, and milliseconds to open and to pick a question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--times", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, runpy.run_path(str(SCREENSHOTS))["chromium"]() as browser:
        run = lengthened(args.run, args.steps, Path(folder) / "run")
        write_report(args.run, output=Path(folder) / "first.html")  # imports
        began = time.perf_counter()
        report = write_report(run)
        print(f"written in {time.perf_counter() - began:.1f} s: {report.stat().st_size / 1e6:.2f} MB")
        opening, picking = [], []
        for _ in range(args.times):
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            began = time.perf_counter()
            page.goto(report.as_uri())
            page.evaluate(NEXT_FRAME)
            opening.append(time.perf_counter() - began)
            n_shown, began = page.locator(".card").count(), time.perf_counter()
            page.get_by_label("next question").click()
            page.evaluate(NEXT_FRAME)
            picking.append(time.perf_counter() - began)
            told = page.locator("#trajectories > .soft").text_content()
            page.close()
        print(json.dumps({"rollouts shown": n_shown, "the page says": told.split(":")[0]}))
        for name, times in (("open", opening), ("next question", picking)):
            print(f"{name}: median {1000 * median(times):.0f} ms, longest {1000 * max(times):.0f} ms")


if __name__ == "__main__":
    main()
