"""Readers: level, stalled, behind, gone; what reaches each socket, and what it costs."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repl_broker import fanout
from repl_broker.command import CreateTopic, Publish
from repl_broker.config import Config
from repl_broker.fanout import IGNORED_BYTES_MAX, LEVEL, Fanout, FanoutOptions, Reader, Silence
from repl_broker.message import FilterSet, Message, TopicDeleted
from repl_broker.subscription import Subscription
from tests.nodes import (
    ANYONE,
    EPOCH,
    Clock,
    Disk,
    Node,
    configured,
    events,
    read_in_pieces,
    running_node,
)
from tests.test_seats import OneLease

SMALL_TAIL = configured(limits={"tail_bytes": 2000})
SECONDS_MAX = 10_000  # of the mock clock, mostly, which heartbeats move
SMALL_BUFFER = 4608  # the least that the kernel gives to the sender of a pair


def event_id(seq: int) -> str:
    return f"{EPOCH}-{seq}"


def heartbeat(seq: int) -> dict[str, str]:
    data = f'{{"position":"{event_id(seq)}"}}'
    return {"id": event_id(seq), "event": "heartbeat", "data": data}


class Client:
    """The other end of a reader's socket; decodes chunks, as strictly as they come."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.socket.setblocking(False)
        self.events: list[dict[str, str]] = []
        self.chunks: list[bytes] = []
        self.has_ended = False  # by the last chunk
        self.is_closed = False  # by the node
        self.received_bytes = 0
        self._data = b""

    def receive(self, bytes_max: int = 1 << 24) -> list[dict[str, str]]:
        """What has arrived, as events."""
        try:
            while bytes_max > 0 and (data := self.socket.recv(min(bytes_max, 1 << 16))):
                self._data += data
                self.received_bytes += len(data)
                bytes_max -= len(data)
            self.is_closed = self.is_closed or bytes_max > 0
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.is_closed = True
        new = events(list(self._decode()) or [b""])
        self.events += new
        return new

    def _decode(self) -> Sequence[bytes]:
        found = []
        while b"\r\n" in self._data:
            length, rest = self._data.split(b"\r\n", 1)
            size = int(length, 16)
            if len(rest) < size + 2:
                break
            assert not self.has_ended, "nothing follows the last chunk"
            assert rest[size : size + 2] == b"\r\n"
            self.has_ended = size == 0
            self._data = rest[size + 2 :]
            if size:
                found.append(rest[:size])
        self.chunks += found
        return found

    @property
    def messages(self) -> list[object]:
        return [json.loads(e["data"])["data"] for e in self.events if is_message(e)]

    def named(self, name: str) -> list[dict[str, str]]:
        return [e for e in self.events if e.get("event") == name]

    def close(self) -> None:
        self.socket.close()


def is_message(event: dict[str, str]) -> bool:
    return "data" in event and "event" not in event


class Scene:
    """A node, its fan-out, and clients that are closed at the end."""

    def __init__(self, node: Node, fan: Fanout) -> None:
        self.node = node
        self.fan = fan
        self.clients: list[Client] = []

    def join(self, *filters: str, after: str = "latest", buffer: int | None = None) -> Client:
        """A new reader. ``buffer`` is how much the kernel takes for it, about."""
        theirs, ours = socket.socketpair()
        if buffer is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        return self.adopt(theirs, ours, *filters, after=after)

    def adopt(
        self, theirs: socket.socket, ours: socket.socket, *filters: str, after: str = "latest"
    ) -> Client:
        theirs.setblocking(False)
        self.fan.adopt(theirs.detach(), self.node.broker.subscribe(ANYONE, filters, after))
        self.clients.append(Client(ours))
        return self.clients[-1]

    async def publish(self, topic: str, *values: object) -> str:
        """Publish a batch, and wait until what follows from it has happened."""
        body = b"\n".join(json.dumps(value).encode() for value in values)
        last = (await self.node.broker.publish_batch(ANYONE, topic, body)).last_id
        await wait_all_tasks_blocked()
        return last

    async def drain(self, client: Client) -> None:
        """Read until nothing more comes."""
        received = -1
        while received < client.received_bytes:
            received = client.received_bytes
            client.receive()
            await wait_all_tasks_blocked()

    def reader(self, number: int = 0) -> Reader:
        return list(self.fan._all())[number]


@asynccontextmanager
async def scene(
    config: Config | None = None,
    *,
    disk: Disk | None = None,
    clock: Clock | None = None,
    heartbeat_seconds: float = 15,
    dead_reader_seconds: float = 60,
) -> AsyncIterator[Scene]:
    async with running_node(disk, clock, config) as node:
        options = FanoutOptions(heartbeat_seconds, dead_reader_seconds)
        fan = Fanout(node.replica, node.hub, options)
        there = Scene(node, fan)
        async with trio.open_nursery() as nursery:
            await nursery.start(fan.run)
            try:
                with trio.fail_after(SECONDS_MAX):
                    yield there
            finally:
                for client in there.clients:
                    client.close()
                nursery.cancel_scope.cancel()
        assert len(fan) == 0
        assert node.hub.statistics()[:2] == (0, 0)


# --- level ---


async def test_a_stream_begins_with_retry_and_where_it_starts() -> None:
    async with scene() as there:
        await there.publish("chat", 1, 2)
        client = there.join("chat", "a.*")
        assert client.receive() == [
            {
                "retry": "2000",
                "id": event_id(2),
                "event": "subscribed",
                "data": '{"topics":["a.*","chat"],"node":"n1","position":"00c0ffee-2"}',
            },
        ]


