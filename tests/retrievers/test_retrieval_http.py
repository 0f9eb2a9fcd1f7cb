"""The client of the paper's retrieval server, against real servers: sound, stumbling, malformed and dead."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer

import pytest
from helpers.files import write_lines

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.options.checks import check_retriever
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.options.retrieval_config import MetricsConfig
from searchr1_mini.retrievers import http_client
from searchr1_mini.retrievers.http_client import HTTPRetriever
from searchr1_mini.retrievers.limits import MAX_QUERIES, MAX_QUERY_CHARACTERS
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_metrics


def test_the_papers_protocol_is_spoken(server):
    url, replies, seen = server
    document = {"id": "7", "contents": '"Oslo"\nCapital of Norway.'}
    replies.append((200, json.dumps({"result": [[{"document": document, "score": 2.5}], [document]]})))
    first, second = HTTPRetriever(url).search(["a", "b"], 3)
    assert first == [(Passage("7", "Oslo", "Capital of Norway."), 2.5)]
    assert second[0].passage == first[0].passage
    assert seen == [("/retrieve", {"queries": ["a", "b"], "topk": 3, "return_scores": True})]


def test_a_server_that_stumbles_is_asked_again(server):
    url, replies, seen = server
    replies += [(500, ""), (200, '{"result": [[]]}')]
    assert HTTPRetriever(url, retries=1).search(["a"], 3) == [[]]
    assert len(seen) == 2


@pytest.mark.parametrize(
    "body", ["no json", "{}", '{"result": []}', '{"result": [[{"score": 1}]]}', '{"result": [[3]]}']
)
def test_a_malformed_reply_is_said(server, body):
    url, replies, _ = server
    replies.append((200, body))
    with pytest.raises(UserError, match="--retriever-url"):
        HTTPRetriever(url).search(["a"], 3)


def test_a_reply_without_an_end_is_not_read_to_the_end(server, monkeypatch):
    url, replies, _ = server
    monkeypatch.setattr(http_client, "LARGEST_REPLY", 1000)
    replies.append((200, '{"result": [[]], "more": "' + "x" * 2000 + '"}'))
    with pytest.raises(UserError, match="more than 1000 bytes"):
        HTTPRetriever(url).search(["a"], 3)


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"hello\r\n\r\n", b""])
def test_a_reply_that_breaks_off_is_said(reply):
    class Handler(StreamRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.wfile.write(reply)

    with TCPServer(("127.0.0.1", 0), Handler) as tcp:
        threading.Thread(target=tcp.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(UserError, match="does not answer"):
            HTTPRetriever(f"http://127.0.0.1:{tcp.server_address[1]}", retries=0).search(["a"], 3)
        tcp.shutdown()


def ask_bytes(reply, more: bytes = b"", **options):
    """Asks a server that answers with these bytes, and then with more, time and again until it is left alone."""
    over = threading.Event()

    class Handler(StreamRequestHandler):
        def handle(self):
            headers = "".join(line.decode() for line in iter(self.rfile.readline, b"\r\n"))
            self.rfile.read(int(headers.lower().partition("content-length:")[2].split()[0]))
            self.wfile.write(reply)
            with suppress(OSError):  # the client has gone
                while more and not over.wait(0.01):
                    self.wfile.write(more)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as tcp:
        threading.Thread(target=tcp.serve_forever, args=(0.01,), daemon=True).start()
        try:
            return HTTPRetriever(f"http://127.0.0.1:{tcp.server_address[1]}", retries=0, **options).search(["a"], 3)
        finally:
            over.set()
            tcp.shutdown()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reply", "more"),
    [
        (b"", b"H"),
        (OK, b"X: y\r\n"[:1]),
        (OK + b"Content-Length: 100000\r\n\r\n", b"{"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (OK + b"\r\n", b" "),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", b"n"),
    ],
)
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(reply, more):
    """No single wait is long: only a time-out for all of the answer ends it."""
    with pytest.raises(UserError, match=r"does not answer \(no whole answer within 0.5 s\)"):
        ask_bytes(reply, more, timeout_s=0.5)


def test_chunks_without_an_end_are_not_read_to_the_end(monkeypatch):
    monkeypatch.setattr(http_client, "LARGEST_REPLY", 100_000)
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    with pytest.raises(UserError, match="more than 100000 bytes"):
        ask_bytes(OK + b"Transfer-Encoding: chunked\r\n\r\n", chunk)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_not_followed(server, status):
    url, _, seen = server
    reply = f"HTTP/1.1 {status} Moved\r\nLocation: {url}/retrieve\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(UserError, match=rf"redirects to {url}/retrieve, and redirects are not followed"):
        ask_bytes(reply.encode())
    assert seen == []


@pytest.mark.parametrize(
    "reply",
    [
        b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**8), 1, mtime=0),
        b"Content-Type: text/html\r\n\r\n<html>Sign in</html>",
    ],
    ids=["gzip", "html"],
)
def test_what_was_not_asked_for_is_told_and_not_unpacked(reply):
    with pytest.raises(UserError, match=r"did not answer in the form .* check --retriever-url"):
        ask_bytes(OK + reply)


def test_more_than_a_server_takes_at_once_is_sent_in_parts(server):
    url, replies, seen = server
    documents = [{"id": str(n), "contents": f"t\n{n}"} for n in range(MAX_QUERIES + 1)]
    parts = [documents[:MAX_QUERIES], documents[MAX_QUERIES:]]
    replies += [(200, json.dumps({"result": [[document] for document in part]})) for part in parts]
    found = HTTPRetriever(url).search(["x" * (MAX_QUERY_CHARACTERS + 1)] * len(documents), 3)
    assert [hit.passage.text for (hit,) in found] == [document["contents"][2:] for document in documents]
    assert [len(body["queries"]) for _, body in seen] == [MAX_QUERIES, 1]
    assert {len(query) for _, body in seen for query in body["queries"]} == {MAX_QUERY_CHARACTERS}


def test_no_query_is_no_request(server):
    assert HTTPRetriever(server[0]).search([], 3) == []


def test_a_servers_refusal_is_quoted_and_not_retried(server):
    url, replies, seen = server
    replies.append((422, '{"detail": "topk \x1b[31m"}' + "x" * 1000))
    with pytest.raises(UserError, match=r"refuses the request \(HTTP Error 422") as told:
        HTTPRetriever(url).search(["a"], 3)
    assert r'"topk \x1b[31m"' in str(told.value) and len(str(told.value)) < 700 and len(seen) == 1


@pytest.mark.parametrize(
    "refused",
    [
        lambda: resolve(make(TrainConfig, dataset="hotpotqa", retriever="http", retriever_url="http://h:1", topk=101)),
        lambda: check_retriever(MetricsConfig(retriever="http", retriever_url="http://h:1", topk="1,101"), ["http"]),
    ],
)
def test_topk_beyond_the_servers_limit_is_refused_in_advance(refused):
    with pytest.raises(UserError, match=r"--topk .*101: a retrieval server gives at most 100"):
        refused()


@pytest.mark.parametrize("url", ["host", "host:8000", "localhost:9/retrieve", "http://h:abc", "http://", "http://a b"])
def test_what_is_no_address_is_said(url):
    with pytest.raises(UserError, match="write it as http"):
        HTTPRetriever(url)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://h:1", "http://h:1/retrieve"),
        ("http://h/", "http://h/retrieve"),
        ("http://h/v1/find", "http://h/v1/find"),
    ],
)
def test_the_path_is_added_where_none_is_given(url, asked):
    assert HTTPRetriever(url).url == asked


def test_a_dead_server_is_said():
    with pytest.raises(UserError, match="does not answer"):
        HTTPRetriever("http://127.0.0.1:9", retries=0).search(["a"], 3)


@pytest.fixture
def flaky_server():
    """A retrieval server that finds nothing, and refuses while its switch is off; counts what it was asked."""
    state = {"is_on": True, "requests": 0, "off_after": None}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            state["requests"] += 1
            if state["requests"] == state["off_after"]:
                state["is_on"] = False
            self.send_response(200 if state["is_on"] else 403)
            self.end_headers()
            self.wfile.write(json.dumps({"result": [[] for _ in queries]}).encode())

        def log_message(self, *_):
            """Keeps the test's output clean."""

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", state
    http.shutdown()
    http.server_close()


def test_a_server_that_stays_down_costs_no_finished_step(flaky_server, tmp_path):
    url, state = flaky_server
    examples = world_examples(make_world(0, "train"), [1], 40, 0)
    questions = [{"id": e.id, "question": e.question, "golden_answers": list(e.golden_answers)} for e in examples]
    config = make(TrainConfig, 
        dataset="jsonl", data_path=write_lines(tmp_path / "q.jsonl", questions), retriever="http", retriever_url=url,
        steps=6, questions_per_step=4, group_size=4, eval_questions=2, eval_every=6, save_every=6, tensorboard=False,
        template="short", output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    state["off_after"] = 8
    with pytest.raises(
        UserError, match=r"refuses the request.*step \d is saved; continue with: python train.py --resume"
    ):
        train(resolve(config))
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    done = int(saved.name[-1])
    assert 0 < done < 6
    state |= {"is_on": True, "off_after": None}
    train(resolve(with_options(config, resume=True)))
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]
