"""The client of a retrieval server that speaks the protocol of the public code."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from itertools import count
from typing import Any

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.retrieval import Hit, Passage
from searchr1_mini.retrievers.limits import MAX_QUERIES, MAX_QUERY_CHARACTERS
from searchr1_mini.retrievers.passages import split_contents
from searchr1_mini.storage.printable import one_line

LARGEST_REPLY = 2**28  # bytes of a server's answer
MOST_SAID = 500  # bytes of a refusal that are shown


class HTTPRetriever:
    """Client of the paper's retrieval server: `POST /retrieve {"queries", "topk", "return_scores"}`."""

    def __init__(self, url: str, timeout_s: float = 60.0, retries: int = 3) -> None:
        self.url = _retrieve_url(url)
        self.timeout_s, self.retries = timeout_s, retries

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Asks the server, see `Retriever.search`.

        Raises:
            UserError: the server does not answer, `retries` repeats included, refuses, or answers in another form.
        """
        slices = [queries[start : start + MAX_QUERIES] for start in range(0, len(queries), MAX_QUERIES)]
        return [hits for slice_ in slices for hits in self._ask([q[:MAX_QUERY_CHARACTERS] for q in slice_], topk)]

    def _ask(self, queries: list[str], topk: int) -> list[list[Hit]]:
        body = json.dumps({"queries": queries, "topk": topk, "return_scores": True}).encode()
        reply = self._post(body)
        try:
            if len(reply) > LARGEST_REPLY:
                raise ValueError(f"more than {LARGEST_REPLY} bytes")
            results = json.loads(reply)["result"]
            if len(results) != len(queries):
                raise ValueError(f"{len(results)} results for {len(queries)} queries")
            return [[_parse_hit(item) for item in items[:topk]] for items in results]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f'the retrieval server at {self.url} did not answer in the form {{"result": [[{{"document": '
                f'{{"id", "contents"}}, "score"}}]]}} ({error!r}); check --retriever-url'
            ) from error

    def _post(self, body: bytes) -> bytes:
        for attempt in count():
            try:
                return within(self.timeout_s, lambda: self._reply(body))
            except (OSError, http.client.HTTPException) as error:  # the second: a reply that is cut, or no HTTP
                if attempt == self.retries:
                    raise UserError(
                        f"the retrieval server at {self.url} does not answer ({error}); start it, or check "
                        "--retriever-url"
                    ) from error
                time.sleep(0.2 * 2**attempt)

    def _reply(self, body: bytes) -> bytes:
        """What the server answers, `LARGEST_REPLY` and a byte at most."""
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with OPENER.open(request, timeout=self.timeout_s) as response:
                reply = response.read(LARGEST_REPLY + 1)
                if response.length and len(reply) <= LARGEST_REPLY:  # bytes that were promised and did not come
                    raise http.client.IncompleteRead(reply, response.length)
                return reply
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise
            if 300 <= error.code < 400:
                place = one_line(error.headers.get("Location") or "nowhere")[:MOST_SAID]
                raise UserError(
                    f"the retrieval server at {self.url} redirects to {place}, and redirects are not followed; give "
                    "that address as --retriever-url, or fix the server"
                ) from error
            raise UserError(
                f"the retrieval server at {self.url} refuses the request ({error}){_said(error)}; check --retriever-url"
            ) from error


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which could lead to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Gives no request to follow: the answer itself is then raised as an error."""


OPENER = urllib.request.build_opener(_StayHere)


def within(seconds: float, call: Callable[[], bytes]) -> bytes:
    """Returns the result of a call that may take so long in all; the time-outs of a socket begin anew at every byte.

    Raises:
        TimeoutError: it took longer; the thread that still waits ends with its socket, or with the program.
    """
    result: Future[bytes] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    done, _ = wait([result], timeout=seconds)
    if not done:
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    return result.result()


def _said(error: urllib.error.HTTPError) -> str:
    """What a refusal says, as `: its first characters`; nothing where it says nothing."""
    try:
        said = one_line(error.read(MOST_SAID).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        said = ""
    return said and f": {said}"


def _retrieve_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or len(url.split()) != 1:
            raise ValueError("needs http or https, a host, no spaces")
    except ValueError as error:  # `parts.port` raises it too
        raise UserError(
            f"--retriever-url {url!r} is no address of a server ({error}); write it as http://host:port"
        ) from error
    return parts._replace(path="/retrieve").geturl() if parts.path in ("", "/") else url


def _parse_hit(item: dict) -> Hit:
    document = item.get("document", item)
    title, text = split_contents(_whole(document["contents"]))
    return Hit(Passage(_whole(str(document.get("id", ""))), title, text), float(item.get("score", 0.0)))


def _whole(text: str) -> str:
    """The text with `?` for halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
