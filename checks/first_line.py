"""How long each command of the README shows nothing: until its first line, and at the longest, on a terminal.

    python checks/first_line.py                                     the tiny model
    python checks/first_line.py --model SmolLM2-135M-Instruct       with a real one, its evaluation and first step

Each command runs on a pseudo-terminal of 80 columns. A sign of life is anything that it writes.
"""

from __future__ import annotations

import argparse
import os
import pty
import shlex
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST, LONGEST = 1.0, 2.0  # seconds
COMMANDS = [
    "train.py {small} --output-dir {folder}/run",
    "train.py --preset laptop-llm --model {model} --steps 1 --cold-start 16 --cold-start-multi-hop 0.5 "
    "--eval-questions 8 --no-tensorboard --output-dir {folder}/real",
    "eval.py --run {folder}/run --limit 20 --output-dir {folder}/eval",
    "eval.py --run {folder}/run --ask 'Who is the mayor of Oslo?'",
    "-m searchr1_mini.report {folder}/run",
    "-m searchr1_mini.classroom {folder}",
    "-m searchr1_mini.export {folder}/run --output-dir {folder}/export",
    "-m searchr1_mini.preflight --model tiny --device cpu",
    "-m searchr1_mini.retrieval_metrics --dataset {folder}/q.jsonl --corpus {folder}/notes --retriever bm25s",
    "-m searchr1_mini.make_questions {folder}/notes --model tiny --out {folder}/drafts.jsonl",
    "-m searchr1_mini.ablate topk --seeds 1 --steps 1 --output-dir {folder}/study",
    "-m searchr1_mini.race --output-dir {folder}/race -- --steps 2 --questions-per-step 8 --group-size 4",
]
SMALL = "--steps 2 --questions-per-step 8 --group-size 4 --eval-questions 20 --no-tensorboard"


def watched(words: list[str]) -> tuple[int, float, float, bytes]:
    """Runs Python with these words: its exit code, seconds to the first output, the longest silence, what it wrote."""
    began = last = time.monotonic()
    process, terminal = pty.fork()
    if process == 0:
        os.environ["COLUMNS"] = "80"
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, *words])
    written, first, longest = b"", None, 0.0
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # what Linux says at the end
            data = b""
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if not data:
            break
        first = first or now - began
        written += data
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), first or longest, longest, written


def main() -> int:
    """Prints a row for each command; 1 if one was silent for too long, or failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a real model, to watch too")
    asked = parser.parse_args()
    is_good = True
    print("| command | first output, s | longest silence, s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "notes").mkdir()
        (Path(folder) / "notes" / "oslo.md").write_text("Oslo is the capital of Norway.")
        (Path(folder) / "q.jsonl").write_text('{"question": "What is the capital of Norway?", "answer": "Oslo"}\n')
        for command in COMMANDS:
            if "{model}" in command and not asked.model:
                continue
            words = shlex.split(command.format(folder=folder, small=SMALL, model=asked.model))
            code, first, longest, written = watched(words)
            is_good &= code == 0 and first <= FIRST and longest <= LONGEST
            shown = command.replace("{folder}/", "").replace("{small}", "").split(" --")[0]
            print(f"| `{shown}` | {first:.2f} | {longest:.2f} |", flush=True)
            if code:
                print(f"exit code {code}:\n{written[-2000:].decode(errors='replace')}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
