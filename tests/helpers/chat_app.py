"""A chat whose policy says what it is told to, an engine that waits, and its page on a port of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.chats import SEARCH, chat_of
from helpers.dictated import LIMITS, Dictated

from searchr1_mini.chat import web
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.retrievers.listening import listen


class Gated:
    """A retriever that waits until it is let go on, and tells when it waits."""

    def __init__(self) -> None:
        self.waits, self.goes_on = threading.Event(), threading.Event()

    def search(self, queries, topk):
        self.waits.set()
        assert self.goes_on.wait(60)
        return [[] for _ in queries]


def answering(tokenizer, *passages: Passage, times: int = 1, limits: RolloutLimits = LIMITS):
    """A chat that searches once and answers Norway, so many times."""
    ids = tokenizer(SEARCH)["input_ids"] + tokenizer("<answer> Norway </answer>")["input_ids"]
    return chat_of(Dictated(tokenizer, ids * times), *passages, limits=limits)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(chat) -> Iterator[str]:
    """The page on a port of its own, with two examples; gives its address."""
    listener = listen("127.0.0.1", free_port())
    chat.about, chat.examples = "a <b>run</b> \u202e", ("Where is <i>Oslo</i>?", "Who?")
    server = web.make_server(web.make_chat_app(chat))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
