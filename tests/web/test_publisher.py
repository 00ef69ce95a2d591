"""Publishes that are answered where they arrive, and how a connection turns to Quart.

Over real sockets, with a whole application behind the door and a node without
disk. That both ways answer alike is for tests/contract and test_two_ways.py.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from repl_broker.config import Config, LimitsConfig
from repl_broker.web import publisher
from repl_broker.web.door import DoorOptions
from repl_broker.web.tcp import READ_BYTES
from tests.nodes import ANYONE, configured
from tests.web.doors import Served, publish, serving
from tests.web.test_door import Client, connect, reset, until

GET_READY = b"GET /readyz HTTP/1.1\r\nHost: [::1]\r\n\r\n"
PUBLISH_PATH = "POST /v1/topics/chat/messages"
CHUNKED = (
    b"POST /v1/topics/chat/messages HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1\r\n7\r\n0\r\n\r\n"
)


@pytest.fixture
def jumping(mock_clock: trio.testing.MockClock) -> None:
    """Have time pass only while nothing moves, and then at once."""
    mock_clock.autojump_threshold = 0.01  # really: what went over loopback is there by then


async def kept(served: Served) -> list[bytes]:
    """The data of all messages of ``chat``."""
    if "chat" not in served.node.replica.state.topics:
        return []
    page = await served.node.broker.history(ANYONE, "chat", limit=1000)
    return [message.data for message in page.messages]


# In place, or not.


async def test_a_publish_needs_no_quart() -> None:
    async with serving() as served, connect(served.door) as client:
        for number in range(3):
            await client.send(publish(b" %d " % number))
            answer = await client.receive_answer()
            assert answer.status == 201
            assert json.loads(answer.body)["id"] == f"00c0ffee-{number + 1}"
        assert await kept(served) == [b"0", b"1", b"2"]
        assert served.asked == []


async def test_with_the_switch_off_quart_answers_publishes() -> None:
    async with serving(in_place=False) as served, connect(served.door) as client:
        await client.send(publish())
        assert (await client.receive_answer()).status == 201
        assert served.asked == [PUBLISH_PATH]


async def test_a_connection_may_turn_to_quart_and_back() -> None:
    async with serving() as served, connect(served.door) as client:
        for sent in (publish(), GET_READY, publish(), CHUNKED, publish(), publish(b"{")):
            await client.send(sent)
            assert (await client.receive_answer()).status in (200, 201, 400)
        assert served.asked == ["GET /readyz", PUBLISH_PATH]
        assert await kept(served) == [b"1", b"1", b"7", b"1"]


async def test_a_publish_that_quart_must_answer_stays_there() -> None:
    """It is not passed to and fro."""
    unusual = publish(b"1", "Content-Encoding: identity")
    async with serving() as served, connect(served.door) as client:
        for sent in (GET_READY, unusual, unusual[:50], unusual[50:]):
            await client.send(sent)
            if sent != unusual[:50]:
                assert (await client.receive_answer()).status in (200, 201)
            await trio.testing.wait_all_tasks_blocked()
        assert served.asked == ["GET /readyz", PUBLISH_PATH, PUBLISH_PATH]


async def test_pipelined_requests_are_answered_in_order_whoever_answers_them() -> None:
    async with serving() as served, connect(served.door) as client:
        await client.send(
            publish(b"1") + publish(b"{") + publish(b"2") + GET_READY + publish(b"3") + CHUNKED
        )
        statuses = [(await client.receive_answer()).status for _ in range(6)]
        assert statuses == [201, 400, 201, 200, 201, 201]
        assert await kept(served) == [b"1", b"2", b"3", b"7"]
        assert served.asked[0] == "GET /readyz"


async def test_a_request_may_come_in_any_pieces() -> None:
    sent = publish(b'"x"') + publish(b'"y"') + GET_READY
    async with serving() as served, connect(served.door) as client:
        for position in range(len(sent)):
            await client.send(sent[position : position + 1])
            await trio.testing.wait_all_tasks_blocked()
        statuses = [(await client.receive_answer()).status for _ in range(3)]
        assert statuses == [201, 201, 200]
        assert served.asked == ["GET /readyz"]


async def test_a_large_body_is_taken_whole_and_what_follows_is_the_next_request() -> None:
    large = b'"' + b"x" * 1_000_000 + b'"'
    async with serving() as served, connect(served.door) as client:
        await client.send(publish(large) + publish(b"2") + publish(large))
        statuses = [(await client.receive_answer()).status for _ in range(3)]
        assert statuses == [201, 201, 201]
        assert await kept(served) == [large, b"2"]  # a page of history ends early
        assert served.asked == []


async def test_of_a_large_body_more_is_read_at_a_time_and_of_none_more_than_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def read(fd: int, size: int) -> bytes:
        asked.append(size)
        return os.read(fd, size)

    monkeypatch.setattr(publisher, "os", SimpleNamespace(read=read, write=os.write))
    async with serving() as served, connect(served.door) as client:
        for size, largest in ((10, READ_BYTES), (100_000, 100_002), (900_000, 256 << 10)):
            asked.clear()
            head, body = publish(b'"%b"' % (b"x" * size)).split(b"\r\n\r\n")
            await client.send(head + b"\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            await client.send(body)
            assert (await client.receive_answer()).status == 201
            assert max(asked) == largest
        assert [len(data) for data in await kept(served)] == [12, 100_002, 900_002]


async def test_the_body_of_a_publish_is_never_read_as_a_request() -> None:
    inner = publish(b'"inner"')
    for body in (inner, b"\r\n\r\n" + inner, GET_READY):
        async with serving() as served, connect(served.door) as client:
            await client.send(publish(body) + publish(b'"outer"'))
            assert (await client.receive_answer()).status == 400
            assert (await client.receive_answer()).status == 201
            assert await kept(served) == [b'"outer"']


# What smuggling uses.

SMUGGLED = publish(b'"smuggled"')


def with_field(field: bytes, body: bytes = b"1") -> bytes:
    """A publish whose header has this line as well."""
    return publish(body).replace(b"Host: [::1]\r\n", b"Host: [::1]\r\n" + field + b"\r\n", 1)


def chunked(body: bytes, field: bytes = b"Transfer-Encoding: chunked") -> bytes:
    return publish(b"").replace(b"Content-Length: 0", field, 1) + body


AMBIGUOUS = {
    "both framings": with_field(b"Transfer-Encoding: chunked", b"0\r\n\r\n"),
    "both framings, the other first": chunked(b"0\r\n\r\n").replace(
        b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n", 1
    ),
    "length twice": with_field(b"Content-Length: 1"),
    "two lengths": with_field(b"Content-Length: 0"),
    "list of lengths": publish(b"1").replace(b"Length: 1", b"Length: 1, 1"),
    "signed length": publish(b"1").replace(b"Length: 1", b"Length: +1"),
    "negative length": publish(b"1").replace(b"Length: 1", b"Length: -1"),
    "hexadecimal length": publish(b"1").replace(b"Length: 1", b"Length: 0x1"),
    "empty length": publish(b"").replace(b"Length: 0", b"Length:"),
    "bare LF": publish(b"1").replace(b"\r\n", b"\n"),
    "bare LF within": with_field(b"X: a\nY: b"),
    "bare LF at the end of the head": publish(b"1").replace(b"\r\n\r\n", b"\r\n\n"),
    "bare CR": with_field(b"X: a\rY: b"),
    "space before the colon": with_field(b"Content-Length : 1"),
    "folded line": with_field(b"X: a\r\n Transfer-Encoding: chunked"),
    "folded first line": publish(b"1").replace(b"Host", b" Host", 1),
    "no colon": with_field(b"Transfer-Encoding"),
    "control character": with_field(b"Transfer-Encoding: \x0bchunked"),
    "NUL": with_field(b"X: a\0"),
    "no host": publish(b"1").replace(b"Host: [::1]\r\n", b""),
    "two hosts": with_field(b"Host: other"),
    "trailers": chunked(b"1\r\n1\r\n0\r\nContent-Length: 100\r\n\r\n"),
    "chunk size with a sign": chunked(b"+1\r\n1\r\n0\r\n\r\n"),
    "chunk size with a prefix": chunked(b"0x1\r\n1\r\n0\r\n\r\n"),
    "chunk size empty": chunked(b"\r\n1\r\n0\r\n\r\n"),
    "chunk longer than it says": chunked(b"1\r\n12\r\n0\r\n\r\n"),
    "bare LF after a chunk": chunked(b"1\r\n1\n0\r\n\r\n"),
    "chunks in HTTP/1.0": chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "tab in the request line": publish(b"1").replace(b" HTTP/1.1", b"\tHTTP/1.1"),
    "two spaces": publish(b"1").replace(b" HTTP/1.1", b"  HTTP/1.1"),
    "empty line first": b"\r\n" + publish(b"1"),
}
CODINGS = (
    b"gzip, chunked", b"chunked, chunked", b"xchunked", b"identity", b"chunked\r\n"
    b"Transfer-Encoding: chunked", b'"chunked"', b"chunked;q=1",
)  # fmt: skip
AMBIGUOUS |= {
    f"coding {coding.decode()}": chunked(b"0\r\n\r\n", b"Transfer-Encoding: " + coding)
    for coding in CODINGS
}


@pytest.mark.parametrize("in_place", [True, False])
async def test_what_smuggling_uses_is_refused_and_nothing_behind_it_is_served(
    in_place: bool,
) -> None:
    """RFC 9112 sections 2.2, 5, 6.3, 7.1, 11.2. All on one node, since starting it takes time."""
    async with serving(in_place=in_place) as served:
        for name, sent in AMBIGUOUS.items():
            async with connect(served.door) as client:
                await client.send(publish(b'"before"') + sent + SMUGGLED)
                assert (await client.receive_answer()).status == 201
                refusal = await client.receive_answer()
                assert refusal.status in (400, 501), name
                assert refusal.headers["connection"] == "close", name
                assert await client.receive_end() == b"", name
            assert set(await kept(served)) == {b'"before"'}, name


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    "chunk_head", [b"1" * 70_000, b"1;" + b"x" * 70_000], ids=["size", "extension"]
)
async def test_a_chunk_head_without_end_is_refused(chunk_head: bytes, in_place: bool) -> None:
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        await client.send(chunked(chunk_head))
        assert (await client.receive_answer()).status in (400, 431)
        await client.receive_end_or_reset()
        assert await kept(served) == []


async def test_nothing_is_served_behind_a_request_that_says_close() -> None:
    async with serving() as served, connect(served.door) as client:
        await client.send(publish(b"1", "Connection: close") + SMUGGLED)
        answer = await client.receive_answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert await client.receive_end() == b""
        assert await kept(served) == [b"1"]


# Limits.


@pytest.mark.usefixtures("jumping")
async def test_a_head_that_does_not_end_is_a_408() -> None:
    async with serving(header_timeout_seconds=0.05) as served:
        async with connect(served.door) as client:
            await client.send(publish()[:40])
            assert (await client.receive_answer()).code == "request_timeout"
            assert await client.receive_end() == b""
        async with connect(served.door) as client:
            await client.send(publish() + publish()[:40])
            assert (await client.receive_answer()).status == 201
            assert (await client.receive_answer()).code == "request_timeout"
        assert served.asked == []


@pytest.mark.usefixtures("jumping")
async def test_a_client_that_never_asks_is_closed_without_a_word() -> None:
    async with serving(header_timeout_seconds=0.05) as served, connect(served.door) as client:
        assert await client.receive_end() == b""


@pytest.mark.usefixtures("jumping")
async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with serving(idle_timeout_seconds=0.05) as served, connect(served.door) as client:
        for _ in range(2):
            await client.send(publish())
            assert (await client.receive_answer()).status == 201
        assert await client.receive_end() == b""


def test_idle_connections_are_left_to_proxies_and_clients_to_close() -> None:
    """Go's clients do so after 90 s, nginx and ALB after 60; a crossing costs a request."""
    seconds = LimitsConfig().idle_timeout_seconds
    assert seconds == DoorOptions().idle_timeout_seconds > 90


