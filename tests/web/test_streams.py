"""Event streams that are opened in place: the same answers as Quart's, and the socket moves on."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker.fanout import Fanout
from repl_broker.logs import identify
from repl_broker.web.door import Door
from repl_broker.web.publisher import Publisher
from tests.nodes import ANYONE, configured
from tests.web.doors import publish, serving
from tests.web.test_door import Client, connect, reset

PAGE = "http://page"


def get(target: str, *fields: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: [::1]", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


@asynccontextmanager
async def connected_with(door: Door, request: bytes) -> AsyncIterator[Client]:
    """A client whose request is there when the door accepts it."""
    tcp = socket.create_connection(("127.0.0.1", door.port))
    tcp.sendall(request)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(tcp)) as stream:
        yield Client(stream)


@asynccontextmanager
async def connected_before(door: Door, request: bytes) -> AsyncIterator[Client]:
    """A client that is accepted before its request comes."""
    async with connect(door) as client:
        await wait_all_tasks_blocked()
        await client.send(request)
        yield client


Connected = Callable[[Door, bytes], AbstractAsyncContextManager[Client]]


async def answered(
    request: bytes,
    *,
    in_place: bool,
    origins: tuple[str, ...] = (),
    connected: Connected = connected_before,
) -> bytes:
    """The head of the answer and what comes at once, less the time."""
    config = configured(http={"cors_origins": origins}, topics={"auto_create": False})
    async with serving(in_place=in_place, config=config) as served:
        await served.node.broker.create_topic(ANYONE, "chat")
        async with connected(served.door, request) as client:
            data = b""
            expected = 2 if b"12345678-0" in request else 1  # subscribed, gap
            with trio.move_on_after(0.3):
                while more := await client.stream.receive_some():
                    data += more
                    head, _, body = data.partition(b"\r\n\r\n")
                    length = re.search(rb"content-length: (\d+)", head)
                    if length and len(body) >= int(length[1]):
                        break
                    if body.endswith(b"\n\n\r\n") and body.count(b"event") >= expected:
                        break
        assert bool(served.asked) != in_place
    data = re.sub(rb"\r\ndate: [^\r]*", b"", data)
    data = re.sub(rb"(?<=\r\nx-request-id: )[0-9a-f]{32}(?=\r\n)", b"made", data)
    return data.replace(b"\r\nConnection: ", b"\r\nconnection: ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/v1/events?topic=chat"),
        get("/v1/events?topic=chat&topic=a.*&after=earliest"),
        get("/v1/events?topic=chat&topic=chat", f"Origin: {PAGE}"),
        get("/v1/events?topic=chat", "Origin: http://other", "Connection: close"),
        get("/v1/events?topic=%63hat&after=", "Connection: keep-alive"),
        get("/v1/events?topic=chat", "Last-Event-ID:"),
        get("/v1/events?topic=chat", "Last-Event-ID: 12345678-0"),
        get("/v1/events?topic=chat", "Last-Event-ID: \xe9"),
        get("/v1/events?topic=chat&after=x", "Last-Event-ID: earliest"),
        get("/v1/events"),
        get("/v1/events?"),
        get("/v1/events?topic="),
        get("/v1/events?topic=a..b"),
        get("/v1/events?topic=absent"),
        get("/v1/events?topic=chat&after=latest&after=latest"),
        get("/v1/events?topik=chat"),
        get("/v1/events?topik=chat", "Connection: Upgrade", "Upgrade: h2c"),
        get("/v1/events?topic=%ff"),
        get("/v1/events?topic=a..b&x?y=/:@!$'()*,;", "Connection: close", f"Origin: {PAGE}"),
        get("/v1/events?" + "&".join(f"topic=t{n}" for n in range(129))),
        get("/v1/events?" + "&".join(f"topic={'a.*.' * 40}x{n}" for n in range(128))),
    ],
)
async def test_both_ways_answer_alike(request_bytes: bytes) -> None:
    for origins in ((), (PAGE,)):
        by_quart = await answered(request_bytes, in_place=False, origins=origins)
        assert by_quart.startswith(b"HTTP/1.1 ")
        for connected in (connected_before, connected_with):
            in_place = await answered(
                request_bytes, in_place=True, origins=origins, connected=connected
            )
            assert in_place == by_quart


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/v1/events?topic=chat").replace(b"GET", b"HEAD"),
        get("/v1/events?topic=chat").replace(b"1.1", b"1.0"),
        get("/v1/events?topic=chat", "Content-Length: 0"),
        get("/v1/events?topic=chat", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        get("/v1/events?topic=chat", "Last-Event-ID: a", "Last-Event-ID: b"),
        get("/v1/events?topic=chat", "Expect: 100-continue"),
        get("/v1/events/?topic=chat"),
        get("/v1/eventsx"),
        get("http://[::1]/v1/events?topic=a..b"),
        get('/v1/events?topic="'),
    ],
)
async def test_what_is_unusual_is_left_to_quart(request_bytes: bytes) -> None:
    async with serving() as served, connect(served.door) as client:
        await client.send(request_bytes)
        await client.stream.receive_some()
        assert served.asked


@pytest.mark.parametrize("connected", [connected_before, connected_with])
async def test_a_refusal_leaves_the_connection_to_further_requests(connected: Connected) -> None:
    requests = get("/v1/events?topic=a..b") + publish(b"1") + get("/v1/events?x=1")
    async with serving() as served, connected(served.door, requests) as client:
        assert [(await client.receive_answer()).status for _ in range(3)] == [400, 201, 400]
        await client.send(get("/healthz"))
        assert (await client.receive_answer()).status == 200
        await client.send(get("/v1/events?topic=chat"))
        await client._read_until(b"event: subscribed")
        assert served.asked == ["GET /healthz"]
        counts = {what.status: count for what, count in served.door.statistics().requests}
        assert counts == {400: 2, 201: 1, 200: 1}


async def test_a_stream_that_is_asked_for_at_once_never_has_a_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = []

    async def note(self: Publisher) -> None:
        ran.append(self)

    monkeypatch.setattr(Publisher, "run", note)
    request = get("/v1/events?topic=chat")
    async with serving() as served, connected_with(served.door, request) as client:
        await client._read_until(b"event: subscribed")
        assert served.door.connections == 1
    assert not ran


class FullEpoll:
    """``max_user_watches`` of the kernel is reached."""

    def register(self, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("connected", [connected_before, connected_with])
async def test_one_that_fails_ends_alone(
    connected: Connected, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves nothing behind, whether it has a task or is opened while others are accepted."""
    caplog.handler.addFilter(identify)
    request = get("/v1/events?topic=chat", f"traceparent: 00-{'ab' * 16}-{'cd' * 8}-00")
    async with serving(connections_per_address=1) as served:
        with monkeypatch.context() as patch:
            patch.setattr(served.fanout, "_epoll", FullEpoll())
            async with connected(served.door, request) as client:
                await client.receive_end_or_reset()
        assert served.door.connections == 0
        assert served.door.statistics().failed == 1
        assert served.node.hub.statistics()[:2] == (0, 0)
        async with connected(served.door, request) as client:
            await client._read_until(b"event: subscribed")
    (failed,) = [each for each in caplog.records if "connection failed" in each.getMessage()]
    assert "No space left on device" in failed.getMessage()
    assert vars(failed)["request_id"] == "ab" * 16


