"""The retrieval server under load, a tenth of it malformed: `python checks/server_load.py`, a minute.

Starts the real server in a process of its own and lets `--clients` threads ask it for `--seconds`. Valid answers are
compared with those of the same retriever in this process, to the last digit of the scores. Malformed requests are of
sixteen kinds: broken and hostile JSON, wrong types, bodies too large, too slow or cut off, no HTTP, silence. Bars: no
5xx, no valid request refused or answered wrongly, no malformed one accepted; memory, threads and open files come back.
Prints one row of a table; exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from searchr1_mini.core.retrieval import Passage
from searchr1_mini.data.datasets import load_corpus
from searchr1_mini.data.world import make_world
from searchr1_mini.retrievers.bm25 import BM25S
from searchr1_mini.retrievers.http_client import HTTPRetriever

ROOT = Path(__file__).parent.parent
BODY_TIMEOUT_S, MAX_BODY_MB = 1.0, 1
LEAK_MB = 24  # of the server's memory after the first fifth; a leak of 1 kB a request shows in a minute
HEAD = b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HUNG_UP = 0  # in place of a status

Question = tuple[bytes, list]  # the body of a valid request, and the result that it must get


def main() -> int:
    """Starts the server, loads it, prints the row; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--malformed", type=float, default=0.1, help="share of the requests")
    parser.add_argument("--corpus", help="as in the server; default: a synthetic world")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = args.corpus or write_world(Path(folder) / "world.jsonl")
        passages = load_corpus(corpus, "hotpotqa", None)
        questions = make_questions(passages, random.Random(args.seed))
        process, port = start_server(corpus)
        try:
            load = Load(port, questions, args.malformed)
            row, missed = load.run(psutil.Process(process.pid), args.seconds, args.clients, args.seed)
        finally:
            process.terminate()
            told = process.communicate(timeout=30)[1]
    print("| passages | " + " | ".join(row) + " |\n|" + "---|" * (len(row) + 1))
    print(f"| {len(passages)} | " + " | ".join(row.values()) + " |")
    missed += [f"the server wrote: {told[:2000]}"] if told else []
    for bar in missed:
        print(f"missed: {bar}", file=sys.stderr)
    return 1 if missed else 0


def write_world(path: Path) -> str:
    """The passages of a synthetic world as a corpus."""
    rows = [json.dumps(vars(passage)) + "\n" for passage in make_world(0, "train").passages]
    path.write_text("".join(rows), encoding="utf-8")
    return str(path)


def make_questions(passages: list[Passage], rng: random.Random, n: int = 400) -> list[Question]:
    """Requests of one to eight queries, words of passages, with what the retriever finds in this process."""
    retriever, questions = BM25S(passages), []
    for _ in range(n):
        texts = [f"{p.title} {p.text}".split() for p in rng.choices(passages, k=rng.randint(1, 8))]
        queries = [" ".join(rng.sample(words, min(len(words), rng.randint(1, 8)))) for words in texts]
        topk = rng.randint(1, 10)
        found = [
            [{"document": {"id": p.id, "contents": f'"{p.title}"\n{p.text}'}, "score": score} for p, score in hits]
            for hits in retriever.search(queries, topk)
        ]
        questions.append((json.dumps({"queries": queries, "topk": topk, "return_scores": True}).encode(), found))
    return questions