@pytest.mark.usefixtures("jumping")
async def test_a_body_that_does_not_end_is_a_408_and_what_comes_late_is_no_request() -> None:
    config = configured(limits={"body_timeout_seconds": 0.05})
    async with serving(config=config) as served, connect(served.door) as client:
        await client.send(publish(b"1" * 100)[:-50])
        answer = await client.receive_answer()
        assert (answer.code, answer.headers["connection"]) == ("request_timeout", "close")
        await client.send(SMUGGLED)
        assert await client.receive_end() == b""
        assert await kept(served) == []


@pytest.mark.usefixtures("jumping")
async def test_time_limits_do_not_touch_a_publish_under_way() -> None:
    limits = {"idle_timeout_seconds": 0.01, "header_timeout_seconds": 0.01}
    async with serving(**limits) as served, connect(served.door) as client:
        served.node.gate.shut()
        await client.send(publish())
        await trio.sleep(0.05)
        served.node.gate.open()
        assert (await client.receive_answer()).status == 201


async def test_a_head_over_the_limit_is_refused() -> None:
    async with serving(header_bytes_max=1024) as served, connect(served.door) as client:
        await client.send(publish(b"1", f"X: {'x' * 5000}"))
        assert (await client.receive_answer()).code == "headers_too_large"
        await client.receive_end_or_reset()