async def test_what_is_published_reaches_every_reader_once_in_order() -> None:
    async with scene() as there:
        clients = [there.join("chat") for _ in range(50)]
        clients += [there.join("chat.>", "x") for _ in range(5)] + [there.join("other")]
        await there.publish("chat", 1)
        await there.publish("other", "o")
        await there.publish("chat", 2, 3)
        for client in clients[:50]:
            client.receive()
            assert client.messages == [1, 2, 3]
            assert len(client.chunks) == 4, "a chunk an event, so that it can be cut"
        clients[-1].receive()
        assert clients[-1].messages == ["o"]
        assert there.node.hub.statistics().deliveries == 50 * 3 + 1


async def test_what_comes_before_the_flush_goes_out_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene() as there:
        clients = [there.join("chat") for _ in range(3)]
        written = writes(monkeypatch)
        for number in range(10):
            there.node.hub.publish([Message(number + 1, "chat", 0, b"1")], number + 1)
        await wait_all_tasks_blocked()
        assert len(written) == 3
        assert written[0] is written[1] is written[2], "one object for all"
        for client in clients:
            client.receive()
            assert client.messages == [1] * 10


def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is written from now on, to anybody."""
    written: list[bytes] = []
    write = os.write

    def noted(fd: int, data: bytes) -> int:
        written.append(data)
        return write(fd, data)

    monkeypatch.setattr(os, "write", noted)
    return written


async def test_a_write_is_bounded_but_for_a_single_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene() as there:
        client = there.join("chat", buffer=1 << 20)
        written = writes(monkeypatch)
        await there.publish("chat", *["x" * 30_000] * 5, "y" * 100_000)
        await there.drain(client)
        assert len(client.messages) == 6
        assert [len(data) // 30_000 for data in written] == [2, 2, 1, 3]


async def test_publishing_wakes_nobody_if_no_reader_is_level() -> None:
    async with scene() as there:
        there.join("other")
        await wait_all_tasks_blocked()
        before = there.node.hub._flusher.statistics().tasks_waiting
        there.node.hub.publish([Message(1, "chat", 0, b"1")], 1)
        assert there.node.hub._flusher.statistics().tasks_waiting == before == 1


async def test_readers_that_join_and_leave_while_a_flush_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what is published meanwhile. Every write is a turn of its own here."""
    one_write_a_turn(monkeypatch)
    async with scene() as there:
        early = [there.join("chat") for _ in range(20)]
        late: list[Client] = []
        body = b"\n".join(b"%d" % n for n in range(5))
        await there.node.broker.publish_batch(ANYONE, "chat", body)
        for number in range(30):
            await trio.lowlevel.checkpoint()
            late.append(there.join("chat", after=random.choice(["latest", event_id(2)])))
            if number % 10 == 5:
                early.pop().close()
            if number % 5 == 0:
                await there.node.broker.publish(ANYONE, "chat", b"%d" % (number + 100))
        last = await there.publish("chat", "last")
        for client in early + late:
            client.receive()
            ids = [e["id"] for e in client.events if is_message(e)]
            first = int(client.events[0]["id"][9:])
            assert ids == [event_id(seq) for seq in range(first + 1, int(last[9:]) + 1)]
        assert all(reader.state == LEVEL for reader in there.fan._all())
        places = {id(reader.place) for reader in there.fan._all()}
        assert len(places) == 1, "whoever got the same shares the place"


def one_write_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "TURN_SECONDS", -1)
    monkeypatch.setattr(fanout, "TURN_SECONDS_MAX", -1)
    monkeypatch.setattr(fanout, "TURN_READERS", 1)


async def test_a_flush_to_many_lets_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "TURN_SECONDS", 0)
    monkeypatch.setattr(fanout, "TURN_SECONDS_MAX", 0)
    async with scene() as there:
        clients = [there.join("chat") for _ in range(10 * fanout.TURN_READERS)]
        await there.node.broker.publish(ANYONE, "chat", b"1")
        await trio.lowlevel.checkpoint()
        counts = set()
        for _ in range(20):
            for client in clients:
                client.receive()
            counts.add(sum(client.messages == [1] for client in clients))
            await trio.lowlevel.checkpoint()
        assert len(counts) >= 5, counts
        assert all(client.messages == [1] for client in clients)


async def test_a_flush_of_many_topics_lets_other_tasks_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of them takes a turn's time alone."""
    clock = itertools.count()
    monkeypatch.setattr(fanout, "perf_counter", lambda: next(clock) * fanout.TURN_SECONDS * 0.4)
    async with scene() as there:
        topics = [f"t{number}" for number in range(40)]
        clients = [there.join(topic) for topic in topics]
        lines = "".join(f'{{"topic":"{topic}","data":1}}\n' for topic in topics)
        await there.node.broker.publish_many(ANYONE, lines.encode())
        counts = set()
        for _ in range(20):
            for client in clients:
                client.receive()
            counts.add(sum(client.messages == [1] for client in clients))
            await trio.lowlevel.checkpoint()
        assert len(counts) >= 5, counts
        assert all(client.messages == [1] for client in clients)


# --- stalled ---


