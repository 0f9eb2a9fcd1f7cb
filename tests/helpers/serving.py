"""A retrieval server in a process of its own, over a few passages, and the ways to talk to it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT

from searchr1_mini.data.corpus import parse_passage
from searchr1_mini.retrievers.http_client import HTTPRetriever

ROWS = [
    {"id": str(n), "title": f'The "{name}"', "text": f"{name} is a place number {n}."}
    for n, name in enumerate("Oslo Bern Rome Bari Lima Oslo Quito".split())
]
PASSAGES = [parse_passage(row, "here") for row in ROWS]


def start(corpus: Path, *flags: str, env: dict[str, str] | None = None) -> tuple[subprocess.Popen, int]:
    """Starts a server on a free port and waits until it answers; returns its process and the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "searchr1_mini.server", "--corpus", str(corpus), "--retriever", "bm25s"]
    command += ["--port", str(port), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
    for line in process.stdout:
        if line.startswith("serving on"):
            break
    process.told = line
    HTTPRetriever(line.removeprefix("serving on ").split(";")[0], retries=6).search(["up?"], 1)
    return process, port


def ask(port: int, body: bytes, method: str = "POST", path: str = "/retrieve", headers=None) -> tuple[int, dict]:
    """Status and JSON of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, json.loads(text)
