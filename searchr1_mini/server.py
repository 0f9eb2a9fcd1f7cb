"""Serves any retriever with the protocol of the public code: `python -m searchr1_mini.server --corpus passages.jsonl`.

    POST /retrieve {"queries": ["..", ..], "topk": 3, "return_scores": true}
      -> {"result": [[{"document": {"id", "contents"}, "score"}, ..], ..]}; without scores, bare documents
    GET  /health   -> {"status": "ok", "passages": n, "retriever": name}

One index serves several trainers: `python train.py --retriever http --retriever-url http://127.0.0.1:8000`. It listens
on this machine only, unless --host says otherwise; it has no password.
"""

# no `from __future__ import annotations`: FastAPI reads the types of functions inside a function

import threading
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from searchr1_mini.cli import parse, run_command
from searchr1_mini.data import load_corpus
from searchr1_mini.engines import build_retriever, engine_of
from searchr1_mini.errors import UserError
from searchr1_mini.resolve import check_ranges, check_retriever
from searchr1_mini.retrieval import Retriever
from searchr1_mini.retrieval_config import ServerConfig

MAX_QUERIES, MAX_QUERY_CHARACTERS, MAX_TOPK = 1024, 10_000, 100


def main() -> None:
    """Parses, builds the index and serves until it is stopped.

    Raises:
        UserError: anything that the user can mend.
    """
    config = parse(ServerConfig, "python -m searchr1_mini.server", __doc__.splitlines()[0])
    check_ranges(config)
    check_retriever(config, [config.retriever])
    try:
        import uvicorn
    except ImportError as error:
        raise UserError('the server needs two more packages; run `pip install "searchr1-mini[server]"`') from error
    engine = engine_of(config)
    passages = load_corpus(config.corpus, config.dataset, config.data_path, engine.terms)
    print(f"indexing {len(passages)} passages", flush=True)
    app = make_app(build_retriever(engine, passages), len(passages), config.retriever, config.max_body_mb)
    print(f"serving on http://{config.host}:{config.port}/retrieve; stop with Ctrl-C", flush=True)
    uvicorn.run(app, host=config.host, port=config.port, log_level="warning", timeout_graceful_shutdown=10)


def make_app(retriever: Retriever, n_passages: int, name: str, max_body_mb: float = 8.0) -> Any:
    """The server as an ASGI application with its OpenAPI description under /openapi.json.

    A request of another form is answered with 422, one that is too large with 413; neither repeats what was sent.
    """
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field

    Query = Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)]

    class Retrieve(BaseModel):
        """What is searched for."""

        model_config = ConfigDict(strict=True)
        queries: Annotated[list[Query], Field(max_length=MAX_QUERIES)]
        topk: Annotated[int, Field(ge=1, le=MAX_TOPK)] | None = None
        return_scores: bool = False

    app = FastAPI(title="searchr1_mini retrieval server")
    lock = threading.Lock()  # the cache in front of an index is no place for two threads

    @app.exception_handler(RequestValidationError)
    async def refuse(_, error: RequestValidationError) -> JSONResponse:
        told = [{"where": [str(part)[:100] for part in e["loc"]], "what": e["type"]} for e in error.errors()[:10]]
        return JSONResponse({"detail": _encodable(told)}, 422)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the index is up, and what it holds."""
        return {"status": "ok", "passages": n_passages, "retriever": name}

    @app.post("/retrieve")
    def retrieve(request: Retrieve) -> dict[str, Any]:
        """The best passages of each query, best first."""
        with lock:
            found = retriever.search(request.queries, request.topk or 3)
        result = []
        for hits in found:
            documents = [{"id": p.id, "contents": f'"{p.title}"\n{p.text}'} for p, _ in hits]
            scored = [{"document": d, "score": hit.score} for d, hit in zip(documents, hits, strict=True)]
            result.append(scored if request.return_scores else documents)
        return {"result": result}

    return LimitBody(app, int(max_body_mb * 2**20))


def _encodable(value: Any) -> Any:
    """Text without lone surrogates, which JSON can carry in and UTF-8 cannot carry out."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _encodable(part) for key, part in value.items()}
    return [_encodable(part) for part in value] if isinstance(value, list) else value


class LimitBody:
    """Refuses a body of more than `limit` bytes while it arrives, whatever length it claims."""

    def __init__(self, app: Callable[..., Awaitable[None]], limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Serves one connection (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.limit:
                headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
                await send({"type": "http.response.start", "status": 413, "headers": headers})
                await send({"type": "http.response.body", "body": b'{"detail": "the body is too large"}'})
                return
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


if __name__ == "__main__":
    run_command(main)