@pytest.mark.usefixtures("jumping")
async def test_a_client_that_reads_no_answers_is_reset() -> None:
    """And until then no more of its requests are taken than its answers find room."""
    body = publish(b"{", f"X: {'x' * 3000}") * 20
    async with serving(write_timeout_seconds=0.1) as served:
        async with connect(served.door, receive_buffer_bytes=4096) as client:
            with suppress(trio.BrokenResourceError):
                while True:
                    await client.send(body)
        await until(lambda: served.door.connections == 0)
        assert served.door.statistics().failed == 0


async def test_a_client_that_leaves_meanwhile_has_published_all_the_same() -> None:
    async with serving() as served:
        async with connect(served.door) as client:
            served.node.gate.shut()
            await client.send(publish())
            await trio.testing.wait_all_tasks_blocked()
            reset(client)
        served.node.gate.open()
        await until(lambda: served.door.connections == 0)
        assert await kept(served) == [b"1"]
        assert served.door.statistics().failed == 0


# Stopping.


async def test_stop_closes_idle_connections_at_once() -> None:
    async with serving() as served, connect(served.door) as fresh, connect(served.door) as used:
        await used.send(publish())
        assert (await used.receive_answer()).status == 201
        await trio.testing.wait_all_tasks_blocked()
        served.door.stop(grace_seconds=60)
        assert await fresh.receive_end() == b""
        assert await used.receive_end() == b""


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "by Quart"])
async def test_a_door_that_is_left_serves_on_and_says_of_each_answer_that_it_is_the_last(
    in_place: bool,
) -> None:
    """Nobody keeps a connection that the stop then closes under a request."""
    async with serving(in_place=in_place) as served, connect(served.door) as old:
        await old.send(publish())
        assert "connection" not in (await old.receive_answer()).headers
        served.door.leave()
        await trio.testing.wait_all_tasks_blocked()
        async with connect(served.door) as new, connect(served.door) as other:
            await other.send(GET_READY)
            assert (await other.receive_answer()).headers["connection"] == "close"
            assert await other.receive_end() == b""
            for client in (old, new):
                await client.send(publish())
                answer = await client.receive_answer()
                assert (answer.status, answer.headers["connection"]) == (201, "close")
                assert await client.receive_end() == b""
        assert served.door.stopping is False


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "by Quart"])
async def test_what_has_come_when_the_door_stops_is_answered(in_place: bool) -> None:
    """On a connection that rests as far as the node has looked, and on one not yet accepted."""
    async with serving(in_place=in_place) as served, connect(served.door) as old:
        await old.send(publish())
        await old.receive_answer()
        await trio.testing.wait_all_tasks_blocked()
        with socket.create_connection(("127.0.0.1", served.door.port)) as new:  # no checkpoint
            new.sendall(publish())
            os.write(old.stream.socket.fileno(), publish())
            served.door.stop(grace_seconds=60)
            answer = await old.receive_answer()
            assert (answer.status, answer.headers["connection"]) == (201, "close")
            assert await old.receive_end() == b""
            told = await trio.to_thread.run_sync(_all_of, new)
            assert told.startswith(b"HTTP/1.1 201 ")
            assert b"\r\nconnection: close\r\n" in told.lower()


