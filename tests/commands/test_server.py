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
import schemathesis
from helpers.encoders import save_word_vectors
from helpers.paths import ROOT
from helpers.programs import run_program
from helpers.serving import PASSAGES, ROWS, ask, start
from hypothesis import settings

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.retrievers.bm25 import BM25S
from searchr1_mini.retrievers.http_client import HTTPRetriever
from searchr1_mini.retrievers.listening import listen, loopback_names
from searchr1_mini.retrievers.probes import RandomRetriever
from searchr1_mini.server import make_app

DESCRIPTION = schemathesis.openapi.from_asgi(  # of a server that finds something for any query
    "/openapi.json", make_app(RandomRetriever(PASSAGES), len(PASSAGES), "random"), config=schemathesis.Config(seed=0)
)


@DESCRIPTION.parametrize()
@settings(max_examples=100, deadline=None)
def test_what_is_answered_is_what_the_description_says(case):
    """All checks: no server error, statuses, types and schemas as documented; wrong input refused, right accepted."""
    case.call_and_validate()


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
    assert err == ""  # nor a line for each refusal: a client could fill the disk


def test_our_client_finds_what_the_engine_in_process_finds(port):
    queries = ["Oslo", "place number 3", "nothing of that", ""]
    here = BM25S(PASSAGES).search(queries, 3)
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
    assert ask(port, b'{"queries": ["place"], "topk": 2.0}')[1] == ask(port, b'{"queries": ["place"], "topk": 2}')[1]
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
        (b'{"queries": ["x"], "topk": NaN}', 422),
        (b'{"queries": ["x"], "topk": -Infinity}', 422),
        (b'{"queries": ["x"], "topk": ' + b"9" * 5000 + b"}", 400),
        (b'{"queries": ["x"], "topk": 3, "topk": "3"}', 422),
        (b'{"queries": {"\\ud800": "x"}}', 422),
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
    for method in ("GET", "PUT", "OPTIONS", "TRACE", "BREW"):
        assert ask(port, b"", method)[0] == 405
    for path in ("/retrieve/../etc/passwd", "/retrieve/", "/docs", "/%00", "//elsewhere.example/", "/?" + "a=1&" * 99):
        assert ask(port, b"{}", path=path) == (404, {"detail": "Not Found"})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("HEAD", "/health")
    assert connection.getresponse().status == 405
    connection.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 400), ("127.0.0.1.evil.example:8000", 400), ("", 400), ("localhost", 200), ("[::1]:8000", 200)],
)
def test_a_name_that_was_pointed_here_is_refused(port, host, status):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/health", headers={"Host": host})
    reply = connection.getresponse()
    assert reply.status == status and b"evil" not in reply.read()
    connection.close()


def test_a_server_for_other_machines_is_called_by_any_name():
    for address, names in (("0.0.0.0", None), ("127.0.0.2", ("127.0.0.1", "localhost", "[::1]", "127.0.0.2"))):
        with listen(address, 0) as listener:
            assert loopback_names(listener) == names


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "\xff"])
def test_a_body_of_another_type_is_refused(port, kind):
    status, reply = ask(port, b'{"queries": ["Oslo"]}', headers={"Content-Type": kind})
    assert status == 422 and "Oslo" not in json.dumps(reply)


def test_many_at_once_get_what_each_asked_for(port):
    names = [row["text"].split()[0] for row in ROWS] * 12

    def titles(name: str) -> set[str]:
        _, reply = ask(port, json.dumps({"queries": [name], "topk": 2}).encode())
        return {document["contents"].split("\n")[0] for document in reply["result"][0]}

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(titles, names)) == [{f'"The "{name}""'} for name in names]


class Odd:
    """Passages that UTF-8 cannot carry, and an index that is gone."""

    def search(self, queries, topk):
        if queries == ["gone"]:
            raise UserError("Milvus at http://secret:19530 does not answer")
        return [[Hit(Passage("1", "\ud800", "broken \udfff text"), 1.0)] for _ in queries]


def test_broken_text_is_served_and_a_lost_index_is_a_503(capsys):
    app = make_app(Odd(), 1, "odd")
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)["/retrieve"]["POST"]
    reply = operation.Case(body={"queries": ["a"]}, media_type="application/json").call_and_validate()
    assert json.loads(reply.content)["result"][0][0]["contents"] == '"\ud800"\nbroken \udfff text'
    reply = operation.Case(body={"queries": ["gone"]}, media_type="application/json").call()
    assert reply.status_code == 503 and "secret" not in reply.text
    assert "secret:19530 does not answer" in capsys.readouterr().err


def test_it_bears_a_load_of_which_a_tenth_is_malformed():
    command = [sys.executable, "checks/server_load.py", "--seconds", "3", "--clients", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    header, _, row = (line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    found = dict(zip(header, row, strict=True))
    assert found["wrong"] == found["5xx"] == "0" and int(found["valid"]) > 10 * int(found["clients"])


def test_a_server_stops_on_sigterm_and_an_evaluation_says_so(corpus, tmp_path):
    process, port = start(corpus)
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"{n}?", "answer": "x"}) + "\n" for n in range(3)))
    command = ["eval.py", "--model", "tiny", "--methods", "rag", "--datasets", str(questions)]
    command += ["--retriever", "http", "--retriever-url", f"http://127.0.0.1:{port}"]
    served = run_program(*command, "--output-dir", tmp_path / "a")
    assert served.returncode == 0 and f"the server at http://127.0.0.1:{port}" in served.stdout, served.stderr
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    dead = run_program(*command, "--output-dir", tmp_path / "b")
    assert dead.returncode == 2 and "does not answer" in dead.stderr and "Traceback" not in dead.stderr


def test_a_port_that_is_taken_is_told_before_the_corpus_is_read():
    with listen("127.0.0.1", 0) as taken:
        command = [sys.executable, "-m", "searchr1_mini.server", "--corpus", "nowhere.jsonl"]
        command += ["--port", port := str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"port {port} (" in done.stderr and "name another --port" in done.stderr
    assert done.stdout == ""


def test_small_answers_do_not_wait_for_an_acknowledgement():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_ipv6_address_is_told_in_brackets(corpus):
    process, port = start(corpus, "--host", "::1")
    assert process.told == f"serving on http://[::1]:{port}/retrieve; stop with Ctrl-C\n"
    assert HTTPRetriever(f"http://[::1]:{port}").search(["Oslo"], 1)[0]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == ""


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
        (["--port", "70000", "--corpus", "nowhere.jsonl"], "--port 70000: it must be at most 65535"),
        (["--corpus", "c.jsonl", "--dataset", "nq"], "--dataset does nothing with --corpus c.jsonl"),
        (["--corpus", "c.jsonl", "--data-path", "q.jsonl"], "--data-path does nothing with --corpus c.jsonl"),
        (["--host", "256.1.1.1", "--corpus", "nowhere.jsonl"], "cannot listen on 256.1.1.1, port 8000"),
        (["--retriever", "http"], "must be one of"),
    ],
)
def test_what_cannot_be_served_is_told(flags, told):
    command = [sys.executable, "-m", "searchr1_mini.server", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and told in result.stderr and "Traceback" not in result.stderr
