"""The smallest real things: the shipped tokenizer, a random two-layer Qwen2 on disk, and the real Qwen2.5 tokenizer."""

from __future__ import annotations

import json
import os
import runpy
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from helpers.models import CPU, save_random_qwen2
from helpers.paths import ROOT
from hypothesis import settings
from transformers import AutoTokenizer

from searchr1_mini.core import interrupt
from searchr1_mini.core.policy import Policy
from searchr1_mini.models.loading import load_policy
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.storage import status

SCREENSHOTS = runpy.run_path(str(ROOT / "docs" / "screenshots.py"))
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


def pytest_collection_modifyitems(items):
    """The slowest files come first: no process is left with one of them while the others have nothing to do."""
    items.sort(key=lambda item: item.path.name not in ("test_real_model.py", "test_notebooks.py"))


@pytest.fixture(autouse=True)
def nobody_asked():
    """A test that leaves a step in its midst, asks to stop, or begins a phase, does so alone."""
    yield
    interrupt.clear()
    status.now(None)


@pytest.fixture(scope="module")
def browser():
    """The headless Chromium that also takes the pictures of the docs."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
    if SCREENSHOTS["chromium_path"]() is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with SCREENSHOTS["chromium"]() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve_model("tiny"))


@pytest.fixture(scope="session")
def random_qwen2(tmp_path_factory, tokenizer) -> Path:
    return save_random_qwen2(tmp_path_factory.mktemp("qwen2"), tokenizer)


@pytest.fixture(scope="session")
def random_policy(random_qwen2) -> Policy:
    return load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )


@pytest.fixture(scope="session")
def tiny_policy() -> Policy:
    return load_policy(
        resolve_model("tiny"), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = os.environ.get("SEARCHR1_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SEARCHR1_SHARED names no folder with the real Qwen2.5 tokenizer and the HotpotQA sample")
    return Path(folder)


@pytest.fixture(scope="session")
def qwen_tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "qwen2.5-tokenizer")


@pytest.fixture
def server():
    """A retrieval server whose replies the test sets: a list of (status, body)."""
    replies, seen = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, body = replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            """Keeps the test's output clean."""

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", replies, seen
    http.shutdown()
    http.server_close()
