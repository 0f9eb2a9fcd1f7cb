"""The retrieval server as its users meet it: our client, the public code's requests, malformed ones, many at once."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from encoders import save_word_vectors

from searchr1_mini.corpus import parse_passage
from searchr1_mini.retrieval import BM25S, HTTPRetriever

ROOT = Path(__file__).parent.parent
ROWS = [
    {"id": str(n), "title": f'The "{name}"', "text": f"{name} is a place number {n}."}
    for n, name in enumerate("Oslo Bern Rome Bari Lima Oslo Quito".split())
]


def start(corpus: Path, *flags: str) -> tuple[subprocess.Popen, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "searchr1_mini.server", "--corpus", str(corpus), "--retriever", "bm25s"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("serving on"):
            break
    HTTPRetriever(f"http://127.0.0.1:{port}", retries=6).search(["up?"], 1)
    return process, port


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def port(corpus):
    process, port = start(corpus, "--max-body-mb", "1")
    yield port
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert "Traceback" not in err


def ask(port: int, body: bytes, method: str = "POST", path: str = "/retrieve", headers=None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, json.loads(text)


def test_our_client_finds_what_the_engine_in_process_finds(port):
    queries = ["Oslo", "place number 3", "nothing of that", ""]
    passages = [parse_passage(row, "here") for row in ROWS]
    here = BM25S(passages).search(queries, 3)
    there = HTTPRetriever(f"http://127.0.0.1:{port}").search(queries, 3)
    assert [[hit.passage for hit in hits] for hits in there] == [[hit.passage for hit in hits] for hits in here]
    assert [[h.score for h in hits] for hits in there] == [pytest.approx([h.score for h in hits]) for hits in here]


def test_requests_of_the_public_code_are_answered(port):
    status, reply = ask(port, json.dumps({"queries": ["Oslo"], "topk": 1, "return_scores": True}).encode())
    (hit,) = reply["result"][0]
    assert status == 200 and hit["document"]["contents"] == '"The "Oslo""\nOslo is a place number 0.'
    assert isinstance(hit["score"], float)
    status, reply = ask(port, json.dumps({"queries": ["Oslo", "Bern"], "topk": None}).encode())
    assert status == 200 and set(reply["result"][1][0]) == {"id", "contents"} and len(reply["result"][0]) <= 3
    assert ask(port, b"", "GET", "/health") == (200, {"status": "ok", "passages": 7, "retriever": "bm25s"})
    assert "/retrieve" in ask(port, b"", "GET", "/openapi.json")[1]["paths"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"\xff\xfe{}", 422),
        (b'{"queries": "Oslo"}', 422),
        (b'{"queries": [1]}', 422),
        (b'{"queries": [null]}', 422),
        (b'{"queries": ["\\ud800"]}', 422),
        (b'{"queries": ["x"], "topk": 0}', 422),
        (b'{"queries": ["x"], "topk": 1000000000}', 422),
        (b'{"queries": ["x"], "topk": "3"}', 422),
        (b'{"queries": ["x"], "return_scores": "yes"}', 422),
        (b'{"queries": ["x"], "topk": 1e999}', 422),
        (b'{"queries": ["' + b"x" * 20_000 + b'"]}', 422),
        (json.dumps({"queries": ["x"] * 2000}).encode(), 422),
        (b"[" * 100_000, 400),
        (b"x" * (2 << 20), 413),
    ],
)
def test_a_malformed_request_is_refused_and_the_next_is_served(port, body, status):
    told, reply = ask(port, body)
    assert told == status and "detail" in reply and len(json.dumps(reply)) < 2000
    assert ask(port, b'{"queries": ["Oslo"]}')[0] == 200


def test_a_body_that_hides_its_length_is_cut_off(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    chunks = (b"x" * 65536 for _ in range(64))
    try:
        connection.request("POST", "/retrieve", chunks, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server hung up while we were still sending
    finally:
        connection.close()
    assert ask(port, b'{"queries": ["Oslo"]}')[0] == 200


def test_other_paths_and_verbs_are_refused(port):
    assert ask(port, b"", "GET")[0] == 405
    assert ask(port, b"{}", path="/retrieve/../etc/passwd")[0] == 404


def test_many_at_once_get_what_each_asked_for(port):
    names = [row["text"].split()[0] for row in ROWS] * 12

    def titles(name: str) -> set[str]:
        _, reply = ask(port, json.dumps({"queries": [name], "topk": 2}).encode())
        return {document["contents"].split("\n")[0] for document in reply["result"][0]}

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(titles, names)) == [{f'"The "{name}""'} for name in names]


def test_it_stops_when_it_is_told_and_an_evaluation_against_it_says_so(corpus, tmp_path):
    process, port = start(corpus)
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"{n}?", "answer": "x"}) + "\n" for n in range(3)))
    command = [sys.executable, "eval.py", "--model", "tiny", "--methods", "rag", "--datasets", str(questions)]
    command += ["--retriever", "http", "--retriever-url", f"http://127.0.0.1:{port}"]
    served = subprocess.run([*command, "--output-dir", str(tmp_path / "a")], cwd=ROOT, capture_output=True, text=True)
    assert served.returncode == 0 and f"the server at http://127.0.0.1:{port}" in served.stdout, served.stderr
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    dead = subprocess.run([*command, "--output-dir", str(tmp_path / "b")], cwd=ROOT, capture_output=True, text=True)
    assert dead.returncode == 2 and "does not answer" in dead.stderr and "Traceback" not in dead.stderr


def test_it_serves_bm25_by_stems_and_an_encoder_in_one(corpus, tmp_path, monkeypatch):
    encoder = save_word_vectors(tmp_path / "m", [f"{row['title']} {row['text']}" for row in ROWS], {"rhine": "bern"})
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path / "cache"))
    process, port = start(corpus, "--retriever", "hybrid", "--dense-model", encoder, "--stemming")
    synonym, stem = HTTPRetriever(f"http://127.0.0.1:{port}").search(["Rhine", "numbered place of Lima"], 3)
    assert synonym[0].passage.title == 'The "Bern"' and stem[0].passage.title == 'The "Lima"'
    assert stem[0].score == pytest.approx(2 / 61)  # first in both
    assert ask(port, b"", "GET", "/health")[1]["retriever"] == "hybrid"
    process.send_signal(signal.SIGTERM)
    assert "Traceback" not in process.communicate(timeout=30)[1]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--retriever", "milvus"], "needs the address of a server"),
        (["--retriever", "bm25s", "--retriever-url", "m.db"], "it needs --retriever http or milvus"),
        (["--corpus", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--port", "0"], "must be at least 1"),
        (["--retriever", "http"], "must be one of"),
    ],
)
def test_what_cannot_be_served_is_told(flags, told):
    command = [sys.executable, "-m", "searchr1_mini.server", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and told in result.stderr and "Traceback" not in result.stderr