async def test_a_head_in_pieces_is_read_where_it_ends() -> None:
    async with serving() as served, connect(served.door) as client:
        for piece in (
            b"G",
            b"ET /v1/ev",
            b"ents?topic=chat HT",
            b"TP/1.1\r\nHost: [::1]\r",
            b"\n\r\n",
        ):
            await client.send(piece)
            await wait_all_tasks_blocked()
        await client._read_until(b"event: subscribed")
        assert not served.asked


async def test_a_reader_counts_as_a_connection_and_needs_no_task() -> None:
    async with serving(connections_max=3) as served:
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with connect(served.door) as first, connect(served.door) as second:
            for client in (first, second):
                await client.send(get("/v1/events?topic=chat"))
                await client._read_until(b"event: subscribed")
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            assert served.door.connections == 2
            async with connect(served.door), connect(served.door) as fourth:
                assert (await fourth.receive_answer()).status == 429
            assert served.door.statistics().refused == 1
        while served.door.connections:
            await wait_all_tasks_blocked()


async def test_the_kernel_takes_little_that_it_cannot_send() -> None:
    """Or a stalled reader would cost megabytes of the kernel's memory."""
    async with serving() as served, connect(served.door) as client:
        await client.send(get("/v1/events?topic=chat"))
        await client._read_until(b"event: subscribed")
        (reader,) = served.fanout._all()
        tcp = socket.socket(fileno=reader.fd)
        try:
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 16 * 1024
            assert not os.get_blocking(reader.fd)
        finally:
            tcp.detach()