async def test_a_stalled_reader_costs_one_event_and_goes_on_where_it_stopped() -> None:
    async with scene() as there:
        slow, quick = there.join("chat", buffer=SMALL_BUFFER), there.join("chat")
        for number in range(300):
            await there.publish("chat", number, *["x" * 50] * 4)
            quick.receive()
        assert there.fan.statistics().lagging == 1
        assert there.fan.statistics().unsent_bytes < 250
        assert len(quick.messages) == 1500
        await there.drain(slow)
        assert slow.messages == quick.messages
        assert there.fan.statistics()[:3] == (2, 0, 0)
        await there.publish("chat", "again")
        slow.receive()
        assert slow.messages[-1] == "again"
        assert there.reader(0).state == LEVEL


async def test_many_stalled_readers_share_what_is_left_of_a_large_message() -> None:
    async with scene() as there:
        for _ in range(20):
            there.join("chat", buffer=SMALL_BUFFER)
        await there.publish("chat", "x" * 500_000)
        rests = {id(reader.rest) for reader in there.fan._all()}
        assert len(rests) == 1
        assert there.fan.statistics().lagging == 20


async def test_a_stalled_reader_that_lost_its_tail_reads_the_log() -> None:
    async with scene(SMALL_TAIL) as there:
        slow = there.join("chat", buffer=SMALL_BUFFER)
        for number in range(2000):
            await there.publish("chat", number)
        assert there.node.hub.statistics().tail_bytes <= 2000
        await there.drain(slow)
        assert slow.messages == list(range(2000))
        await there.publish("chat", "live")
        slow.receive()
        assert slow.messages[-1] == "live"


async def test_loss_while_a_reader_stalled_is_told_before_what_comes_after_it() -> None:
    async with scene(SMALL_TAIL) as there:
        await there.node.replica.propose(CreateTopic("chat", messages=50))
        slow = there.join("chat", buffer=SMALL_BUFFER)
        for number in range(1, 1001):
            await there.publish("chat", number)
        await there.drain(slow)
        (gap,) = slow.named("gap")
        had = slow.messages.index(951)
        assert json.loads(gap["data"]) == {
            "after": event_id(had),
            "first_available": event_id(951),
            "reason": "retention",
        }
        assert slow.messages == [*range(1, had + 1), *range(951, 1001)]
        assert slow.events.index(gap) == had + 1


async def test_a_reader_that_stalls_in_the_log_holds_no_page() -> None:
    """A cursor that was sent further than the socket takes goes back."""
    async with scene(SMALL_TAIL) as there:
        for number in range(500):
            await there.publish("chat", number)
        slow = there.join("chat", after="earliest", buffer=SMALL_BUFFER)
        await wait_all_tasks_blocked()
        assert there.fan.statistics().unsent_bytes < 250
        for _ in range(60):
            slow.receive(700)
            await wait_all_tasks_blocked()
        await there.drain(slow)
        assert slow.messages == list(range(500))
        assert not slow.named("gap")


async def test_the_beginning_may_be_more_than_the_socket_takes() -> None:
    async with scene() as there:
        theirs, ours = socket.socketpair()
        filled = fill(theirs)
        client = there.adopt(theirs, ours, "chat")
        await there.publish("chat", 1)
        while filled:
            filled -= len(ours.recv(filled))
        await wait_all_tasks_blocked()
        await there.publish("chat", 2)
        client.receive()
        assert client.events[0]["event"] == "subscribed"
        assert client.messages == [1, 2]


def fill(ours: socket.socket) -> int:
    """Send until it would block. Returns how many bytes."""
    ours.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += ours.send(b"x" * 65536)
    return sent


async def test_a_large_entry_is_read_from_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl_broker.hub.APPENDS_MAX", 100)
    async with scene() as there:
        clients = [there.join("chat"), there.join("chat"), there.join("chat", "x")]
        await there.publish("chat", *range(300))
        await there.publish("chat", 300)
        for client in clients:
            await there.drain(client)
            assert client.messages == list(range(301))


async def test_a_jump_of_the_log_is_read_by_every_reader() -> None:
    async with scene() as there:
        clients = [there.join("chat") for _ in range(3)]
        applied = there.node.replica.state
        await there.publish("elsewhere", 1)
        there.node.hub.jump(applied.seq)
        await wait_all_tasks_blocked()
        await there.publish("chat", "after")
        for client in clients:
            client.receive()
            assert client.messages == ["after"]


# --- removals ---


@pytest.mark.parametrize("tail_bytes", [1, 250, 1_000_000])
async def test_a_removal_is_told_once_whether_from_the_tail_or_the_log(tail_bytes: int) -> None:
    """It has the position of the message before it, which is no cursor to tell them apart."""
    async with scene(configured(limits={"tail_bytes": tail_bytes})) as there:
        slow, quick = there.join("*", buffer=SMALL_BUFFER), there.join("*")
        for number in range(150):
            await there.publish(f"t{number}", number)
            await there.publish(f"u{number}", number)
            await there.node.broker.delete_topic(ANYONE, f"t{number}")
            await there.node.broker.delete_topic(ANYONE, f"u{number}")
            await wait_all_tasks_blocked()
            quick.receive()
        await there.publish("a", "end")
        await there.drain(slow)
        await there.drain(quick)
        wanted = [f"{kind}{number}" for number in range(150) for kind in "tu"]
        for client in (slow, quick):
            told = [json.loads(e["data"])["topic"] for e in client.named("topic-deleted")]
            assert sorted(told) == sorted(wanted)
            assert client.messages[-1] == "end"


