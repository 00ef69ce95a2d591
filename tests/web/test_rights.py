"""Tokens at both ways into the broker: the same answers, streams that end, nothing in a log."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from repl_broker.access import Asking, Credentials
from repl_broker.config import AnonymousConfig, Config
from repl_broker.web.door import Door
from tests.nodes import configured
from tests.signing import SECRET, bearer, hs256, token
from tests.web.doors import publish, serving
from tests.web.test_door import Client, connect
from tests.web.test_streams import get

IDLE_SECONDS = 0.02  # really: what has been sent over loopback is there by then
BOTH_WAYS: Final = pytest.mark.parametrize("in_place", [True, False])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    auth = {"mode": "jwt", "secret_file": secret, "leeway_seconds": 0}
    return configured(auth=auth | {"anonymous": AnonymousConfig(subscribe=("open",))})


def field(text: str) -> str:
    return f"Authorization: {bearer(text)['Authorization']}"


ADMIN: Final = Asking(Credentials(bearer(token(admin=True))["Authorization"]), "127.0.0.1")
NARROW: Final = token(("a.*",), ("a.*",))
COOKIE: Final = f"Cookie: x=y; repl_broker_token={token(('chat',), ('chat',))}"
NDJSON: Final = "application/x-ndjson"
MANY: Final = b'{"topic":"a.b","data":1}\n{"topic":"b","data":2}\n'
REQUESTS: Final = {
    "publish without a token": publish(b"1"),
    "publish by garbage": publish(b"1", field("x")),
    "publish by another scheme": publish(b"1", "Authorization: Basic x"),
    "publish with two tokens": publish(b"1", field(NARROW), field(NARROW)),
    "publish that is expired": publish(b"1", field(hs256({"exp": 1}))),
    "publish to what is not granted": publish(b"1", field(NARROW)),
    "publish to what is granted": publish(b"1", field(NARROW), path="/v1/topics/a.b/messages"),
    "publish of no JSON": publish(b"{", field(NARROW), path="/v1/topics/a.b/messages"),
    "publish to no topic": publish(b"1", field(NARROW), path="/v1/topics/a..b/messages"),
    "publish by cookie, no page": publish(b"1", COOKIE),
    "publish by cookie, own page": publish(b"1", COOKIE, "Origin: http://node"),
    "publish by cookie, other page": publish(b"1", COOKIE, "Origin: http://evil"),
    "publish by two cookies": publish(b"1", COOKIE, COOKIE, "Origin: http://node"),
    "batch with one that is not granted": publish(
        MANY, field(NARROW), path="/v1/messages", media_type=NDJSON
    ),
    "batch that is granted": publish(
        MANY[: MANY.index(b"\n")], field(NARROW), path="/v1/messages", media_type=NDJSON
    ),
    "batch without a token": publish(MANY, path="/v1/messages", media_type=NDJSON),
    "stream without a token": get("/v1/events?topic=chat"),
    "stream of what anyone may read": get("/v1/events?topic=open"),
    "stream of that and more": get("/v1/events?topic=open&topic=o.>"),
    "stream by garbage": get("/v1/events?topic=open", field("x")),
    "stream of what is granted": get("/v1/events?topic=a.b&topic=a.*&topic=open", field(NARROW)),
    "stream of more than is granted": get("/v1/events?topic=a.>", field(NARROW)),
    "stream by cookie": get("/v1/events?topic=chat", COOKIE, "Origin: http://evil"),
    "stream by query": get(f"/v1/events?topic=a.b&access_token={NARROW}"),
    "stream of no filter": get("/v1/events?topic=a..b", field(NARROW)),
    "stream of too many": get("/v1/events?" + "&".join(["topic=b"] * 129), field(NARROW)),
}


async def told(client: Client, request: bytes) -> bytes:
    """The answer, or the head of a stream and how it begins; less what tells the time."""
    await client.send(request)
    data = b""
    while True:
        data += await client.stream.receive_some()
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if (length and len(body) >= int(length[1])) or b"event: subscribed" in body:
            break
    data = re.sub(
        rb'\r\ndate: [^\r]*|(?<=x-request-id: )[0-9a-f]{32}|(?<="time":)"[^"]*"', b"", data
    )
    return data.replace(b"\r\nConnection: ", b"\r\nconnection: ")


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_answer_alike(name: str, config: Config) -> None:
    answers = []
    for in_place in (True, False):
        async with serving(in_place=in_place, config=config) as served:
            async with connect(served.door) as client:
                answers.append(await told(client, REQUESTS[name]))
            refused = not answers[0].startswith((b"HTTP/1.1 200", b"HTTP/1.1 201"))
            refusals = served.node.broker.statistics().refusals
            counted = sum(refusals.get(code, 0) for code in ("unauthenticated", "forbidden"))
            code = re.search(rb'"code":"(\w+)"', answers[0])
            expected = code is not None and code[1] in (b"unauthenticated", b"forbidden")
            assert counted == expected, "each refusal counts once"
            assert refused or in_place is not bool(served.asked)
    assert answers[0] == answers[1]
    assert NARROW.encode() not in answers[0]


async def test_a_connection_goes_on_after_a_refusal(config: Config) -> None:
    async with serving(config=config) as served, connect(served.door) as client:
        right = publish(b"1", field(NARROW), path="/v1/topics/a.b/messages")
        for _ in range(2):
            await client.send(publish(b"1", field(NARROW)) + right + get("/v1/events?topic=c"))
            statuses = [(await client.receive_answer()).status for _ in range(3)]
            assert statuses == [403, 201, 401]


async def read_on(door: Door, request: bytes) -> bytes:
    """All that comes until the node ends the stream."""
    async with connect(door) as client:
        await client.send(request)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            more = await client.stream.receive_some()
            assert more, "it is ended as a stream ends"
            data += more
    return data


@BOTH_WAYS
async def test_at_exp_a_stream_ends_and_its_cursor_stays(
    in_place: bool, config: Config, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = IDLE_SECONDS
    text = token((), ("chat",), exp=int(time.time()) + 50)
    async with serving(in_place=in_place, config=config, seconds_max=1000) as served:
        began = trio.current_time()
        data = await read_on(served.door, get("/v1/events?topic=chat", field(text)))
        seconds = trio.current_time() - began
    assert data.endswith(b'event: token-expired\ndata: {"reason":"expired"}\n\n\r\n0\r\n\r\n')
    assert (data.count(b"event: subscribed"), data.count(b"event: heartbeat")) == (1, 3)
    assert 48.9 < seconds < 50.5
    assert bool(served.asked) != in_place


async def test_a_stalled_reader_whose_token_expires_is_cut_off(
    config: Config, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = IDLE_SECONDS
    text = token((), ("chat",), exp=int(time.time()) + 40)
    async with serving(config=config, seconds_max=1000) as served:
        async with connect(served.door, receive_buffer_bytes=4096) as client:
            await client.send(get("/v1/events?topic=chat", field(text)))
            await client._read_until(b"event: subscribed")
            for _ in range(20):
                await served.node.broker.publish(ADMIN, "chat", b'"' + b"x" * 900_000 + b'"')
            began = trio.current_time()
            await trio.testing.wait_all_tasks_blocked()
            assert served.fanout.statistics().lagging == 1
            await served.fanout.wait_empty()
            assert 30 < trio.current_time() - began < 40.5
            assert not served.node.broker.access._leases


@BOTH_WAYS
async def test_a_stream_without_a_token_ends_when_it_is_not_allowed_any_more(
    in_place: bool, config: Config, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = IDLE_SECONDS
    narrow = configured(config, auth={"anonymous": AnonymousConfig(subscribe=("other",))})
    async with serving(in_place=in_place, config=config, seconds_max=1000) as served:
        access = served.node.broker.access
        async with trio.open_nursery() as nursery, connect(served.door) as client:
            nursery.start_soon(access.run)
            await client.send(get("/v1/events?topic=open"))
            await client._read_until(b"event: subscribed")
            assert len(access._leases[None]) == 1
            access.reload(narrow)
            end = b'event: token-expired\ndata: {"reason":"changed"}\n\n\r\n0\r\n\r\n'
            await client._read_until(end)
            async with connect(served.door) as again:
                await again.send(get("/v1/events?topic=open"))
                assert (await again.receive_answer()).status == 401
            nursery.cancel_scope.cancel()
        assert not access._leases


@BOTH_WAYS
async def test_the_dashboards_feed_ends_with_its_token(
    in_place: bool, config: Config, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = IDLE_SECONDS
    text = token(admin=True, exp=int(time.time()) + 20)
    async with serving(in_place=in_place, config=config, seconds_max=1000) as served:
        began = trio.current_time()
        await read_on(served.door, get("/ui/feed", field(text)))
        assert 18.9 < trio.current_time() - began < 20.5


@BOTH_WAYS
async def test_a_token_in_the_query_is_taken_where_that_is_allowed_and_never_logged(
    in_place: bool, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = configured(config, auth={"allow_query_token": True}, http={"access_log": True})
    text = token((), ("chat",))
    async with serving(in_place=in_place, config=config) as served:
        for target, status in (
            (f"/v1/events?access_token={text}&topic=chat", 200),
            (f"/v1/events?topic=chat&access_token={text}&access_token={text}", 400),
            (f"/v1/events?topic=other&access_token={text}", 403),
            (f"/v1/events?topic=chat&access_token={text}x", 401),
            (f"/v1/topics?access_token={text}", 400),
            (f"/v1/topics/chat/messages?access_token={text}", 401),
            (f"/nothing?access_token={text}", 404),
        ):
            async with connect(served.door) as client:
                answer = await told(client, get(target))
                assert answer.startswith(b"HTTP/1.1 %d" % status), answer
                assert not any(p.encode() in answer for p in text.split(".")[1:])
    lines = [record.getMessage() for record in caplog.records]
    assert any("request method=GET path=/v1/events status=403" in line for line in lines)
    assert not any(piece in line for line in lines for piece in text.split(".")[1:])
