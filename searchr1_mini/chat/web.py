"""The chat as a page in the browser: `python eval.py --web`.

    GET  /       the page, with nothing to be fetched from elsewhere
    GET  /about  -> {"about": what answers, "examples": questions to begin with}
    POST /ask    {"question": ".."} -> a line of JSON for each piece, {"kind", "text"}, as it is there: kind is waiting,
                 policy, observation, answer or error

It listens on this machine only, unless --host says otherwise; it has no password. One question is answered at a time. A
client that goes away stops its answer.
"""

# no `from __future__ import annotations`: FastAPI reads the types of functions inside a function

import asyncio
import base64
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from searchr1_mini.chat.terminal import MAX_QUESTION, Chat, Tell, verdict
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.interrupt import Stopped
from searchr1_mini.retrievers.limits import LimitBody, bounded_protocol
from searchr1_mini.retrievers.listening import LOOPBACK, in_address
from searchr1_mini.storage.printable import one_line, plain

PAGE = Path(__file__).parent / "page" / "index.html"
PORT = 8765
MAX_WAITING = 8  # questions at a time, the one that is being answered included
MAX_BODY, TIMEOUT_S, MAX_CONNECTIONS = 64 * 1024, 10.0, 32
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


def serve(chat: Chat, host: str | None, listener: socket.socket) -> None:
    """Answers on the page until Ctrl-C."""
    name = in_address(host or LOOPBACK[0])
    app = make_chat_app(chat, LOOPBACK if name in LOOPBACK else (name,))
    print(f"open http://{name}:{listener.getsockname()[1]}/ in a browser; stop with Ctrl-C", flush=True)
    make_server(app).run(sockets=[listener])


def make_server(app: Any) -> Any:
    """The uvicorn server of the page, with the bounds of the retrieval server."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http=bounded_protocol(TIMEOUT_S, MAX_CONNECTIONS),
        ws="none",
        limit_concurrency=MAX_CONNECTIONS + 1,  # uvicorn refuses at its limit, not above it
        log_level="error",
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def make_chat_app(chat: Chat, hosts: Sequence[str] = LOOPBACK) -> Any:
    """The page and its answers as an ASGI application.

    Args:
        hosts: the names that a request may call this server by; a page elsewhere whose name was pointed here (DNS
            rebinding) is refused with 400.
    """
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    class Asked(BaseModel):
        """A question."""

        model_config = ConfigDict(strict=True)
        question: Annotated[str, Field(min_length=1, max_length=MAX_QUESTION)]

    page = PAGE.read_text(encoding="utf-8")
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    worker = ThreadPoolExecutor(1)  # the model answers one question at a time; others wait in line
    line: set[Future] = set()

    def refuse(detail: str, status: int) -> Response:
        return JSONResponse({"detail": detail}, status, HEADERS)

    @app.exception_handler(RequestValidationError)
    async def malformed(_, __) -> Response:
        return refuse(f'send {{"question": ".."}} with 1 to {MAX_QUESTION} characters', 422)

    @app.get("/")
    async def show_page() -> Response:
        headers = HEADERS | {"Content-Security-Policy": content_policy(page)}
        return Response(page, headers=headers, media_type="text/html")

    @app.get("/about")
    async def show_about() -> Response:
        told = {"about": one_line(chat.about), "examples": list(map(one_line, chat.examples))}
        return JSONResponse(told, headers=HEADERS)

    @app.post("/ask")
    async def ask(asked: Asked) -> Response:
        if len(line) >= MAX_WAITING:
            return refuse("too many questions are waiting; ask again later", 503)
        return StreamingResponse(pieces(asked.question), headers=HEADERS, media_type="application/x-ndjson")

    async def pieces(question: str) -> AsyncIterator[str]:
        loop, queue, stop = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def tell(kind: str, text: str) -> None:
            if kind != "prompt":
                loop.call_soon_threadsafe(queue.put_nowait, (kind, text))

        if line:
            queue.put_nowait(("waiting", f"{len(line)} before this one"))
        work = worker.submit(answer, chat, question, tell, stop)
        line.add(work)
        work.add_done_callback(line.discard)
        try:
            while (piece := await queue.get())[0] != "end":
                yield json.dumps(dict(zip(("kind", "text"), piece, strict=True))) + "\n"
            await asyncio.wrap_future(work)
        finally:
            stop.set()  # the client may have gone
            work.cancel()  # where it was still waiting, its place in the line is free again

    return LimitBody(TrustedHostMiddleware(app, allowed_hosts=list(hosts), www_redirect=False), MAX_BODY, TIMEOUT_S)


def answer(chat: Chat, question: str, tell: Tell, stop: threading.Event) -> None:
    """Answers one question in the worker's thread; the last that is told is "end"."""
    try:
        if stop.is_set():
            return
        trajectory = chat.answer(question, tell, stop.is_set)
        tell("answer", verdict(trajectory, chat.is_instructed))
    except Stopped:
        pass
    except UserError as error:
        tell("error", plain(str(error)))
    finally:
        tell("end", "")


def content_policy(page: str) -> str:
    """A content security policy: this page's one script and one style by their hashes, answers from here, no more."""

    def source_hash(tag: str) -> str:
        content = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {source_hash('script')}; style-src {source_hash('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