def _all_of(client: socket.socket) -> bytes:
    client.settimeout(10)
    found = b""
    while data := client.recv(65536):
        found += data
    return found


@pytest.mark.parametrize("part", [20, -1, None], ids=["head", "body", "under way"])
async def test_stop_lets_a_publish_finish_and_says_close(part: int | None) -> None:
    async with serving() as served, connect(served.door) as client:
        served.node.gate.shut()
        await client.send(publish(b"12")[:part])
        await trio.testing.wait_all_tasks_blocked()
        served.door.stop(grace_seconds=60)
        served.node.gate.open()
        if part is not None:
            await trio.testing.wait_all_tasks_blocked()
            await client.send(publish(b"12")[part:])
        answer = await client.receive_answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert await client.receive_end() == b""


async def test_stop_is_known_to_who_takes_the_connection_over() -> None:
    async with serving() as served, connect(served.door) as client:
        await client.send(GET_READY)
        assert (await client.receive_answer()).status == 200
        await trio.testing.wait_all_tasks_blocked()
        await client.send(publish())  # it is in the socket, and nobody has run yet
        served.door.stopping = True
        answer = await client.receive_answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert await client.receive_end() == b""
        assert served.asked == ["GET /readyz"]


@pytest.mark.usefixtures("jumping")
async def test_stop_aborts_what_is_left_after_the_grace() -> None:
    async with serving() as served, connect(served.door) as client:
        served.node.gate.shut()
        await client.send(publish())
        await trio.testing.wait_all_tasks_blocked()
        served.door.stop(grace_seconds=0.05)
        await client.receive_end_or_reset()