def start_server(corpus: str) -> tuple[subprocess.Popen, int]:
    """The server on a free port, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "searchr1_mini.server", "--corpus", corpus, "--retriever", "bm25s"]
    bounds = ["--port", str(port), "--max-body-mb", str(MAX_BODY_MB), "--body-timeout", str(BODY_TIMEOUT_S)]
    process = subprocess.Popen(
        [*command, *bounds], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"the server ended with code {process.returncode}: {process.communicate()[1][-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.1)
    HTTPRetriever(f"http://127.0.0.1:{port}").search(["up?"], 1)
    return process, port


class Load:
    """Threads that ask one server, and what came of it."""

    def __init__(self, port: int, questions: list[Question], malformed: float) -> None:
        self.port, self.questions, self.malformed = port, questions, malformed
        self.statuses: Counter[tuple[str, int]] = Counter()  # (kind, status), the kind of a valid request is "valid"
        self.latencies: list[float] = []  # of valid requests, in seconds
        self.wrong: list[str] = []
        self.counting = threading.Lock()

    def run(self, server: psutil.Process, seconds: float, clients: int, seed: int) -> tuple[dict[str, str], list[str]]:
        """A row of the table, and the bars that were missed."""
        files = server.num_fds()
        self._ask_for(seconds / 5, clients, seed)
        threads, memory = server.num_threads(), server.memory_info().rss
        self.latencies.clear()
        self._ask_for(seconds * 4 / 5, clients, seed + 1)
        grown = (server.memory_info().rss - memory) / 2**20
        files_left = settled(server.num_fds, files) - files
        threads_left = server.num_threads() - max(threads, 41)  # a pool of 40, and the loop's own
        faults = sum(n for (_, status), n in self.statuses.items() if status >= 500)
        n_valid = sum(n for (kind, _), n in self.statuses.items() if kind == "valid")
        n_malformed = self.statuses.total() - n_valid
        p50, p99 = np.percentile(self.latencies, [50, 99]) * 1000
        row = {
            "seconds": f"{seconds:g}", "clients": str(clients), "valid": str(n_valid), "malformed": str(n_malformed),
            "wrong": str(len(self.wrong)), "5xx": str(faults), "p50 ms": f"{p50:.1f}", "p99 ms": f"{p99:.1f}",
            "memory MB": f"{grown:+.1f}", "open files": f"{files_left:+d}", "threads": str(server.num_threads()),
        }  # fmt: skip
        missed = [*self.wrong[:5]]
        missed += [f"{faults} answers of 5xx: {self.statuses}"] if faults else []
        missed += [f"memory grew by {grown:.0f} MB, more than {LEAK_MB}"] if grown > LEAK_MB else []
        missed += [f"{files_left} files stayed open"] if files_left > 0 else []
        missed += [f"{threads_left} more threads than at first"] if threads_left > 0 else []
        return row, missed

    def _ask_for(self, seconds: float, clients: int, seed: int) -> None:
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(end, random.Random(seed * 1000 + n))) for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, end: float, rng: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while time.monotonic() < end:
            if rng.random() < self.malformed:
                connection.close()  # a slow one takes longer than an idle connection is kept
                kind = rng.choice(list(MALFORMED))
                status = MALFORMED[kind](self.port)
                is_right = status in (HUNG_UP, 400, 404, 405, 408, 413, 422)
            else:
                kind, status, is_right = "valid", *self._ask(connection, *rng.choice(self.questions))
            with self.counting:
                self.statuses[kind, status] += 1
            if not is_right:
                self.wrong.append(f"a {kind} request: status {status}, or another answer than in this process")
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, body: bytes, wanted: list) -> tuple[int, bool]:
        begin = time.perf_counter()
        try:
            connection.request("POST", "/retrieve", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return HUNG_UP, False
        self.latencies.append(time.perf_counter() - begin)
        return reply.status, reply.status == 200 and json.loads(text)["result"] == wanted


def settled(measure: Callable[[], int], wanted: int, seconds: float = 10.0) -> int:
    """A number of the server's once it is down at `wanted`, or what it is after so many seconds."""
    end = time.monotonic() + seconds
    while (value := measure()) > wanted and time.monotonic() < end:
        time.sleep(0.05)
    return value


def sending(*parts: bytes, hang_up: bool = False) -> Callable[[int], int]:
    """A client that sends these bytes and takes the status of the first answer; or goes away without it."""

    def send(port: int) -> int:
        reply = b""
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            try:
                for part in parts:
                    raw.sendall(part)
                while not hang_up and (part := raw.recv(1 << 16)):
                    reply = reply or part
                    if len(reply) >= 12:
                        break
            except ConnectionError:
                pass  # it hung up on what was still being sent
        return int(reply[9:12]) if len(reply) >= 12 else HUNG_UP

    return send


def posting(body: bytes, head: bytes = HEAD) -> Callable[[int], int]:
    """A client that posts this body."""
    return sending(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def drip(port: int) -> int:
    """A client that sends its body byte by byte, until it is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as raw:
        raw.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
        while True:
            try:
                return int(raw.recv(1 << 16)[9:12] or HUNG_UP)
            except TimeoutError:
                raw.sendall(b" ")
            except ConnectionError:
                return HUNG_UP


MALFORMED: dict[str, Callable[[int], int]] = {
    "no JSON": posting(b'{"queries": ['),
    "nested": posting(b"[" * 100_000),
    "NaN": posting(b'{"queries": ["x"], "topk": NaN}'),
    "huge number": posting(b'{"queries": ["x"], "topk": ' + b"9" * 5000 + b"}"),
    "surrogate": posting(b'{"queries": ["\\ud800"]}'),
    "broken UTF-8": posting(b'{"queries": ["\xff\xfe"]}'),
    "too many queries": posting(json.dumps({"queries": ["x"] * 2000}).encode()),
    "long query": posting(json.dumps({"queries": ["x" * 20_000]}).encode()),
    "topk": posting(b'{"queries": ["x"], "topk": 1000000}'),
    "type": posting(b'{"queries": ["x"]}', HEAD.replace(b"application/json", b"text/plain")),
    "path": posting(b"{}", HEAD.replace(b"/retrieve", b"/../etc/passwd")),
    "too large": posting(b"x" * (2 * MAX_BODY_MB << 20)),
    "cut off": sending(HEAD + b'Content-Length: 1000\r\n\r\n{"queries', hang_up=True),
    "no HTTP": sending(b"\x16\x03\x01\x02\x00\x01\r\n\r\n"),
    "silent": sending(b"POST /retr"),
    "slow": drip,
}

if __name__ == "__main__":
    sys.exit(main())
