"""A small HTTP server, over real TCP, that speaks the contract and misbehaves on request.

A test queues steps; each request takes the next one. Without a step a publish is
kept (once per Idempotency-Key) and acknowledged.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from repl_broker.errors import PROBLEMS

EPOCH = "9f3a1c2b"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


Step = Callable[["FakeBroker", "Handler", Request], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, parse_qs(url.query), headers, body)
        broker = self.server.broker
        broker.requests.put(request)
        broker.seen.append(request)
        step = broker.steps.pop(0) if broker.steps else keep
        step(broker, self, request)

    do_GET = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class FakeServer(ThreadingHTTPServer):
    broker: FakeBroker
    daemon_threads = True


class FakeBroker:
    """A context manager; ``url`` is where it is, ``kept`` is what was published, in order."""

    def __init__(self) -> None:
        self.server = FakeServer(("127.0.0.1", 0), Handler)
        self.server.broker = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.steps: list[Step] = []
        self.requests: queue.Queue[Request] = queue.Queue()
        self.seen: list[Request] = []
        self.kept: list[Any] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> FakeBroker:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def next_request(self) -> Request:
        return self.requests.get(timeout=10)

    def remember(self, request: Request) -> dict[str, Any]:
        """Keep what was published, once per key; the answer."""
        key = request.headers["idempotency-key"]
        if key not in self.answers:
            topic = request.path.split("/")[3]
            first = len(self.kept) + 1
            if request.headers["content-type"] == "application/x-ndjson":
                self.kept += request.lines
                answer: dict[str, Any] = {
                    "topic": topic,
                    "count": len(request.lines),
                    "first_id": f"{EPOCH}-{first}",
                    "last_id": f"{EPOCH}-{len(self.kept)}",
                }
            else:
                self.kept.append(json.loads(request.body))
                answer = {"id": f"{EPOCH}-{first}", "topic": topic, "time": "2026-11-23T04:00:00Z"}
            self.answers[key] = answer
        return self.answers[key]


# Steps


def keep(broker: FakeBroker, handler: Handler, request: Request) -> None:
    handler.answer(201, "application/json", json.dumps(broker.remember(request)).encode())


def keep_and_drop(broker: FakeBroker, handler: Handler, request: Request) -> None:
    """The publish is kept, and the connection breaks before the answer."""
    broker.remember(request)
    handler.close_connection = True


def drop(_broker: FakeBroker, handler: Handler, _request: Request) -> None:
    handler.close_connection = True


def answer(status: int, body: object) -> Step:
    def step(_broker: FakeBroker, handler: Handler, _request: Request) -> None:
        if status == 204:
            handler.send_response(204)
            handler.end_headers()
        else:
            handler.answer(status, "application/json", json.dumps(body).encode())

    return step


def html(status: int) -> Step:
    def step(_broker: FakeBroker, handler: Handler, _request: Request) -> None:
        handler.answer(status, "text/html; charset=utf-8", b"<h1>It works!</h1>")

    return step


def problem(code: str, detail: str, *, retry_after: int | None = None, **extra: object) -> Step:
    status, title = PROBLEMS[code]
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    headers = {} if retry_after is None else {"Retry_After": str(retry_after)}

    def step(_broker: FakeBroker, handler: Handler, _request: Request) -> None:
        text = json.dumps({**body, "code": code, **extra}).encode()
        handler.answer(status, "application/problem+json", text, **headers)

    return step


def stream(*blocks: bytes, then: str = "end") -> Step:
    """Send blocks. then: "end" properly, "break" in mid-chunk, or "hang" until the test is over."""

    def step(broker: FakeBroker, handler: Handler, _request: Request) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for block in blocks:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
        if then == "end":
            handler.wfile.write(b"0\r\n\r\n")
        elif then == "hang":
            broker.closing.wait(10)

    return step


def subscribed(seq: int, retry_ms: int = 20) -> bytes:
    data = '{"topics":["chat"],"node":"n1","position":"%s-%d"}' % (EPOCH, seq)  # noqa: UP031
    retry = f"retry: {retry_ms}\n" if retry_ms else ""
    return f"{retry}id: {EPOCH}-{seq}\nevent: subscribed\ndata: {data}\n\n".encode()


def message_object(seq: int, data: str = "1") -> str:
    time = "2026-11-23T04:00:00.123Z"
    return f'{{"id":"{EPOCH}-{seq}","topic":"chat","time":"{time}","data":{data}}}'


def message(seq: int, data: str = "1") -> bytes:
    return f"id: {EPOCH}-{seq}\ndata: {message_object(seq, data)}\n\n".encode()


def heartbeat(seq: int) -> bytes:
    data = '{"position":"%s-%d"}' % (EPOCH, seq)  # noqa: UP031
    return f"id: {EPOCH}-{seq}\nevent: heartbeat\ndata: {data}\n\n".encode()


def goodbye(retry_ms: int) -> bytes:
    return b'retry: %d\nevent: goodbye\ndata: {"reason":"shutting_down"}\n\n' % retry_ms