async def test_stop_cuts_streams_that_nobody_ends() -> None:
    async with serving() as served, connect(served.door) as client:
        await client.send(get("/v1/events?topic=chat"))
        await client._read_until(b"event: subscribed")
        served.door.stop(grace_seconds=0.05)
        with pytest.raises(trio.BrokenResourceError):
            await client.stream.receive_some()


async def test_the_access_log_has_a_stream_when_it_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "repl_broker.web.access")
    async with serving(config=configured(http={"access_log": True})) as served:
        async with connect(served.door) as client:
            await client.send(get("/v1/events?topic=a..b&token=secret"))
            await client.receive_answer()
            await client.send(get("/v1/events?topic=chat"))
            await client._read_until(b"event: subscribed")
            lines = [record.getMessage() for record in caplog.records]
            assert [line.split(" seconds")[0] for line in lines] == [
                "request method=GET path=/v1/events status=400"
            ]
        while served.door.connections:
            await wait_all_tasks_blocked()
    assert "request method=GET path=/v1/events status=200 seconds=" in caplog.text


async def test_an_error_of_ours_is_a_500_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served, connect(served.door) as client:

        def broken(*_: object) -> None:
            raise ValueError("broken")

        monkeypatch.setattr(served.node.broker, "subscribe", broken)
        await client.send(get("/v1/events?topic=chat"))
        answer = await client.receive_answer()
        assert answer.status == 500
        assert b"internal_error" in answer.body
    assert "request failed method=GET path='/v1/events'" in caplog.text


async def test_clients_that_come_read_and_vanish_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By FIN or RST, at any moment; descriptors, tasks and channels are counted."""
    adopted = 0
    adopt = Fanout.adopt

    def counted(self: Fanout, *arguments: object) -> None:
        nonlocal adopted
        adopted += 1
        adopt(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Fanout, "adopt", counted)
    async with serving() as served:
        tasks = trio.lowlevel.current_statistics().tasks_living
        for number in range(300):
            async with connect(served.door) as client:
                await client.send(get(f"/v1/events?topic=t{number % 7}"))
                if number % 3:
                    await client._read_until(b"event: subscribed")
                if number % 2:
                    reset(client)
            if number % 10 == 0:
                await served.node.broker.publish(ANYONE, f"t{number % 7}", b"1")
        while served.door.connections:
            await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert served.node.hub.statistics()[:2] == (0, 0)
        assert adopted > 200


@pytest.mark.parametrize("connected", [connected_with, connected_before])
async def test_streams_with_very_long_filters_are_opened_in_turns(connected: Connected) -> None:
    """Each takes some milliseconds; of forty at once, others would wait for all."""
    long = get("/v1/events?" + "&".join(f"topic={'a.*.' * 40}x{n}" for n in range(128)))
    async with serving() as served:
        gate = served.node.replica.turnstile._gate
        await gate.acquire()
        async with connected(served.door, long) as first, connected(served.door, long) as second:
            async with connected(served.door, get("/v1/events?topic=chat")) as short:
                assert await short._read_until(b"subscribed")
            assert len(served.fanout) <= 1, "that one may have left already"
            gate.release()
            for client in (first, second):
                assert await client._read_until(b"subscribed")
        assert not served.asked
