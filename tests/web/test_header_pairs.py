"""Every pair of header fields that a parser gives a meaning to, over both ways through the door.

httptools, h11, Hypercorn, Werkzeug, Quart and the node each know some fields, and what two of
them mean together none of them says: an offer to upgrade was an error for one only together
with ``Connection``, and for one only. So nothing is drawn by chance here: each value goes with
each other value (and with itself), in both places of a request, to both ways. Answers must be
the same, byte for byte but for the time; so must be what becomes of the request behind it; and
nothing may be reset, or be worth a line in the log.

All pairs for what is answered in place, a publish and a stream, and each value alone for other
routes and methods. All pairs for all of them, in some minutes:

    HYPOTHESIS_PROFILE=long ./dev run pytest tests/web/test_header_pairs.py
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from repl_broker import audit
from repl_broker.web import browsers
from tests.nodes import EPOCH, configured
from tests.web.doors import Served, serving
from tests.web.test_door import Client, connect
from tests.web.test_two_ways import timeless

IDLE_SECONDS: Final = 0.01  # really: what has been sent over loopback is there by then
IS_LONG: Final = os.environ.get("HYPOTHESIS_PROFILE") == "long"
LAST: Final = b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"
TRACEPARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PAGE: Final = "http://page.example"

VALUES: Final[dict[str, Sequence[str]]] = {
    # What frames a message, and what becomes of the connection (h11, llhttp, Hypercorn).
    "Host": ("other", "node:80", ""),
    "Connection": (
        *("close", "keep-alive", "Upgrade", "Upgrade, HTTP2-Settings", "close, keep-alive", ""),
        *("keep-alive, Upgrade, HTTP2-Settings", "te", "content-length", "x"),
    ),
    "Upgrade": ("h2c", "TLS/1.2", "WebSocket", "h2c, websocket", ""),
    "HTTP2-Settings": ("AAMAAABkAAQAAP__",),
    "Sec-WebSocket-Key": ("dGhlIHNhbXBsZSBub25jZQ==",),
    "Sec-WebSocket-Version": ("13",),
    "Expect": ("100-continue", "x"),
    "Transfer-Encoding": ("chunked", "Chunked", "identity", "gzip, chunked", "chunked, x", ""),
    "Content-Length": ("0", "1", "+1", "1, 1", "0x1", ""),
    "TE": ("trailers", "chunked"),
    "Trailer": ("X",),
    "Keep-Alive": ("timeout=5, max=1",),
    "Proxy-Connection": ("close",),
    "Max-Forwards": ("0",),
    # What says of which kind a body is, or an answer may be (Werkzeug, Quart, the node).
    "Content-Type": ("application/json", "text/plain", "multipart/form-data; boundary=x"),
    "Content-Encoding": ("identity", "gzip"),
    "Accept": ("text/event-stream", "image/*;q=0"),
    "Accept-Encoding": ("gzip",),
    "Range": ("bytes=0-0", "x"),
    "If-Match": ("*",),
    "If-None-Match": ("*",),
    "If-Modified-Since": ("Tue, 01 Dec 2026 00:00:00 GMT",),
    "If-Range": ('"x"',),
    "Date": ("x",),
    "Cache-Control": ("no-cache",),
    # Who asks, and for whom.
    "Authorization": ("Bearer x", "Basic Og==", "Digest x"),
    "Cookie": ("a=b; repl_broker_token=x", '"'),
    "Origin": (PAGE, "http://evil.example", "null"),
    "Referer": ("http://evil.example/",),
    "Access-Control-Request-Method": ("POST",),
    "Access-Control-Request-Headers": ("x-a",),
    "Sec-Fetch-Site": ("cross-site",),
    "Forwarded": ("for=10.0.0.1;proto=https;host=other",),
    "X-Forwarded-For": ("10.0.0.1",),
    "X-Forwarded-Host": ("other",),
    "X-Forwarded-Prefix": ("/below",),
    "X-Forwarded-Proto": ("https",),
    "X-HTTP-Method-Override": ("DELETE",),
    "X-Original-URL": ("/healthz",),
    "User-Agent": ("",),
    # What the node itself knows.
    "Idempotency-Key": ("k", "", "a b"),
    "Last-Event-ID": (f"{EPOCH}-0", "x", ""),
    "traceparent": (TRACEPARENT, "x"),
}
FIELDS: Final = [f"{name}: {value}".rstrip() for name, values in VALUES.items() for value in values]

PUBLISH: Final = ("/v1/topics/chat/messages", ["Content-Type: application/json"], b"1")
BATCH: Final = ("/v1/messages", ["Content-Type: application/x-ndjson"], b'{"topic":"a","data":1}')
STREAM: Final = ("/v1/events?topic=chat", [], b"")
LIST: Final = ("/v1/topics", [], b"")
Route = tuple[str, Sequence[str], bytes]


def request(method: str, route: Route, fields: Sequence[str]) -> bytes:
    """``fields`` beside those that it needs; they stand in for those of the same names."""
    path, own, body = route
    names = {each.partition(":")[0].lower() for each in fields}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [each for each in ("Host: [::1]", *own) if each.partition(":")[0].lower() not in names]
    if body and method == "POST" and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    elif method != "POST":
        body = b""
    if any(each.lower() == "transfer-encoding: chunked" for each in fields):
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


def alone() -> Iterator[tuple[str, ...]]:
    yield ()
    for field in FIELDS:
        yield (field,)


def pairs() -> Iterator[tuple[str, ...]]:
    yield from alone()
    for first, second in itertools.product(FIELDS, repeat=2):
        # The order of two fields means something where they are of one name.
        if first.partition(":")[0] == second.partition(":")[0] or first < second:
            yield first, second


async def told(served: Served, sent: bytes) -> tuple[bytes, bool]:
    """All that is answered, less what tells the time; and whether the connection was reset."""
    async with connect(served.door) as client:
        with suppress(trio.BrokenResourceError):  # refused before all of it was sent
            await client.send(sent)
        was_reset = await read_answers(client)
    return timeless(client.buffer), was_reset


async def read_answers(client: Client) -> bool:
    """Until the end of the connection; of an event stream, its beginning."""
    while not re.search(rb"\r\ncontent-type: text/event-stream\r\n(?s:.*)\n\n", client.buffer):
        try:
            data = await client.stream.receive_some()
        except trio.BrokenResourceError:
            return True
        if not data:
            return False
        client.buffer += data
    return False


async def compare(method: str, route: Route, cases: Iterator[tuple[str, ...]]) -> int:
    """How many answers were compared."""
    limits = {"idle_timeout_seconds": 1, "header_timeout_seconds": 1, "seconds_max": 10_000}
    http = {"cors_origins": (PAGE,), "hosts": ("node",)}
    config = configured(http=http, limits={"body_timeout_seconds": 1})
    count = 0
    async with (
        serving(in_place=True, config=config, **limits) as in_place,
        serving(in_place=False, config=config, **limits) as by_quart,
    ):
        for fields in cases:
            sent = request(method, route, fields) + LAST
            answers = [await told(served, sent) for served in (in_place, by_quart)]
            assert answers[0] == answers[1], sent
            content, was_reset = answers[0]
            assert content.startswith(b"HTTP/1.1 "), sent
            assert not was_reset, sent
            assert b"HTTP/1.1 500" not in content, sent
            count += 1
        for served in (in_place, by_quart):
            assert served.door.statistics().failed == 0
    return count


ASKED: Final = [
    ("POST", PUBLISH, True),
    ("POST", BATCH, False),
    ("GET", STREAM, True),
    ("GET", LIST, False),
    ("GET", PUBLISH, False),
    ("HEAD", PUBLISH, False),
    ("HEAD", STREAM, False),
    ("HEAD", LIST, False),
    ("POST", STREAM, False),
    ("POST", LIST, False),
    ("OPTIONS", PUBLISH, False),
    ("DELETE", STREAM, False),
    ("CONNECT", LIST, False),
    ("post", PUBLISH, False),
    ("get", STREAM, False),
    ("head", LIST, False),
]


@pytest.mark.parametrize(
    ("method", "route", "by_pairs"), ASKED, ids=[f"{each[0]} {each[1][0]}" for each in ASKED]
)
def test_both_ways_answer_alike_whatever_two_fields_are_there(
    method: str, route: Route, by_pairs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cases = list(pairs() if by_pairs or IS_LONG else alone())
    clock = MockClock(autojump_threshold=IDLE_SECONDS)
    assert trio.run(compare, method, route, iter(cases), clock=clock) == len(cases)
    lines = [each for each in caplog.records if each.levelno >= logging.WARNING]
    # Which pages and hosts were refused is told, now and then; so is each change that was.
    lines = [each for each in lines if each.name not in (browsers.__name__, audit.__name__)]
    assert [each.getMessage() for each in lines] == []
