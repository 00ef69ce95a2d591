"""The two ways of answering, held against each other with requests that are not quite right.

The same bytes go to a door that answers publishes in place and to one where h11
and Quart answer everything. Each answer must be the same, but for the time; so
must be which requests are seen at all, where the connection ends, and what has
been published. What one takes and the other refuses is a hole for smuggling.

It searches further with:

    HYPOTHESIS_PROFILE=long ./dev run pytest tests/web/test_two_ways.py
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.nodes import configured
from tests.web.doors import publish, serving
from tests.web.test_door import Client, connect

PATIENCE_SECONDS = 1  # for a request that never becomes complete; the clock jumps there
IDLE_SECONDS = 0.01  # really: what has been sent over loopback is there by then
LIMITS = {"message_bytes": 300, "batch_bytes": 500, "body_timeout_seconds": PATIENCE_SECONDS}
NDJSON = "application/x-ndjson"
TRACE_ID = b"4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"traceparent: 00-{TRACE_ID.decode()}-00f067aa0ba902b7-01"
LAST = (
    b"GET /v1/topics/chat/messages?limit=1000 HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"
)


class Told(NamedTuple):
    """What a client got to see."""

    answers: bytes  # all there were until the connection ended, less what tells the time
    was_reset: bool
    asked: int  # requests that reached Quart


async def told(sent: Sequence[bytes], in_place: bool) -> Told:
    limits = {"header_timeout_seconds": PATIENCE_SECONDS, "idle_timeout_seconds": PATIENCE_SECONDS}
    config = configured(limits=LIMITS)
    async with serving(in_place=in_place, config=config, **limits) as served:
        async with connect(served.door) as client:
            try:
                for piece in sent:
                    await client.send(piece)
                    await trio.testing.wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                pass  # it has been refused before all of it was sent
            was_reset = await read_all(client)
        return Told(timeless(client.buffer), was_reset, len(served.asked))


async def read_all(client: Client) -> bool:
    """Everything until the end of the connection, which may be a reset."""
    try:
        while data := await client.stream.receive_some():
            client.buffer += data
    except trio.BrokenResourceError:
        return True
    return False


def timeless(answers: bytes) -> bytes:
    answers = re.sub(rb'\r\ndate: [^\r]*|(?<="time":)"[^"]*"', b"", answers)
    # What came with a traceparent must be the same; what the node makes cannot be.
    made = rb"(?<=\r\nx-request-id: )(?!%b)[0-9a-f]{32}(?=\r\n)" % TRACE_ID
    answers = re.sub(made, b"made", answers)
    return answers.replace(b"\r\nConnection: ", b"\r\nconnection: ")


# Requests: mostly right.

BODIES = st.sampled_from(
    [b"1", b'{"a": [1, 2]}', b'"\xc3\xa9"', b"{", b"", b"\xff", b"NaN", b"1\n2\n", b"\r\n",
     b'{"topic":"a.b","data":1}\n', b'"' + b"x" * 298 + b'"', b"1" * 301, b"1\n" * 250, LAST,
     publish(b'"inner"')]
)  # fmt: skip
PATHS = st.sampled_from(
    ["/v1/topics/chat/messages"] * 4
    + ["/v1/messages", "/v1/topics/a.b/messages", "/v1/topics/a..b/messages",
       "/v1/topics//messages", "/v1/topics/ch%61t/messages", "/v1/topics/chat/messages?",
       "/v1/topics/chat/messages?x=1", "/v1/topics/chat/messages/", "/v1/topics/chat",
       "/v1/topics", "http://node/v1/messages", "//v1/messages", "/v1/../v1/messages",
       "/V1/messages", "*", "/v1/topics/x y/messages", "/v1/topics/../messages",
       "/v1/topics/" + "x" * 256 + "/messages"]
)  # fmt: skip
MEDIA_TYPES = st.sampled_from(
    ["application/json"] * 3 + [NDJSON] * 2
    + ["Application/JSON;charset=utf-8", "application/json; charset=UTF8", "application/json;",
       "application/json; charset=latin-1", "application/json; x=y", "application/jsonx", "",
       'application/json; charset="utf-8"', "application/json charset=utf-8",
       "application/json;charset=utf-8;charset=utf-16", "application/json, text/plain",
       "application/x-ndjson ; charset=utf-8", "application/json;charset='utf-8'"]
)  # fmt: skip
FIELDS = st.sampled_from(
    ["Idempotency-Key: k", "Idempotency-Key: k", "Idempotency-Key: a b", "Idempotency-Key:",
     TRACEPARENT, TRACEPARENT, TRACEPARENT.upper(), TRACEPARENT.replace("t: 0", "t: \t0"),
     "traceparent: x", "Traceparent:", TRACEPARENT + "-x", TRACEPARENT + " ",
     "Idempotency-Key: \xe9", "Connection: keep-alive", "Connection: close", "Connection: Close",
     "Connection: close, keep-alive", "Connection: te", "Connection:", "Connection: x",
     "Keep-Alive: timeout=5", "Expect: 100-continue", "Expect: x", "Upgrade: h2c",
     "Upgrade: websocket", "Connection: Upgrade\r\nUpgrade: h2c", "Connection: keep-alive, Upgrade",
     "Content-Encoding: identity", "Content-Encoding: gzip", "TE: trailers",
     "Origin: http://page", "Host: other", "Host:", "Content-Length: 1", "Content-Length: +1",
     "Content-Length: 1, 1", "Content-Length: 0x1", "Content-Length: 1_0", "Content-Length:",
     "Transfer-Encoding: chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding: identity",
     "Transfer-Encoding: gzip", "Transfer-Encoding : chunked", "X: a\n b", "X: a\r\n b", "X: \x01",
     "X: \xff", "X", ": x", "X : x", "X:", "X: " + "x" * 2000, "X-\x00: y", "Content-Type: text/x"]
)  # fmt: skip
VERSIONS = st.sampled_from(["HTTP/1.1"] * 9 + ["HTTP/1.0", "HTTP/1.2", "http/1.1", "HTTP/2.0", ""])
METHODS = st.sampled_from(["POST"] * 9 + ["GET", "PUT", "post", "HEAD", "OPTIONS"])
CHUNK_ENDS = st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r", b" \r\n"])
EXTENSIONS = st.sampled_from([b""] * 9 + [b";a", b";a=b", b";a\rb", b" ;a", b";", b";\n"])
ENDS = st.sampled_from(["\r\n"] * 19 + ["\n", "\r", " \r\n", "\r\r\n"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(BODIES)
    framed = draw(st.integers(0, 9))
    lines = [f"{draw(METHODS)} {draw(PATHS)} {draw(VERSIONS)}", "Host: [::1]"]
    lines.append(f"Content-Type: {draw(MEDIA_TYPES)}")
    if framed < 7:
        lines.append(f"Content-Length: {len(body)}")
    elif framed < 9:
        lines.append("Transfer-Encoding: chunked")
        end, extension = draw(CHUNK_ENDS), draw(EXTENSIONS)
        chunk = b"%x%b%b%b\r\n" % (len(body), extension, end, body) if body else b""
        body = chunk + b"0" + draw(EXTENSIONS) + draw(CHUNK_ENDS) + draw(CHUNK_ENDS)
    lines += draw(st.lists(FIELDS, max_size=2))
    if draw(st.booleans()):
        lines[1:] = draw(st.permutations(lines[1:]))
    end = draw(ENDS)
    return "".join(line + end for line in lines).encode("latin-1") + b"\r\n" + body


@st.composite
def connections(draw: st.DrawFn) -> list[bytes]:
    """Some requests, a few bytes changed, in pieces; the last asks what has been published."""
    sent = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(sent)))
        new = draw(st.sampled_from([b"", b"\0", b"\r", b"\n", b"\r\n", b" ", b":", b"\t", b"1"]))
        sent = sent[:at] + new + sent[at + draw(st.integers(0, 2)) :]
    sent += LAST
    cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=2)))
    return [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True) if a < b]


@given(connections())
@example([publish(b"1").replace(b" HTTP", b"  HTTP") + LAST])  # llhttp takes two spaces
@example([publish(b"1") + b"\r\n" + publish(b"2") + LAST])  # and an empty line before
@example([publish(b"1", "Connection: close") + publish(b"2") + LAST])
@example([publish(b"12")[:-1]])
@example([publish(b"{", TRACEPARENT) + LAST])
@example([publish(b"{", TRACEPARENT, TRACEPARENT) + LAST])
@example([publish(b"12")[:-10]])
def test_both_ways_answer_the_same_bytes_alike(sent: list[bytes]) -> None:
    in_place = trio.run(told, sent, True, clock=MockClock(autojump_threshold=IDLE_SECONDS))
    with_quart = trio.run(told, sent, False, clock=MockClock(autojump_threshold=IDLE_SECONDS))
    assert in_place.answers == with_quart.answers, sent
    assert in_place.was_reset == with_quart.was_reset, sent
    assert in_place.asked <= with_quart.asked


@pytest.mark.parametrize("in_place", [True, False])
async def test_what_is_told_is_told(in_place: bool) -> None:
    """That the comparison has something to compare."""
    found = await told([publish(b"1") + publish(b"{") + LAST], in_place)
    statuses = re.findall(rb"HTTP/1.1 (\d+)", found.answers)
    assert statuses == [b"201", b"400", b"200"]
    assert found.asked == (1 if in_place else 3)
