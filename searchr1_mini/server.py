"""Serves any retriever with the protocol of the public code: `python -m searchr1_mini.server --corpus passages.jsonl`.

    POST /retrieve {"queries": ["..", ..], "topk": 3, "return_scores": true}
      -> {"result": [[{"document": {"id", "contents"}, "score"}, ..], ..]}; without scores, bare documents
    GET  /health   -> {"status": "ok", "passages": n, "retriever": name}

One index serves several trainers: `python train.py --retriever http --retriever-url http://127.0.0.1:8000`. It listens
on this machine only, unless --host says otherwise; it has no password. What it refuses, and with which status, is in
docs/trust.md.
"""

# no `from __future__ import annotations`: FastAPI reads the types of functions inside a function

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import json
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Retriever
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.options.checks import check_retriever
from searchr1_mini.options.cli import parse
from searchr1_mini.options.needs import check_ranges, refuse_idle
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.retrieval_config import SERVER_NEEDS, ServerConfig
from searchr1_mini.retrievers.engines import configured_engine
from searchr1_mini.retrievers.limits import MAX_QUERIES, MAX_QUERY_CHARACTERS, MAX_TOPK, LimitBody, bounded_protocol
from searchr1_mini.retrievers.listening import in_address, listen, loopback_names
from searchr1_mini.run.task import make_engine
from searchr1_mini.storage import status

EXAMPLE = {"queries": ["Who built the Eiffel Tower?"], "topk": 3, "return_scores": True}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, builds the index and serves until it is stopped.

    Raises:
        UserError: anything that the user can fix.
    """
    config = parse(ServerConfig, "python -m searchr1_mini.server", __doc__.splitlines()[0], argv)
    check_ranges(config)
    refuse_idle(config, config, ServerConfig(), SERVER_NEEDS)
    check_retriever(config, [config.retriever])
    listener = listen(config.host, config.port)  # before an hour of indexing
    import uvicorn

    engine = configured_engine(config)
    passages = load_corpus(config.corpus, config.dataset, config.data_path, engine.terms)
    print(f"indexing {len(passages)} passages", flush=True)
    retriever = make_engine(engine, passages)
    limits = config.max_body_mb, config.body_timeout
    app = make_app(retriever, len(passages), config.retriever, *limits, loopback_names(listener))
    status.now(None)
    print(f"serving on http://{in_address(config.host)}:{config.port}/retrieve; stop with Ctrl-C", flush=True)
    settings = uvicorn.Config(
        app,
        http=bounded_protocol(config.body_timeout, config.max_connections),
        ws="none",
        limit_concurrency=config.max_connections + 1,  # uvicorn refuses at its limit, not above it
        log_level="error",  # a warning for each malformed request would let a client fill the disk
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a service manager's way to end it is no interruption to tell of
    uvicorn.Server(settings).run(sockets=[listener])


def make_app(
    retriever: Retriever,
    n_passages: int,
    name: str,
    max_body_mb: float = 8.0,
    body_timeout: float = 10.0,
    hosts: Sequence[str] | None = None,
) -> Any:
    """Builds the server as an ASGI application with its OpenAPI description under /openapi.json.

    A request of another form is answered with 400 or 422, one that is too large with 413, one that takes too long with
    408; none repeats what was sent.

    Args:
        hosts: the names that a request may call this server by [default: any]; a page elsewhere whose name was pointed
            here (DNS rebinding) is refused with 400.
    """
    from fastapi import FastAPI, Response
    from fastapi.exceptions import RequestValidationError
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    Query = Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)]

    class Retrieve(BaseModel):
        """What is searched for."""

        model_config = ConfigDict(strict=True, json_schema_extra={"examples": [EXAMPLE]})
        queries: Annotated[list[Query], Field(max_length=MAX_QUERIES)]
        topk: Annotated[int, Field(ge=1, le=MAX_TOPK), BeforeValidator(_whole)] | None = None
        return_scores: bool = False

    class Document(BaseModel):
        """A passage: its contents are `"title"`, a line feed, and the text."""

        id: str
        contents: str

    class ScoredDocument(BaseModel):
        """A passage with its score; higher is better."""

        document: Document
        score: float

    class Found(BaseModel):
        """For each query its passages, best first."""

        result: list[list[ScoredDocument] | list[Document]]

    class Refusal(BaseModel):
        """Why a request was refused."""

        detail: str

    class Fault(BaseModel):
        """Where a request is of another form, and in what way."""

        where: list[str]
        what: str

    class Faults(BaseModel):
        """Why a request was refused: the first ten faults of its form."""

        detail: list[Fault]

    class Health(BaseModel):
        """What is served."""

        status: str
        passages: int
        retriever: str

    # no pages that fetch scripts from elsewhere, no redirect to the host that a client names
    app = FastAPI(title="searchr1_mini retrieval server", docs_url=None, redoc_url=None, redirect_slashes=False)
    lock = threading.Lock()  # the cache in front of an index is no place for two threads

    def reply(value: Any, status: int = 200) -> Response:
        # ASCII escapes carry a lone surrogate, in a passage or in a field's name, which UTF-8 does not
        return Response(json.dumps(value), status, media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def refuse(_, error: RequestValidationError) -> Response:
        told = [{"where": [str(part)[:100] for part in e["loc"]], "what": e["type"]} for e in error.errors()[:10]]
        return reply({"detail": told}, 422)

    @app.exception_handler(UserError)
    async def report(_, error: UserError) -> Response:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return reply({"detail": "the index does not answer; the server's own terminal says why"}, 503)

    @app.get("/health", responses={200: {"model": Health}, 408: {"model": Refusal}, 413: {"model": Refusal}})
    async def health() -> Response:
        """Whether the index is up, and what it holds."""
        return reply({"status": "ok", "passages": n_passages, "retriever": name})

    refusals = {status: {"model": Refusal} for status in (400, 408, 413, 503)}

    @app.post("/retrieve", responses={200: {"model": Found}, 422: {"model": Faults}, **refusals})
    def retrieve(request: Retrieve) -> Response:
        """The best passages of each query, best first."""
        with lock:
            found = retriever.search(request.queries, request.topk or 3)
        result = []
        for hits in found:
            documents = [{"id": p.id, "contents": f'"{p.title}"\n{p.text}'} for p, _ in hits]
            scored = [{"document": d, "score": hit.score} for d, hit in zip(documents, hits, strict=True)]
            result.append(scored if request.return_scores else documents)
        return reply({"result": result})

    trusted = TrustedHostMiddleware(app, allowed_hosts=list(hosts or "*"), www_redirect=False)
    return LimitBody(trusted, int(max_body_mb * 2**20), body_timeout)


def _whole(value: Any) -> Any:
    """3.0 is an integer to JSON Schema, and so to other programs' JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


if __name__ == "__main__":
    run_command(main)
