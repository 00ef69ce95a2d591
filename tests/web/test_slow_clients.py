"""Clients that take their time: nothing is begun for them, and what they cost is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repl_broker import fanout
from repl_broker.web import door as door_module
from repl_broker.web.head import PublishHead
from repl_broker.web.publisher import Publisher
from repl_broker.web.publishing import Publishing
from repl_broker.web.shell import Answer
from tests.nodes import configured
from tests.web.doors import Served, publish, serving
from tests.web.test_door import App, Client, connect, open_door, until

PUT = b"PUT /v1/topics/a HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
BODY = b'{"retention": {"messages": 7}}'
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = b"00-%b-00f067aa0ba902b7-01" % TRACE_ID.encode()
WITH_BODY = PUT + b"Content-Length: %d\r\n\r\n" % len(BODY)

both_ways = pytest.mark.parametrize("in_place", [True, False], ids=["door", "Quart"])


class Steps(trio.abc.Instrument):
    """How often each kind of task ran."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name.rpartition(".")[2]] += 1


@pytest.fixture
async def steps() -> AsyncIterator[Steps]:
    found = Steps()
    trio.lowlevel.add_instrument(found)
    yield found
    trio.lowlevel.remove_instrument(found)


async def dribble(client: Client, data: bytes) -> None:
    for at in range(len(data)):
        await client.send(data[at : at + 1])
        await wait_all_tasks_blocked()


@both_ways
async def test_the_application_begins_when_a_short_body_is_complete(
    in_place: bool, steps: Steps
) -> None:
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        await client.send(WITH_BODY)
        await wait_all_tasks_blocked()
        steps.of.clear()
        await dribble(client, BODY[:-1])
        assert served.asked == []
        assert steps.of["_serve"] == 0, "a byte that does not complete it wakes nobody"
        await client.send(BODY[-1:])
        assert (await client.receive_answer()).status == 201
        assert served.asked == ["PUT /v1/topics/a"]
        assert (await client.get("/v1/topics/a")).status == 200


async def test_the_body_of_a_publish_wakes_nobody_until_it_is_complete(steps: Steps) -> None:
    async with serving() as served, connect(served.door) as client:
        request = publish(b'"%b"' % (b"x" * 50))
        await client.send(request[:-50])
        await wait_all_tasks_blocked()
        steps.of.clear()
        await dribble(client, request[-50:-1])
        assert steps.of["_serve"] == 0
        await client.send(request[-1:] + publish())  # and what follows is read at once
        assert (await client.receive_answer()).status == 201
        assert (await client.receive_answer()).status == 201
        await dribble(client, publish())
        assert (await client.receive_answer()).status == 201


@both_ways
@pytest.mark.parametrize("sent", [BODY[:-1], b""])
async def test_a_short_body_that_is_late_is_a_408(
    in_place: bool, sent: bytes, autojump_clock: MockClock
) -> None:
    config = configured(limits={"body_timeout_seconds": 3})
    async with serving(in_place=in_place, config=config) as served:
        async with connect(served.door) as client:
            began = trio.current_time()
            await client.send(WITH_BODY + sent)
            answer = await client.receive_answer()
            assert (answer.status, answer.code) == (408, "request_timeout")
            assert answer.headers["connection"] == "close"
            assert trio.current_time() == pytest.approx(began + 3, abs=0.2)
            await client.send(BODY[-1:] + publish())  # is no request any more
            assert await client.receive_end() == b""
        assert served.asked == []
        assert served.door.refusals["request_timeout"] == 1


@both_ways
async def test_a_late_body_is_told_of_with_the_id_of_its_request(
    in_place: bool, autojump_clock: MockClock
) -> None:
    head = WITH_BODY[:-2] + b"Traceparent: " + TRACEPARENT + b"\r\n\r\n"
    limits = {"body_timeout_seconds": 1}
    async with serving(in_place=in_place, **limits) as served, connect(served.door) as client:
        await client.send(head + BODY[:-1])
        answer = await client.receive_answer()
        assert (answer.status, answer.headers["x-request-id"]) == (408, TRACE_ID)


@both_ways
async def test_a_late_body_of_a_head_request_is_told_of_without_content(
    in_place: bool, autojump_clock: MockClock
) -> None:
    limits = {"body_timeout_seconds": 1}
    async with serving(in_place=in_place, **limits) as served, connect(served.door) as client:
        await client.send(WITH_BODY.replace(b"PUT", b"HEAD") + BODY[:-1])
        answer = await client.receive_end()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.find(b"\r\n\r\n") == len(answer) - 4