# Answers.


async def test_an_error_of_ours_is_a_500_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("boom")

    async with serving() as served, connect(served.door) as client:
        monkeypatch.setattr(served.node.broker, "publish", fail)
        await client.send(publish())
        answer = await client.receive_answer()
        assert (answer.status, answer.code) == (500, "internal_error")
        assert "boom" not in answer.body.decode()
        (record,) = caplog.records
        assert record.getMessage() == ("request failed method=POST path='/v1/topics/chat/messages'")
        assert record.exc_info is not None
        await client.send(publish(b"1\n", media_type="application/x-ndjson"))
        assert (await client.receive_answer()).status == 201


@pytest.mark.usefixtures("jumping")
async def test_a_publish_has_its_line_in_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "repl_broker.web.access")
    config = Config()
    config = replace(config, http=replace(config.http, access_log=True))
    config = configured(config, limits={"body_timeout_seconds": 0.05})
    async with serving(config=config) as served, connect(served.door) as client:
        await client.send(publish() + publish(b"{") + publish(b"12")[:-1])
        for _ in range(3):
            await client.receive_answer()
    lines = [record.getMessage() for record in caplog.records]
    path = "method=POST path=/v1/topics/chat/messages"
    for line, status in zip(lines, (201, 400, 408), strict=True):
        assert line.startswith(f"request {path} status={status} seconds=0.0")
        assert "peer=127.0.0.1:" in line


async def test_every_answer_is_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write

    def note(descriptor: int, data: bytes) -> int:
        written.append(data)
        return write(descriptor, data)

    async with serving() as served, connect(served.door) as client:
        monkeypatch.setattr(os, "write", note)
        await client.send(publish())
        await client.receive_answer()
        monkeypatch.undo()
    assert [data[:12] for data in written if data.startswith(b"HTTP")] == [b"HTTP/1.1 201"]


async def test_an_answer_that_the_kernel_does_not_take_at_once_is_still_sent_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = os.write
    sizes = iter([0, 10])

    def little(descriptor: int, data: bytes) -> int:
        if not data.startswith(b"HTTP"):
            return write(descriptor, data)
        if not (size := next(sizes)):
            raise BlockingIOError
        return write(descriptor, data[:size])

    async with serving() as served, connect(served.door) as client:
        monkeypatch.setattr(os, "write", little)
        for _ in range(2):
            await client.send(publish())
            assert (await client.receive_answer()).status == 201
        monkeypatch.undo()


# Nothing is left behind.


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


MIXED = (
    publish(b'{"a":1}') * 2 + publish(b"{") * 5 + publish(b"1", path="/v1/topics/a..b/messages")
    + publish(b"1\n2", "Idempotency-Key: k", media_type="application/x-ndjson")
    + publish(b'{"topic":"chat","data":1}', path="/v1/messages", media_type="application/x-ndjson")
)  # fmt: skip


async def test_10_000_mixed_requests_on_one_connection_leave_nothing_behind() -> None:
    async with serving(seconds_max=60) as served:
        await trio.testing.wait_all_tasks_blocked()
        before = descriptors(), tasks()
        async with connect(served.door) as client:
            for _ in range(980):
                await client.send(MIXED)
                for _ in range(10):
                    await client.receive_answer()
            assert served.asked == []
            for _ in range(20):  # and from here on with Quart
                await client.send(CHUNKED + publish(b"{") * 4 + GET_READY * 5)
                for _ in range(10):
                    await client.receive_answer()
            assert len(served.asked) == 200
            assert tasks() <= before[1] + 4  # the client's, the connection's, a request's
        await until(lambda: served.door.connections == 0)
        gc.collect()
        await trio.testing.wait_all_tasks_blocked()
        assert (descriptors(), tasks()) == before


async def test_clients_that_vanish_leave_nothing_behind() -> None:
    async with serving() as served:
        await trio.testing.wait_all_tasks_blocked()
        before = descriptors(), tasks()
        for number in range(60):
            async with connect(served.door) as client:
                await client.send((publish(b"12") * 3)[: -(number % 40)])
                if number % 3 == 0:
                    reset(client)
                elif number % 3 == 1:
                    assert isinstance(client.stream, trio.SocketStream)
                    client.stream.socket.shutdown(socket.SHUT_WR)
                    with suppress(AssertionError):
                        await Client(client.stream).receive_answer()
        await until(lambda: served.door.connections == 0)
        await trio.testing.wait_all_tasks_blocked()
        assert (descriptors(), tasks()) == before
        assert served.door.statistics().failed == 0
