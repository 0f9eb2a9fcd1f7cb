"""What one client may cost the retrieval server: bytes of a body, seconds of waiting for it, connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

MAX_QUERIES, MAX_QUERY_CHARACTERS, MAX_TOPK = 1024, 10_000, 100  # of a request, to which our client keeps


class LimitBody:
    """Reads a request's body before the application sees it; refuses one that is too large or takes too long.

    Args:
        app: the ASGI application behind it.
        max_bytes: of a body, whatever length it claims; more is answered with 413.
        timeout_s: from the end of the headers to the end of the body; a slower client is answered with 408.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Serves one connection (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = Body(self.max_bytes)
        try:
            await asyncio.wait_for(body.read(receive), self.timeout_s)
        except asyncio.TimeoutError:
            if not body.is_too_large:
                await _refuse(send, 408, b"the body took too long to arrive")
                return
        if body.is_too_large:
            await _refuse(send, 413, b"the body is too large")
        elif not body.is_cut:
            whole = [{"type": "http.request", "body": bytes(body.content), "more_body": False}]

            async def replay() -> dict:
                return whole.pop() if whole else await receive()

            await self.app(scope, replay, send)


class Body:
    """A request's body while it arrives: at most `max_bytes` are held."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.content = max_bytes, bytearray()
        self.is_too_large = self.is_cut = False

    async def read(self, receive: Callable) -> None:
        """Reads to the end, also what is too large: a client reads its answer only once it has sent everything."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.is_cut = True
                return
            self.content += message.get("body", b"")
            more = message.get("more_body", False)
            if self.is_too_large or len(self.content) > self.max_bytes:
                self.is_too_large = True
                self.content.clear()


async def _refuse(send: Callable, status: int, detail: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"detail": "%s"}' % detail})


def bounded_protocol(timeout_s: float, max_connections: int) -> type:
    """Returns uvicorn's HTTP protocol, its `http` setting, for clients that are in no hurry.

    uvicorn waits for headers, and for an answer to be taken, as long as the client likes. Here a connection is aborted
    that makes the server wait for either longer than `timeout_s`, and so is one beyond twice `max_connections`
    (uvicorn's `limit_concurrency` answers those in between with 503).
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class BoundedProtocol(H11Protocol):
        overdue: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.watch()
            if len(self.connections) > 2 * max_connections:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.rest()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self.watch()

        def watch(self) -> None:
            """Starts the clock when it is the client's turn, and stops it when it is ours."""
            is_ours = self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused
            if is_ours:
                self.rest()
            elif self.overdue is None:
                self.overdue = self.loop.call_later(timeout_s, self.transport.abort)

        def rest(self) -> None:
            if self.overdue is not None:
                self.overdue.cancel()
                self.overdue = None

    return BoundedProtocol
