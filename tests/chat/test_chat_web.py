"""The application behind the chat's page, in process, message by message."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
import sys

import pytest
from helpers.chat_app import Gated, answering, free_port
from helpers.chats import SEARCH
from helpers.dictated import OSLO
from helpers.paths import ROOT

from searchr1_mini.chat import web
from searchr1_mini.chat.terminal import MAX_QUESTION
from searchr1_mini.core.errors import UserError
from searchr1_mini.retrievers.listening import listen

JSON = {"host": "127.0.0.1:8765", "content-type": "application/json"}


class Request:
    """One request of an ASGI application; it goes away once `leaves` is set."""

    def __init__(self, app, path: str, body: bytes = b"", method: str = "POST", headers: dict = JSON) -> None:
        self.app, self.body, self.leaves = app, [body], asyncio.Event()
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": raw,
            "root_path": "", "server": ("127.0.0.1", 8765), "client": ("127.0.0.1", 5),
        }  # fmt: skip
        self.status, self.headers, self.parts = 0, {}, []

    async def receive(self) -> dict:
        if self.body:
            return {"type": "http.request", "body": self.body.pop(), "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message.get("body"):
            self.parts.append(message["body"])

    async def run(self) -> Request:
        await self.app(self.scope, self.receive, self.send)
        return self

    @property
    def pieces(self) -> list[tuple[str, str]]:
        return [(row["kind"], row["text"]) for row in map(json.loads, b"".join(self.parts).splitlines())]


def ask(app, question: str) -> Request:
    return Request(app, "/ask", json.dumps({"question": question}).encode())


def test_an_answer_comes_in_pieces_by_who_wrote_them(tokenizer):
    reply = asyncio.run(ask(web.make_chat_app(answering(tokenizer, OSLO)), "Where is Oslo?").run())
    assert reply.status == 200 and reply.headers["content-type"] == "application/x-ndjson"
    kinds = list(dict.fromkeys(kind for kind, _ in reply.pieces))
    assert kinds == ["policy", "observation", "answer"] and reply.pieces[-1] == ("answer", "Norway")
    said = "".join(text for kind, text in reply.pieces if kind == "policy")
    assert said == f"{SEARCH}<answer> Norway </answer>" and len(reply.parts) > 10


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/ask", b'{"question": "Who?"}', {"host": "evil.example"}, 400),
        ("GET", "/", b"", {"host": "127.0.0.1.evil.example:8765"}, 400),
        ("GET", "/", b"", {"host": "localhost:8765"}, 200),
        ("GET", "/", b"", {"host": "[::1]:8765"}, 200),
        ("POST", "/ask", b'{"question": "Who?"}', {"content-type": "text/plain"}, 422),
        ("POST", "/ask", b'{"question": "Who?"}', {"content-type": ""}, 422),
        ("POST", "/ask", b"question=Who", {"content-type": "application/x-www-form-urlencoded"}, 422),
        ("GET", "/ask", b"", {}, 405),
        ("OPTIONS", "/ask", b"", {"origin": "http://evil.example", "access-control-request-method": "POST"}, 405),
        ("POST", "/ask", b"{", {}, 422),
        ("POST", "/ask", b'{"question": 3}', {}, 422),
        ("POST", "/ask", b'{"question": "\\ud800"}', {}, 422),
        ("POST", "/ask", json.dumps({"question": "x" * (MAX_QUESTION + 1)}).encode(), {}, 422),
        ("POST", "/ask", b'{"question": "' + b"x" * 70_000 + b'"}', {}, 413),
        ("GET", "/docs", b"", {}, 404),
        ("GET", "/openapi.json", b"", {}, 404),
        ("GET", "/../etc/passwd", b"", {}, 404),
    ],
)
def test_only_the_pages_own_requests_are_answered(tokenizer, method, path, body, headers, status):
    """No header of any reply allows another site to read it."""
    app = web.make_chat_app(answering(tokenizer))
    reply = asyncio.run(Request(app, path, body, method, JSON | headers).run())
    assert reply.status == status
    assert not any(name.startswith("access-control") for name in reply.headers)
    assert len(b"".join(reply.parts)) < 1000 or path == "/"


def test_a_failed_question_is_explained_and_the_next_is_answered(tokenizer):
    app = web.make_chat_app(answering(tokenizer, OSLO, times=2))
    assert asyncio.run(ask(app, " \n ").run()).pieces == [
        ("error", "the question is blank or broken Unicode; ask in UTF-8")
    ]
    (kind, text), *rest = asyncio.run(ask(app, "why " * 900).run()).pieces
    assert kind == "error" and "--max-total-tokens" in text and not rest
    assert asyncio.run(ask(app, "Where is Oslo?").run()).pieces[-1] == ("answer", "Norway")


def test_questions_wait_their_turn_and_too_many_are_refused(tokenizer):
    chat = answering(tokenizer, times=web.MAX_WAITING)
    chat.retriever = gate = Gated()
    app = web.make_chat_app(chat)

    async def scene() -> list[Request]:
        requests = [ask(app, f"Question {n}?") for n in range(web.MAX_WAITING)]
        tasks = [asyncio.create_task(requests[0].run())]
        await asyncio.to_thread(gate.waits.wait, 60)
        for request in requests[1:]:
            tasks.append(asyncio.create_task(request.run()))
            while not request.parts:
                await asyncio.sleep(0)
        late = await ask(app, "Late?").run()
        gate.goes_on.set()
        await asyncio.gather(*tasks)
        return [*requests, late]

    first, *others, late = asyncio.run(scene())
    assert first.pieces[0][0] == "policy" and late.status == 503 and b"ask again later" in late.parts[0]
    for number, other in enumerate(others, start=1):
        assert other.pieces[0] == ("waiting", f"{number} before this one")
        assert other.pieces[-1] == ("answer", "Norway")


def test_a_client_that_goes_away_stops_its_answer(tokenizer):
    chat = answering(tokenizer, times=2)
    chat.retriever = gate = Gated()
    app = web.make_chat_app(chat)

    async def scene() -> tuple[Request, Request]:
        gone, next_one = ask(app, "First?"), ask(app, "Second?")
        task = asyncio.create_task(gone.run())
        await asyncio.to_thread(gate.waits.wait, 60)
        gone.leaves.set()
        await task
        gate.goes_on.set()
        await next_one.run()
        return gone, next_one

    gone, next_one = asyncio.run(scene())
    assert "answer" not in dict(gone.pieces)
    assert next_one.pieces[-1] == ("answer", "Norway")
    said = "".join(text for kind, text in next_one.pieces if kind == "policy")
    assert not said.startswith("<think>")  # it goes on where the first broke off


def test_clients_that_go_away_while_they_wait_leave_the_line(tokenizer):
    chat = answering(tokenizer, times=2)
    chat.retriever = gate = Gated()
    app = web.make_chat_app(chat)

    async def scene() -> tuple[Request, Request]:
        first, *gone = (ask(app, f"Question {n}?") for n in range(web.MAX_WAITING))
        tasks = [asyncio.create_task(first.run())]
        await asyncio.to_thread(gate.waits.wait, 60)
        for request in gone:
            tasks.append(asyncio.create_task(request.run()))
            while not request.parts:
                await asyncio.sleep(0)
            request.leaves.set()
        await asyncio.gather(*tasks[1:])
        tasks.append(asyncio.create_task((late := ask(app, "Late?")).run()))
        while not late.parts:
            await asyncio.sleep(0)
        gate.goes_on.set()
        await asyncio.gather(*tasks)
        return first, late

    first, late = asyncio.run(scene())
    assert late.status == 200 and late.pieces[0] == ("waiting", "1 before this one")
    assert first.pieces[-1] == late.pieces[-1] == ("answer", "Norway")


def test_a_port_that_is_taken_is_told():
    with listen("127.0.0.1", free_port()) as taken, pytest.raises(UserError, match="name another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="name another --port"):
        listen("127.0.0.1", 70_000)


def test_the_command_serves_until_ctrl_c(tmp_path):
    """As a user starts it: the flags, a corpus of texts, the tiny base."""
    (tmp_path / "oslo.md").write_text("Oslo is the capital of Norway.")
    command = [sys.executable, "eval.py", "--web", "--model", "tiny", "--methods", "rag", "--corpus", str(tmp_path)]
    command += ["--port", str(port := free_port())]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stdout if "http" in line)
    assert line == f"open http://127.0.0.1:{port}/ in a browser; stop with Ctrl-C\n"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/ask", '{"question": "Where is Oslo?"}', {"Content-Type": "application/json"})
    pieces = [json.loads(line) for line in connection.getresponse()]
    assert "capital of Norway" in pieces[0]["text"] and pieces[-1]["kind"] == "answer"
    connection.close()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and out == ""
