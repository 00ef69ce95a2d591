"""Every limit, exceeded, both ways into the broker: the code, when to come back, and life after."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import wait_all_tasks_blocked

from repl_broker.daemon import _options
from repl_broker.web.door import DoorOptions
from repl_broker.web.metrics import render, with_registry
from tests.nodes import ANYONE, configured
from tests.web.doors import Served, publish, serving
from tests.web.test_door import Client, connect, reset, until
from tests.web.test_streams import get

MIB = 1 << 20

both_ways = pytest.mark.parametrize("in_place", [True, False], ids=["door", "Quart"])


def metric(served: Served, name: str, **labels: str) -> float:
    text = render(with_registry(served.node.broker, served.door.statistics)).decode()
    (value,) = (
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"repl_broker_{name}" and sample.labels == labels
    )
    return value


async def answers(client: Client, *requests: bytes) -> list[tuple[int, str]]:
    """Status and code of each, sent one after the other; "" where it is no problem."""
    found = []
    for request in requests:
        await client.send(request)
        answer = await client.receive_answer()
        code = json.loads(answer.body)["code"] if answer.status >= 400 else ""
        found.append((answer.status, code))
        assert (answer.status in (429, 503, 507)) == ("retry-after" in answer.headers)
        if answer.status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers.get("retry-after", 1)) >= 1
    return found


async def assert_healthy(served: Served) -> None:
    """A node that has refused something publishes, streams and answers as before."""
    async with connect(served.door) as reader, connect(served.door) as publisher:
        await reader.send(get("/v1/events?topic=healthy"))
        await reader._read_until(b"event: subscribed")
        assert await answers(
            publisher, publish(b'"alive"', path="/v1/topics/healthy/messages")
        ) == [(201, "")]
        await reader._read_until(b"alive")
        assert (await publisher.get("/healthz")).status == 200
    assert metric(served, "connections_failed_total") == 0


# --- rates ---


@both_ways
async def test_too_many_publishes_a_second_are_429_and_the_connection_stays(in_place: bool) -> None:
    config = configured(limits={"publishes_per_second": 1, "publish_burst": 3})
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        batch = publish(b"1\n2\n", media_type="application/x-ndjson")
        many = publish(
            b'{"topic":"a","data":1}\n', path="/v1/messages", media_type="application/x-ndjson"
        )
        found = await answers(client, publish(), batch, many, publish(), batch, many)
        assert found == [(201, "")] * 3 + [(429, "rate_limited")] * 3
        assert served.node.replica.state.seq == 4, "what was refused changed nothing"
        assert metric(served, "refused_total", code="rate_limited") == 3
        assert (await client.get("/v1/topics")).status == 200, "reading has another rate"
        served.node.broker.reload(configured())
        await assert_healthy(served)


@both_ways
async def test_too_many_streams_a_second_are_429(in_place: bool) -> None:
    config = configured(limits={"subscribes_per_second": 1, "subscribe_burst": 2})
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        async with connect(served.door) as first, connect(served.door) as second:
            for reader in (first, second):
                await reader.send(get("/v1/events?topic=chat"))
                await reader._read_until(b"event: subscribed")
            found = await answers(client, get("/v1/events?topic=chat"), publish())
            assert found == [(429, "rate_limited"), (201, "")]
            await second._read_until(b'"data":1')
        served.node.broker.reload(configured())
        await assert_healthy(served)


@both_ways
async def test_too_many_reads_a_second_are_429(in_place: bool) -> None:
    config = configured(limits={"reads_per_second": 1, "read_burst": 3})
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        history, show, page = (
            get(path) for path in ("/v1/topics/chat/messages", "/v1/topics/chat", "/v1/topics")
        )
        found = await answers(client, publish(), history, show, page, history, show, page)
        limited = (429, "rate_limited")
        assert found == [(201, ""), (200, ""), (200, ""), (200, ""), limited, limited, limited]
        assert (await client.get("/healthz")).status == 200
        served.node.broker.reload(configured())
        await assert_healthy(served)


@both_ways
async def test_who_has_left_before_it_is_accepted_gets_around_no_rate(in_place: bool) -> None:
    """What it sent can still be read, but not from whom it came."""
    config = configured(limits={"publishes_per_second": 1, "publish_burst": 2})
    async with serving(in_place=in_place, config=config) as served:
        for request in [publish(), get("/v1/events?topic=chat")] * 4:
            tcp = socket.create_connection(("127.0.0.1", served.door.port))
            tcp.sendall(request)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            tcp.close()  # a reset
        await until(lambda: served.door.statistics().accepted == 8)
        await wait_all_tasks_blocked()
        assert served.door.connections == 0
        assert served.node.replica.state.seq == 0
        await assert_healthy(served)


# --- topics, and room ---


@both_ways
async def test_a_topic_too_many_is_409(in_place: bool) -> None:
    config = configured(limits={"topics": 2})
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        to = [publish(path=f"/v1/topics/{name}/messages") for name in ("a", "b", "c", "a")]
        put = b"PUT /v1/topics/d HTTP/1.1\r\nHost: localhost\r\n\r\n"
        found = await answers(client, *to, put)
        full = (409, "too_many_topics")
        assert found == [(201, ""), (201, ""), full, (201, ""), full]
        await client.send(b"DELETE /v1/topics/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await client._read_until(b" 204 ")
        assert metric(served, "refused_total", code="too_many_topics") == 2
        await assert_healthy(served)


@both_ways
async def test_a_full_store_is_507_and_reads_and_deletions_go_on(in_place: bool) -> None:
    config = configured(limits={"storage_bytes": 200})
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        found = await answers(client, *[publish()] * 5)
        assert found == [(201, "")] * 4 + [(507, "storage_full")]
        assert metric(served, "store_full") == 1
        assert metric(served, "refused_total", code="storage_full") == 1
        assert len((await client.get("/v1/topics/chat/messages")).body.split(b'"data"')) == 5
        async with connect(served.door) as reader:
            await reader.send(get("/v1/events?topic=chat&after=earliest"))
            await reader._read_until(b'"data":1')
        async with connect(served.door) as other:
            await other.send(b"DELETE /v1/topics/chat HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await other._read_until(b" 204 ")
        assert metric(served, "store_full") == 0
        await assert_healthy(served)


# --- publishes under way, and their bodies ---


@both_ways
async def test_publishes_beyond_those_under_way_are_503_and_those_are_kept(in_place: bool) -> None:
    config = configured(limits={"publishes_under_way": 3})
    async with serving(in_place=in_place, config=config) as served:
        served.node.gate.shut()
        codes: list[tuple[int, str]] = []

        async def one() -> None:
            async with connect(served.door) as client:
                codes.extend(await answers(client, publish()))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
            await until(lambda: len(codes) == 7)
            assert metric(served, "publishes_under_way") == 3
            served.node.gate.open()
        assert sorted(codes) == [(201, "")] * 3 + [(503, "overloaded")] * 7
        assert served.node.replica.state.seq == 3
        assert metric(served, "refused_total", code="overloaded") == 7
        assert metric(served, "publishes_under_way") == 0
        await assert_healthy(served)


@both_ways
async def test_a_body_without_memory_for_it_is_503_before_it_has_come(in_place: bool) -> None:
    config = configured(limits={"requests_bytes": 3000, "batch_bytes": 2000})
    async with serving(in_place=in_place, config=config) as served:
        async with connect(served.door) as slow, connect(served.door) as other:
            body = b'"%b"' % (b"x" * 1998)
            await slow.send(publish(body)[:-1])
            await until(lambda: metric(served, "requests_bytes") == 2000)
            assert await answers(other, publish(body)[:-1]) == [(503, "overloaded")]
            assert await other.receive_end() == b"", "what would follow is no request"
            async with connect(served.door) as small:
                assert await answers(small, publish(), publish(body), publish()) == [
                    (201, ""),
                    (503, "overloaded"),
                    (201, ""),
                ]
            await slow.send(body[-1:])
            assert (await slow.receive_answer()).status == 201
        async with connect(served.door) as leaves:
            await leaves.send(publish(body)[:-1])
            await until(lambda: metric(served, "requests_bytes") == 2000)
        await until(lambda: metric(served, "requests_bytes") == 0)
        await assert_healthy(served)


@both_ways
async def test_a_body_that_is_late_gives_its_memory_back(in_place: bool) -> None:
    config = configured(limits={"body_timeout_seconds": 0.05})
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        assert await answers(client, publish(b"12")[:-1]) == [(408, "request_timeout")]
        await until(lambda: metric(served, "requests_bytes") == 0)
        assert metric(served, "refused_total", code="request_timeout") == 1
        await assert_healthy(served)


async def test_chunks_count_as_they_come() -> None:
    config = configured(limits={"requests_bytes": 100})
    async with serving(config=config) as served, connect(served.door) as client:
        head = publish(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        await client.send(head + b'40\r\n"%b\r\n' % (b"x" * 63))
        await until(lambda: metric(served, "requests_bytes") == 64)
        await client.send(b"40\r\n%b\r\n" % (b"x" * 64))
        assert (await client.receive_answer()).code == "overloaded"
        await until(lambda: metric(served, "requests_bytes") == 0)
        await assert_healthy(served)


# --- sizes, which both ways refuse and count ---


@both_ways
async def test_what_is_too_large_is_refused_and_counted(in_place: bool) -> None:
    config = configured(
        limits={"message_bytes": 10, "batch_bytes": 20, "batch_messages": 2, "json_depth": 3}
    )
    ndjson = "application/x-ndjson"
    filters = "&".join(f"topic=t{n}" for n in range(129))
    async with serving(in_place=in_place, config=config, header_bytes_max=4096) as served:
        for request, status, code in (
            (publish(b'"%b"' % (b"x" * 99)), 413, "message_too_large"),
            (publish(b"1\n" * 11, media_type=ndjson), 413, "batch_too_large"),
            (publish(b"1\n" * 3, media_type=ndjson), 413, "batch_too_large"),
            (publish(b"[[[[1]]]]"), 400, "invalid_json"),
            (get(f"/v1/events?{filters}"), 400, "invalid_filter"),
            (get("/v1/events?topic=chat", "x: " + "x" * 5000), 431, "headers_too_large"),
        ):
            before = metric(served, "refused_total", code=code)
            async with connect(served.door) as client:
                assert await answers(client, request) == [(status, code)]
            assert metric(served, "refused_total", code=code) == before + 1
        await assert_healthy(served)


# --- connections ---


@both_ways
async def test_connections_of_an_address_are_bounded_and_come_free_however_they_end(
    in_place: bool,
) -> None:
    async with serving(in_place=in_place, connections_per_address=3) as served:
        counted = served.door._crowd.counts
        async with connect(served.door) as idle, connect(served.door) as stream:
            assert await answers(idle, publish()) == [(201, "")]
            await stream.send(get("/v1/events?topic=chat"))
            await stream._read_until(b"event: subscribed")
            async with connect(served.door) as third:
                assert (await third.get("/healthz")).status == 200
                async with connect(served.door) as fourth:
                    refusal = await fourth.receive_answer()
                    assert (refusal.status, refusal.code) == (429, "too_many_connections")
                    assert 3 <= int(refusal.headers["retry-after"]) <= 8
                    assert "3 connections of one address" in refusal.body.decode()
                async with connect(served.door, source="127.0.0.2") as elsewhere:
                    assert (await elsewhere.get("/healthz")).status == 200
                assert metric(served, "connections_refused_by_address_total") == 1
                assert metric(served, "refused_total", code="too_many_connections") == 1
            await until(lambda: counted() == {"127.0.0.1": 2})
            reset(stream)
            await until(lambda: counted() == {"127.0.0.1": 1})
        await until(lambda: not counted())
        await assert_healthy(served)
        await until(lambda: not counted())


async def test_a_connection_is_told_when_to_come_back_and_not_the_same_to_all() -> None:
    told = set()
    async with serving(connections_max=0) as served:
        for _ in range(40):
            async with connect(served.door) as client:
                told.add(int((await client.receive_answer()).headers["retry-after"]))
        assert told <= set(range(3, 9))
        assert len(told) > 1
        served.door.take_options(DoorOptions(connections_max=10))
        await assert_healthy(served)


# --- readers that do not read ---


@both_ways
async def test_readers_that_stall_in_different_events_are_ended_beyond_what_may_be_held(
    in_place: bool,
) -> None:
    """Each holds one event of its own; without a bound that is as many events as readers."""
    config = configured(limits={"streams_bytes": MIB, "message_bytes": MIB})
    received = 0

    async def read_all(client: Client) -> None:
        nonlocal received
        with suppress(trio.ClosedResourceError):
            while data := await client.stream.receive_some():
                received += data.count(b"data: ")

    async with (
        serving(in_place=in_place, config=config, seconds_max=20) as served,
        AsyncExitStack() as clients,
        trio.open_nursery() as reading,
    ):
        good = await clients.enter_async_context(connect(served.door))
        await good.send(get("/v1/events?topic=t7"))
        reading.start_soon(read_all, good)
        for number in range(8):
            stalled = connect(served.door, receive_buffer_bytes=4096)
            client = await clients.enter_async_context(stalled)
            await client.send(get(f"/v1/events?topic=t{number}"))
        await until(lambda: metric(served, "subscribers") == 9)
        for number in range(8):
            for _ in range(12):  # which is more than the kernel takes
                body = b'"%b"' % (b"x" * 400_000)
                await served.node.broker.publish(ANYONE, f"t{number}", body)
                await wait_all_tasks_blocked()
        assert served.door.stalled.bytes <= MIB
        ended = metric(served, "stalled_subscribers_ended_total")
        assert 4 <= ended <= 7
        await until(lambda: metric(served, "subscribers") == 9 - ended)
        await until(lambda: received == 13)  # the good one has all, and how it began
        await clients.aclose()
        await until(lambda: metric(served, "subscribers") == 0)
        assert served.door.stalled.bytes == 0
        await assert_healthy(served)
        reading.cancel_scope.cancel()


# --- other limits while it runs ---


async def test_limits_that_are_loaded_anew_hold() -> None:
    async with serving() as served, connect(served.door) as client:
        assert await answers(client, publish()) == [(201, "")]
        tight = configured(limits={"connections": 1, "publishes_per_second": 1, "publish_burst": 1})
        served.node.broker.reload(tight)
        served.door.take_options(_options(tight))
        assert await answers(client, publish(), publish()) == [(201, ""), (429, "rate_limited")]
        async with connect(served.door) as another:
            assert (await another.receive_answer()).code == "too_many_connections"
        served.node.broker.reload(configured())
        served.door.take_options(_options(configured()))
        await assert_healthy(served)