async def test_a_removal_that_a_resumed_reader_was_told_does_not_come_again_from_the_tail() -> None:
    async with scene() as there:
        there.join("a", "b")
        await there.publish("a", 1)
        await there.publish("b", 2)
        await there.node.broker.delete_topic(ANYONE, "a")
        await there.node.broker.delete_topic(ANYONE, "b")
        resumed = there.join("a", "b", after=event_id(2))
        await wait_all_tasks_blocked()
        resumed.receive()
        told = [json.loads(e["data"])["topic"] for e in resumed.named("topic-deleted")]
        assert sorted(told) == ["a", "b"]


# --- resuming ---


async def test_a_cursor_resumes_after_its_message_and_goes_live() -> None:
    async with scene() as there:
        await there.publish("chat", *range(1, 1001))
        clients = [there.join("chat", after=event_id(4 * n)) for n in range(40)]
        await wait_all_tasks_blocked()
        await there.publish("chat", 1001)
        for number, client in enumerate(clients):
            await there.drain(client)
            assert client.messages == list(range(4 * number + 1, 1002))
            assert not client.named("gap")


async def test_a_cursor_from_the_future_waits_for_the_node_and_is_told(
    autojump_clock: MockClock,
) -> None:
    async with scene() as there:
        await there.publish("chat", 1)
        clients = [there.join("chat", after=event_id(99)) for _ in range(3)]
        await wait_all_tasks_blocked()
        await there.publish("chat", 2)
        for client in clients:
            client.receive()
            (gap,) = client.named("gap")
            assert json.loads(gap["data"])["reason"] == "ahead"
            assert client.messages == [2]


async def test_cursors_that_no_leader_vouches_for_are_given_up_on_in_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene() as there:
        monkeypatch.setattr(there.node.replica, "read_barrier", trio.sleep_forever)
        first = there.join("chat", after=event_id(99))
        await trio.sleep(10)
        second = there.join("chat", after=event_id(99))
        await trio.sleep(6)
        first.receive()
        second.receive()
        assert (len(first.named("gap")), len(second.named("gap"))) == (1, 0)
        await trio.sleep(10)
        second.receive()
        assert len(second.named("gap")) == 1


async def test_the_log_is_read_by_few_at_a_time_and_in_turn() -> None:
    disk = Disk()
    async with scene(disk=disk) as there:
        await there.publish("chat", *["x" * 10_000] * 30)
    async with scene(disk=disk) as there:
        there.node.replica._history._cache.clear()
        there.node.gate.shut()
        clients = [there.join("chat", after="earliest") for _ in range(50)]
        await wait_all_tasks_blocked()
        assert there.node.replica.log_readers.borrowed_tokens <= fanout.LOG_WORKERS
        clients[0].close()
        clients[49].close()
        await wait_all_tasks_blocked()
        assert len(there.fan) == 48
        there.node.gate.open()
        for client in clients[1:49]:
            await wait_all_tasks_blocked()
            await there.drain(client)
            assert len(client.messages) == 30


# --- silence ---


async def test_silence_is_broken_by_a_heartbeat_that_moves_the_cursor(
    autojump_clock: MockClock,
) -> None:
    async with scene() as there:
        quiet, busy = there.join("chat"), there.join("busy")
        quiet.receive()
        busy.receive()
        for _ in range(10):
            await trio.sleep(2)
            await there.publish("busy", 1)
        (beat,) = quiet.receive()
        assert beat == heartbeat(7), "what was published until then"
        assert all(is_message(e) for e in busy.receive())
        await trio.sleep(14.5)
        assert busy.receive() == []
        await trio.sleep(1)
        assert busy.receive() == [heartbeat(10)]
        await trio.sleep(150)
        assert 9 <= len(quiet.receive()) <= 11
        assert 9 <= len(busy.receive()) <= 11


async def test_another_interval_holds_for_streams_that_are_open(autojump_clock: MockClock) -> None:
    async with scene() as there:
        quiet = there.join("chat")
        quiet.receive()
        there.fan.take_options(FanoutOptions(heartbeat_seconds=1, dead_reader_seconds=60))
        await trio.sleep(16)  # when it is looked at next, by what held before
        quiet.receive()
        await trio.sleep(10)
        assert 9 <= len(quiet.receive()) <= 11