async def test_a_late_body_of_what_is_no_request_is_not_asked_for(
    autojump_clock: MockClock,
) -> None:
    async with serving(body_timeout_seconds=1) as served, connect(served.door) as client:
        await client.send(WITH_BODY.replace(b"PUT /v1/topics/a", b"PUT") + BODY[:-1])
        assert (await client.receive_answer()).code == "malformed_request"
        assert await client.receive_end() == b""


async def test_a_body_is_kept_once_while_it_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = []

    async def note_kept(
        publishing: Publishing, head: PublishHead, body: bytes, peer: str, asking: str
    ) -> Answer:
        (client,) = served.door._open
        assert isinstance(client, Publisher)
        kept.append((len(body), client._data))
        return await answer(publishing, head, body, peer, asking)

    answer = Publishing.answer
    monkeypatch.setattr(Publishing, "answer", note_kept)
    async with serving() as served, connect(served.door) as client:
        body = b'"%b"' % (b"x" * 200_000)
        await client.send(publish(body) + b"P")
        assert (await client.receive_answer()).status == 201
        assert kept == [(len(body), b"P")]


@both_ways
async def test_a_client_that_leaves_within_a_short_body_leaves_nothing(in_place: bool) -> None:
    async with serving(in_place=in_place) as served:
        async with connect(served.door) as client:
            await client.send(WITH_BODY + BODY[:-1])
            await wait_all_tasks_blocked()
        await until(lambda: served.door.connections == 0)
        assert served.asked == []


@both_ways
async def test_a_stop_waits_for_a_body_that_has_begun(in_place: bool) -> None:
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        await client.send(WITH_BODY + BODY[:-1])
        await wait_all_tasks_blocked()
        served.door.stop(grace_seconds=1)
        await wait_all_tasks_blocked()
        await client.send(BODY[-1:])
        answer = await client.receive_answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")


@pytest.mark.parametrize(
    "head",
    [
        WITH_BODY.replace(b"PUT /v1/topics/a", b"PUT /hello"),
        b"GET /hello HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 50000\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["short", "on demand", "long", "chunked"],
)
async def test_what_is_not_short_is_not_waited_for(
    head: bytes, autojump_clock: MockClock, request: pytest.FixtureRequest
) -> None:
    async with open_door(App(), body_timeout_seconds=1) as door, connect(door) as client:
        await client.send(head)
        answer = await client.receive_answer()
        if answer.status == 100:
            answer = await client.receive_answer()
        is_short = request.node.callspec.id == "short"
        assert answer.status == (408 if is_short else 200)


@pytest.mark.parametrize("head", [b"GARBAGE that is no request", b"PUT /v1/topics/a HTTP/1.1\r\nX"])
async def test_no_kind_of_unfinished_head_reaches_the_application(
    head: bytes, autojump_clock: MockClock
) -> None:
    async with serving(header_timeout_seconds=1) as served, connect(served.door) as client:
        await client.send(head)
        assert (await client.receive_answer()).code == "request_timeout"
        assert await client.receive_end() == b""
        assert served.asked == []


async def some_slow_clients(served: Served, stack: AsyncExitStack, count: int) -> list[Client]:
    clients = []
    for _ in range(count):
        clients.append(await stack.enter_async_context(connect(served.door)))
        await clients[-1].send(b"POST /v1/topics/")
        await wait_all_tasks_blocked()
        await trio.sleep(0.001)
    return clients


async def test_those_that_are_late_are_looked_for_some_times_a_second(
    autojump_clock: MockClock, steps: Steps
) -> None:
    async with serving(header_timeout_seconds=1) as served, AsyncExitStack() as stack:
        clients = await some_slow_clients(served, stack, 60)
        steps.of.clear()
        for client in clients:
            assert (await client.receive_answer()).code == "request_timeout"
        # One look each would be 60; and after so many ends others have a turn.
        assert 0 < steps.of["_watch"] <= 60 / door_module._GIVEN_UP_TOGETHER_MAX + 4


async def test_a_flush_has_as_long_a_turn_as_the_others_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, others = 0.0, [0.01, 0.5, 0.0, 0.0]  # seconds

    async def let_others_run() -> None:
        nonlocal now
        now += others.pop(0)

    monkeypatch.setattr(fanout, "perf_counter", lambda: now)
    monkeypatch.setattr(trio.lowlevel, "checkpoint", let_others_run)
    turns = fanout._Turns()
    turns.begin()
    worked = []
    while others:
        began, left = now, len(others)
        while len(others) == left:  # a tenth of a millisecond at a time
            now += 0.0001
            ended = now
            await turns.give()
        worked.append(ended - began)
    expected = [fanout.TURN_SECONDS, 0.01, fanout.TURN_SECONDS_MAX, fanout.TURN_SECONDS]
    assert worked == pytest.approx(expected, abs=0.0002)
