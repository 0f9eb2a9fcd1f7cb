"""The retrieval server against clients that speak no HTTP, take their time, or are too many: raw sockets."""

from __future__ import annotations

import json
import re
import signal
import socket
import time

import psutil
import pytest
from helpers.serving import ROWS, ask, start

LONG = {"id": "long", "title": "Long", "text": "long " * 20_000}
GOOD = b'{"queries": ["Oslo"], "topk": 1}'
HEAD = b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
VALID = HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, LONG]))
    process, port = start(path, "--max-body-mb", "1", "--body-timeout", "0.5", "--max-connections", "12")
    yield psutil.Process(process.pid), port
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == ""


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def send(port: int, data: bytes) -> bytes:
    """Everything that comes back until the server hangs up."""
    reply = b""
    with connect(port) as raw:
        try:
            raw.sendall(data)
            while part := raw.recv(1 << 16):
                reply += part
        except ConnectionError:
            pass  # it hung up on what we were still sending
    return reply


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00 a TLS hello\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"secret" * 200_000 + b"\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 2000000\r\n\r\n" + b"x" * 2_000_000, b"413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nsecret\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", b"400"),
        (HEAD + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n", b"422"),
        (VALID.replace(b"HTTP/1.1", b"HTTP/1.0"), b"200"),
    ],
)
def test_bad_http_is_refused_without_an_echo(server, data, status):
    reply = send(server[1], data)
    is_lost = not reply and len(data) > 1_000_000  # it hung up, and the answer went with the connection
    assert (is_lost or reply[9:12] == status) and b"secret" not in reply, reply
    assert ask(server[1], GOOD)[0] == 200


def test_pipelined_requests_are_answered_in_order(server):
    odd = HEAD + b"Content-Length: 2\r\n\r\n{}"
    reply = send(server[1], VALID + odd + VALID + b"\x00 no HTTP\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", reply) == [b"200", b"422", b"200", b"400"]


@pytest.mark.parametrize("pause", [0.02, 20.0], ids=["byte by byte", "never finished"])
def test_a_slow_body_holds_up_nobody_and_is_told(server, pause):
    with connect(server[1]) as raw:
        raw.sendall(HEAD + b"Content-Length: 900000\r\n\r\n{")
        assert ask(server[1], GOOD)[0] == 200
        raw.settimeout(pause)
        for _ in range(1000):
            try:
                reply = raw.recv(1 << 16)
                break
            except TimeoutError:
                raw.sendall(b" ")
        assert reply.split(b" ")[1] == b"408"


@pytest.mark.parametrize("start", [b"", b"POST /retrieve HT", VALID + b"GET / HT"], ids=["silent", "first", "second"])
def test_a_client_that_stalls_in_its_headers_is_dropped(server, start):
    reply = send(server[1], start)  # ends when the server hangs up
    assert reply == b"" or reply.split(b" ")[1] == b"200"


def test_an_answer_that_nobody_takes_is_dropped(server):
    process, port = server
    fds = process.num_fds()
    body = json.dumps({"queries": ["long"] * 300, "topk": 1}).encode()  # 30 MB to come: more than sockets hold
    with connect(port) as raw:
        raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        raw.recv(1)
        assert process.num_fds() == fds + 1
        until(process.num_fds, fds)
    assert ask(port, GOOD)[0] == 200


def test_too_many_connections_are_told_so_and_dropped(server):
    process, port = server
    fds = process.num_fds()
    idle = [connect(port) for _ in range(11)]
    assert ask(port, GOOD)[0] == 200
    idle += [connect(port) for _ in range(12)]
    assert send(port, VALID)[9:12] == b"503"
    beyond = [connect(port) for _ in range(9)]
    assert send(port, VALID) == b""
    for raw in idle + beyond:
        with raw:
            assert received(raw) == b""
    until(process.num_fds, fds)
    assert ask(port, GOOD)[0] == 200


def received(raw: socket.socket) -> bytes:
    try:
        return raw.recv(1)
    except ConnectionError:
        return b""


def until(measure, wanted: int, seconds: float = 20.0) -> None:
    """Waits for a number of the server's to come down."""
    end = time.monotonic() + seconds
    while measure() > wanted:
        assert time.monotonic() < end, (measure(), wanted)