async def test_the_id_of_a_heartbeat_does_not_overtake_a_message(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that is about to be sent, nor one that the reader has not taken."""
    one_write_a_turn(monkeypatch)
    async with scene() as there:
        clients = [there.join("chat") for _ in range(5)]
        clients.append(there.join("chat", buffer=SMALL_BUFFER))
        for number in range(1, 200):
            await trio.sleep(15 if number % 10 == 0 else 0.01)
            state = there.node.replica.state
            command = Publish("chat", (b'"%s"' % (b"x" * 100),))
            applied = state.apply(state.applied_index + 1, 0, [command])
            there.node.hub.publish(applied.events, state.seq)
        await trio.sleep(20)
        for client in clients:
            await there.drain(client)
            position = 0
            for event in client.events[1:]:
                seq = int(event["id"][9:])
                assert seq == (position + 1 if is_message(event) else position)
                position = seq
            assert position == 199


async def test_a_stalled_reader_gets_no_heartbeats_on_top(autojump_clock: MockClock) -> None:
    async with scene() as there:
        slow = there.join("chat", buffer=SMALL_BUFFER)
        await there.publish("chat", *["x" * 50] * 200)
        await trio.sleep(300)
        await there.drain(slow)
        assert len(slow.messages) == 200
        assert slow.named("heartbeat") == []
        await trio.sleep(16)
        assert slow.receive() == [heartbeat(200)]


# --- leaving ---


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return theirs, ours


async def until_empty(fan: Fanout) -> None:
    with trio.fail_after(5):
        await fan.wait_empty()


@pytest.mark.parametrize("how", ["fin", "half", "rst"])
@pytest.mark.parametrize("stalled", [False, True])
async def test_a_client_that_leaves_is_noticed_and_everything_freed(
    how: str, stalled: bool
) -> None:
    async with scene() as there:
        theirs, ours = tcp_pair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        fd = theirs.fileno()
        client = there.adopt(theirs, ours, "chat")
        while stalled and there.fan.statistics().lagging == 0:
            await there.publish("chat", "x" * 100_000)
        if how == "rst":
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half":
            ours.shutdown(socket.SHUT_WR)
        else:
            client.close()
        await until_empty(there.fan)
        assert there.node.hub.statistics().subscribers == 0
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        there.join("chat")  # may get the same descriptor
        await there.publish("chat", 1)
        there.clients[-1].receive()
        assert there.clients[-1].messages == [1]


async def test_a_socket_that_cannot_be_watched_ends_its_lease_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene() as there:
        lease, (ours, theirs) = OneLease(), socket.socketpair()
        node, filters = there.node, FilterSet(["chat"])
        stream = Subscription(node.replica, node.hub, filters, "latest", 15, lease)
        monkeypatch.setattr(
            there.fan, "_epoll", Mock(wraps=there.fan._epoll, register=Mock(side_effect=OSError))
        )
        with pytest.raises(OSError), theirs:
            there.fan.adopt(ours.detach(), stream)
        assert lease.seen == ["end"]
        assert (len(there.fan), node.hub.statistics().subscribers) == (0, 0)


async def test_a_reader_whose_socket_fails_does_not_disturb_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scene() as there:
        clients = [there.join("chat") for _ in range(5)]
        broken = there.reader(2).fd
        write = os.write

        def failing(fd: int, data: bytes) -> int:
            if fd == broken:
                raise OSError(5, "Input/output error")
            return write(fd, data)

        monkeypatch.setattr(os, "write", failing)
        await there.publish("chat", 1)
        await there.publish("chat", 2)
        assert len(there.fan) == 4
        for client in clients[:2] + clients[3:]:
            client.receive()
            assert client.messages == [1, 2]


async def test_an_error_of_ours_ends_one_stream_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene() as there:
        await there.publish("chat", 1)
        good = there.join("chat")
        read_log = Subscription.read_log

        async def failing(self: Subscription) -> Any:
            if self._seq == 0:
                raise ValueError("broken")
            return await read_log(self)

        monkeypatch.setattr(Subscription, "read_log", failing)
        bad = there.join("chat", after="earliest")
        also_good = there.join("chat", after=event_id(1))
        await there.publish("chat", 2)
        for client in (bad, good, also_good):
            client.receive()
        assert (bad.is_closed, good.messages, also_good.messages) == (True, [2], [2])
        assert there.fan.statistics().failed == 1
        assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
            "event stream failed error=ValueError('broken')"
        ]


async def test_what_a_client_sends_is_ignored_and_after_a_while_not_even_read() -> None:
    async with scene() as there:
        theirs, ours = tcp_pair()
        client = there.adopt(theirs, ours, "chat")
        sent = 0
        for _ in range(1000):
            try:
                sent += ours.send(b"GET / HTTP/1.1\r\n" * 4096)
            except BlockingIOError:
                await wait_all_tasks_blocked()
                if there.reader().ignored_bytes >= IGNORED_BYTES_MAX:
                    break
        assert sent > IGNORED_BYTES_MAX
        ignored = there.reader().ignored_bytes
        assert IGNORED_BYTES_MAX <= ignored < IGNORED_BYTES_MAX + fanout.READ_BYTES
        await there.publish("chat", 1)
        client.receive()
        assert client.messages == [1], "it is served all the same"
        client.close()  # its end is behind what is not read
        await there.publish("chat", 2)
        await until_empty(there.fan)


async def test_a_reader_that_acknowledges_nothing_is_dropped_in_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's numbers are made up here; tests/process has a network that goes dark."""
    last_ack = {}

    def silence(fd: int) -> Silence | None:
        return Silence(trio.current_time() - last_ack[fd], 5) if fd in last_ack else None

    monkeypatch.setattr(fanout, "find_silence", silence)
    async with scene() as there:
        gone, stays = there.join("chat"), there.join("chat")
        fd = there.reader(0).fd
        began = last_ack[fd] = trio.current_time()
        await trio.sleep(59)
        assert len(there.fan) == 2
        await until_gone(there, began + 61)
        gone.receive()
        stays.receive()
        assert gone.is_closed
        assert not stays.is_closed
        assert there.fan.statistics().dead == 1


async def until_gone(there: Scene, due: float) -> None:
    while len(there.fan) > 1:
        assert trio.current_time() <= due
        await trio.sleep(0.25)


@pytest.mark.parametrize("lost", [False, True])
async def test_a_reader_that_is_asked_every_two_minutes_and_answers_is_kept(
    lost: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its window is closed. The last answer is old when the next is due, and one may be lost."""
    looks = 0

    def silence(fd: int) -> Silence | None:
        nonlocal looks
        looks += 1
        number, asked_seconds = divmod(trio.current_time(), 120)
        if lost and number % 2:
            return Silence(120 + asked_seconds, asked_seconds)
        earlier = 240 if lost else 120
        return Silence(earlier + asked_seconds, asked_seconds) if asked_seconds < 1 else None

    monkeypatch.setattr(fanout, "find_silence", silence)
    async with scene() as there:
        there.join("chat")
        await trio.sleep(900)
        assert looks > 50
        assert len(there.fan) == 1


async def test_the_kernel_tells_whether_a_peer_owes_an_answer() -> None:
    theirs, ours = tcp_pair()
    with theirs, ours:
        assert fanout.find_silence(theirs.fileno()) is None
        fill(theirs)
        # Its program does not read; its kernel answers, be it a delayed acknowledgement later.
        with trio.fail_after(5):
            while fanout.find_silence(theirs.fileno()) is not None:
                await trio.lowlevel.checkpoint()
        left, right = socket.socketpair()
        with left, right:
            left.send(b"x")
            assert fanout.find_silence(left.fileno()) is None, "no TCP, no answer owed"


# --- the end ---


async def test_drain_ends_every_stream_with_a_retry_of_its_own() -> None:
    async with scene() as there:
        clients = [there.join("chat") for _ in range(20)]
        clients += [there.join("chat", after=event_id(99)) for _ in range(2)]
        there.node.hub.publish([Message(1, "chat", 0, b"1")], 1)
        there.node.hub.close()
        await until_empty(there.fan)
        waits = set()
        for client in clients:
            client.receive()
            assert client.has_ended
            assert client.is_closed
            (goodbye,) = client.named("goodbye")
            assert goodbye is client.events[-1]
            waits.add(int(goodbye["retry"]))
        assert all(client.messages == [1] for client in clients[:20])
        assert min(waits) >= 2000
        assert max(waits) < 7000
        assert len(waits) > 10


async def test_drain_waits_for_a_stalled_reader_which_is_reset_when_it_is_over() -> None:
    async with scene() as there:
        resumes, stays = (there.join("chat", buffer=SMALL_BUFFER) for _ in range(2))
        await there.publish("chat", *["x" * 50] * 300)
        there.node.hub.close()
        await wait_all_tasks_blocked()
        assert len(there.fan) == 2
        await there.drain(resumes)
        assert resumes.has_ended
        assert resumes.is_closed
        assert 0 < len(resumes.messages) < 300, "the rest is for its next connection"
        (goodbye,) = resumes.named("goodbye")
        assert "id" not in goodbye, "its cursor stays at the last message that it had"
        assert len(there.fan) == 1
        there.fan.cut()
        while not stays.is_closed:
            stays.receive()
        assert not stays.has_ended


async def test_a_stream_that_opens_while_the_node_drains_is_told_to_go() -> None:
    async with scene() as there:
        there.node.hub.close()
        client = there.join("chat")
        client.receive()
        assert [e["event"] for e in client.events] == ["subscribed", "goodbye"]
        assert client.has_ended
        assert len(there.fan) == 0


# --- cost ---


async def test_a_reader_costs_less_than_a_kilobyte_and_leaves_nothing() -> None:
    count = 1000
    async with scene() as there:
        there.join("chat")
        pairs = [socket.socketpair() for _ in range(count)]
        clients = [Client(ours) for _, ours in pairs]
        descriptors = [theirs.detach() for theirs, _ in pairs]
        for fd in descriptors:
            os.set_blocking(fd, False)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for fd in descriptors:
            there.fan.adopt(fd, there.node.broker.subscribe(ANYONE, ["chat"]))
        await there.publish("chat", 1)
        gc.collect()
        cost = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        assert cost < 600, cost
        for client in clients:
            client.close()
        await wait_all_tasks_blocked()
        while len(there.fan) > 1:
            await wait_all_tasks_blocked()
        assert len(there.node.hub._channels) == 1
        assert len(there.fan._queue) == len(there.fan._ahead) == 0


# --- all at once ---


@given(seed=st.integers(0, 2**32))
def test_every_reader_gets_every_message_once_in_order_or_is_told_of_the_loss(seed: int) -> None:
    """Promises 1, 3, 4 and 6 together, with readers that stall, vanish and come back, tails of a
    few events, retention that overtakes, removals, and flushes that are interrupted anywhere."""
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repl_broker.subscription.PAGE_MESSAGES_MAX", chance.choice([2, 5, 256]))
        read_in_pieces(patch, chance)
        patch.setattr(fanout, "CHUNK_BYTES_MAX", chance.choice([1, 400, 64 << 10]))
        patch.setattr(fanout, "ADVANCE_BATCHES_MAX", chance.choice([1, 4]))
        if chance.random() < 0.7:
            one_write_a_turn(patch)
        if chance.random() < 0.7:
            write_in_pieces(patch, chance)
        trio.run(_anything_goes, chance, clock=MockClock(autojump_threshold=0))


def write_in_pieces(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """Sockets that take a part of what is written, or nothing for now."""
    write = os.write

    def in_pieces(fd: int, data: bytes) -> int:
        if chance.random() < 0.1:
            raise BlockingIOError
        upto = len(data) if chance.random() < 0.5 else chance.randrange(1, len(data) + 1)
        return write(fd, data[:upto])

    monkeypatch.setattr(os, "write", in_pieces)


async def _anything_goes(chance: random.Random) -> None:
    disk, clock = Disk(), Clock()
    config = configured(
        limits={"tail_bytes": chance.choice([300, 2000, 1_000_000])}, raft={"snapshot_entries": 100}
    )
    published: dict[int, str] = {}  # seq → topic
    deleted: list[tuple[int, str]] = []  # position, topic
    followers = [_Follower(chance) for _ in range(6)]
    for _ in range(chance.randrange(1, 4)):
        async with scene(config, disk=disk, clock=clock) as there:
            for _ in range(chance.randrange(80)):
                node = there.node
                topic = chance.choice(TOPICS)
                match chance.randrange(12):
                    case 0:
                        keep = chance.choice([1, 5, 1000])
                        await node.replica.propose(CreateTopic(topic, messages=keep, replace=True))
                    case 1 | 2 if topic in node.replica.state.topics:
                        await node.broker.delete_topic(ANYONE, topic)
                        deleted.append((node.replica.state.seq, topic))
                    case 3 | 4 | 5 | 6:
                        first = node.replica.state.seq + 1
                        pad = "x" * chance.choice([1, 1, 900])
                        body = b"\n".join([json.dumps(pad).encode()] * chance.choice([1, 1, 2, 40]))
                        await node.broker.publish_batch(ANYONE, topic, body)
                        published |= dict.fromkeys(range(first, node.replica.state.seq + 1), topic)
                    case 7:
                        await wait_all_tasks_blocked()
                    case _:
                        await chance.choice(followers).step(there)
            for follower in followers:
                await follower.finish(there, published)
                follower.check_removals(there, deleted)


TOPICS = ["a", "b", "c.d"]


class _Follower:
    """A client: it has a cursor, and checks what it is given against it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.filters = chance.choice([["a"], ["a", "b"], [">"], ["*"], ["c.>", "b"]])
        self.cursor = event_id(0)
        self.seen: list[int] = []
        self.lost: list[tuple[str, range]] = []  # by topic: what may be missing, as was told
        self.removals: set[str] = set()  # told on any connection
        self.told: list[tuple[str, str]] = []  # on this connection
        self.client: Client | None = None

    async def step(self, there: Scene) -> None:
        if self.client is None:
            buffer = self.chance.choice([None, None, SMALL_BUFFER])
            self.client = there.join(*self.filters, after=self.cursor, buffer=buffer)
            self.told = []
        elif self.chance.random() < 0.2:
            self.leave()
        else:
            for _ in range(self.chance.randrange(3)):
                await trio.lowlevel.checkpoint()
                self.take(there, self.client.receive(self.chance.choice([100, 1000, 1 << 20])))

    def take(self, there: Scene, new: list[dict[str, str]]) -> None:
        for event in new:
            name = event.get("event")
            if name == "gap":
                after = int(json.loads(event["data"])["after"][9:])
                losses = there.node.replica.state.losses(FilterSet(self.filters), after)
                self.lost += [(name, range(after + 1, upto + 1)) for name, upto in losses.items()]
            elif name == "topic-deleted":
                topic = json.loads(event["data"])["topic"]
                self.told.append((topic, event["id"]))
                self.removals.add(topic)
            elif is_message(event):
                self.seen.append(int(event["id"][9:]))
            self.cursor = event.get("id", self.cursor)

    def leave(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    async def finish(self, there: Scene, published: dict[int, str]) -> None:
        """Read out; then every message of the filters was seen once, or lies in a gap."""
        if self.client is None or self.chance.random() < 0.3:
            self.leave()
            self.client = there.join(*self.filters, after=self.cursor)
            self.told = []
        received = -1
        while received < self.client.received_bytes:
            received = self.client.received_bytes
            await wait_all_tasks_blocked()
            self.take(there, self.client.receive())
        assert not self.client.is_closed
        self.leave()
        assert self.seen == sorted(set(self.seen)), "in order, none twice"
        matches = FilterSet(self.filters).matches
        for seq, topic in published.items():
            if matches(topic) and seq not in self.seen:
                told = any(seq in lost for name, lost in self.lost if name in (topic, ""))
                assert told, f"{seq} of {topic} is missing and nothing was said"
        assert all(matches(published[seq]) for seq in self.seen)

    def check_removals(self, there: Scene, deleted: Sequence[tuple[int, str]]) -> None:
        """Every topic that is gone was told of; none twice for one removal on one connection."""
        matches, exist = FilterSet(self.filters).matches, there.node.replica.state.topics
        gone = {topic for _, topic in deleted if matches(topic) and topic not in exist}
        assert gone <= self.removals
        for topic, position in set(self.told):
            # One that comes with a gap has the gap's position, not its own.
            removals = [at for at, name in deleted if name == topic and at <= int(position[9:])]
            assert self.told.count((topic, position)) <= len(removals)


def test_a_removal_has_its_place_behind_the_message_at_its_position() -> None:
    first, second = TopicDeleted("a", 5), TopicDeleted("b", 5)
    batch = fanout.Batch([b"5", b"-a", b"-b"], [10, 11, 11], [(1, first), (2, second)])
    start = fanout.Place(7, 4)
    assert batch.place(start, 0) is start
    assert batch.place(start, 1) == (8, 5, ())
    assert batch.place(start, 2) == (9, 5, (first,))
    assert batch.place(start) == (10, 5, (first, second))
    later = fanout.Batch([b"-b"], [11], [(0, second)])
    assert later.place(batch.place(start, 2)) == (10, 5, (first, second))


# --- tokens that end ---


LAST_WORDS = b'event: token-expired\ndata: {"reason":"revoked"}\n\n'


async def test_a_reader_is_dismissed_in_whatever_state_it_is() -> None:
    async with scene() as there:
        await there.publish("chat", *range(3))
        level = there.join("chat")
        queued = there.join("chat", after="earliest")
        ahead = there.join("chat", after=event_id(9))
        kept = there.join("chat")
        for number in range(3):
            there.fan.dismiss(there.reader(0), "revoked")
            assert len(there.fan) == 3 - number
        await wait_all_tasks_blocked()
        for client in (level, queued, ahead):
            client.receive()
            assert client.events[-1] == {"event": "token-expired", "data": '{"reason":"revoked"}'}
            assert client.messages == []
        await there.publish("chat", "on")
        kept.receive()
        assert kept.messages == ["on"]


async def test_how_far_streams_are_behind_is_told_along_the_tail_and_in_the_log() -> None:
    async with scene() as there:  # whose tail is short
        level = there.join("chat")
        stalled = there.join("chat", buffer=4096)
        other = there.join("calm")
        assert there.fan.statistics()[-2:] == (0, (0, 0, 0))
        await there.publish("chat", *range(5))
        assert there.fan.statistics()[-2:] == (0, (0, 0, 0))
        await there.publish("chat", "x" * 500_000, *range(300))
        level.receive()
        await wait_all_tasks_blocked()
        level.receive()
        statistics = there.fan.statistics()
        assert 200 < statistics.behind_max <= 301
        assert statistics.behind[0] >= 1
        assert statistics.behind[1:] == (statistics.behind[1], 0)
        with trio.fail_after(SECONDS_MAX):
            while there.fan.statistics().behind_max:
                for client in (level, stalled, other):
                    client.receive()
                await wait_all_tasks_blocked()
        assert there.fan.statistics().behind == (0, 0, 0)


async def test_readers_are_told_to_go_one_after_the_other_over_the_time(
    autojump_clock: MockClock,
) -> None:
    async with scene() as there:
        clients = [there.join("chat") for _ in range(4)]
        stalled = there.join("large", buffer=4096)
        await there.publish("large", "x" * 500_000)
        for client in clients:
            client.receive()
        told = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.fan.dismiss_in_turn, 10)
            await trio.sleep(0.5)
            for _ in range(5):
                told.append(5 - len(there.fan))
                await trio.sleep(2)
        assert told == [1, 2, 3, 4, 4]  # the fifth does not read, and is left to the end
        for client in clients:
            *_, last = client.receive()  # behind a heartbeat, perhaps
            assert (last["event"], last["data"]) == ("goodbye", '{"reason":"shutting_down"}')
            assert 500 <= int(last["retry"]) < 1000, "they do not come together"
            assert client.has_ended
            assert "id" not in last
        with trio.fail_after(SECONDS_MAX):
            while not stalled.messages:
                stalled.receive()
                await wait_all_tasks_blocked()
        assert stalled.messages == ["x" * 500_000]


async def test_who_comes_while_the_others_are_told_to_go_is_let_in_and_left(
    autojump_clock: MockClock,
) -> None:
    async with scene() as there:
        there.join("chat")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.fan.dismiss_in_turn, 10)
            await trio.sleep(5)
            late = there.join("chat")
        assert len(there.fan) == 1
        await there.publish("chat", "on")
        late.receive()
        assert late.messages == ["on"]


async def test_one_that_stalls_is_cut_off_when_its_token_ends() -> None:
    async with scene() as there:
        there.join("chat", buffer=4096)
        await there.publish("chat", "x" * 500_000)
        reader = there.reader()
        assert reader.state == fanout.STALLED
        there.fan.dismiss(reader, "revoked")
        there.fan.dismiss(reader, "revoked")  # which it is already
        assert len(there.fan) == 0


async def test_a_flush_that_has_paused_writes_nothing_behind_the_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_write_a_turn(monkeypatch)
    async with scene() as there:
        clients = [there.join("chat") for _ in range(10)]
        await wait_all_tasks_blocked()
        last = there.reader(-1)
        await there.node.broker.publish(ANYONE, "chat", b"1")
        while not clients[0].messages:
            await trio.lowlevel.checkpoint()
            clients[0].receive()
        assert last.state == LEVEL  # its turn has not come
        with suppress(BlockingIOError):
            while True:
                os.write(last.fd, b"x" * 65536)
        there.fan.dismiss(last, "revoked")
        await wait_all_tasks_blocked()
        assert clients[-2].receive()
        assert clients[-2].messages == [1]
        assert (last.state, last.rest) == (
            fanout.PARTING,
            fanout.sse.chunk(LAST_WORDS) + fanout.sse.LAST_CHUNK,
        )


async def test_one_that_does_not_take_the_last_words_is_reset_soon(
    autojump_clock: MockClock,
) -> None:
    async with scene() as there:
        there.join("chat")
        await wait_all_tasks_blocked()
        reader = there.reader()
        with suppress(BlockingIOError):
            while True:
                os.write(reader.fd, b"x" * 65536)
        began = trio.current_time()
        there.fan.dismiss(reader, "expired")
        assert reader.state == fanout.PARTING
        await there.fan.wait_empty()
        assert trio.current_time() - began < 16  # when it is looked after next
