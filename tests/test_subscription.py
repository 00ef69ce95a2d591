"""Streams: level, behind, resumed, lost; what every reader gets, and is told."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repl_broker.command import CreateTopic, Publish
from repl_broker.errors import RequestError
from repl_broker.message import FilterSet
from repl_broker.state import BrokerState
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


def event_id(seq: int) -> str:
    return f"{EPOCH}-{seq}"


def beat(seq: int) -> dict[str, str]:
    """A heartbeat."""
    data = f'{{"position":"{event_id(seq)}"}}'
    return {"id": event_id(seq), "event": "heartbeat", "data": data}


class Reader:
    """Reads one stream's chunks; keeps its cursor as a browser does."""

    def __init__(self, stream: Subscription) -> None:
        self.stream = stream
        self.events: list[dict[str, str]] = []
        self.cursor = ""

    async def read(self) -> list[dict[str, str]]:
        """The next chunk's events."""
        with trio.fail_after(1000):
            new = events([await anext(self.stream)])
        self.events += new
        self.cursor = next((e["id"] for e in reversed(new) if "id" in e), self.cursor)
        return new

    async def read_until(self, last: str) -> None:
        while self.cursor != last:
            await self.read()

    @property
    def messages(self) -> list[object]:
        return [json.loads(e["data"])["data"] for e in self.events if is_message(e)]

    def named(self, name: str) -> list[dict[str, str]]:
        return [e for e in self.events if e.get("event") == name]


def is_message(event: dict[str, str]) -> bool:
    return "data" in event and "event" not in event


@asynccontextmanager
async def reading(node: Node, *filters: str, after: str = "latest") -> AsyncIterator[Reader]:
    async with node.broker.subscribe(ANYONE, filters, after) as stream:
        yield Reader(stream)


async def publish(node: Node, topic: str, *values: object) -> str:
    body = b"\n".join(json.dumps(value).encode() for value in values)
    return (await node.broker.publish_batch(ANYONE, topic, body)).last_id


# --- the beginning ---


async def test_a_stream_opens_with_retry_and_where_it_starts() -> None:
    async with running_node() as node:
        await publish(node, "chat", 1, 2)
        async with reading(node, "chat", "a.*") as reader:
            assert await reader.read() == [
                {
                    "retry": "2000",
                    "id": event_id(2),
                    "event": "subscribed",
                    "data": '{"topics":["a.*","chat"],"node":"n1","position":"00c0ffee-2"}',
                },
            ]


async def test_latest_gives_only_what_comes() -> None:
    async with running_node() as node:
        await publish(node, "chat", "old")
        async with reading(node, "chat") as reader:
            await reader.read()
            await reader.read_until(await publish(node, "chat", "new"))
            assert reader.messages == ["new"]


async def test_a_message_is_published_between_subscribing_and_reading() -> None:
    async with running_node() as node, reading(node, "chat") as reader:
        last = await publish(node, "chat", 1)
        await reader.read_until(last)
        assert reader.messages == [1]


async def test_earliest_gives_everything_that_is_retained_and_no_gap() -> None:
    async with running_node() as node:
        await node.replica.propose(CreateTopic("chat", messages=3))
        await publish(node, "chat", *range(10))
        async with reading(node, "chat", after="earliest") as reader:
            assert (await reader.read())[0]["id"] == event_id(7)
            await reader.read_until(event_id(10))
            assert reader.messages == [7, 8, 9]
            assert not reader.named("gap")


LONG = [f"{letter * 200}.*" for letter in "uvw"]


@pytest.mark.parametrize("filters", [["m.*"], ["m.*", *LONG], ["m.a"], ["z.*"], ["z.>", *LONG]])
@pytest.mark.parametrize("seed", range(5))
async def test_a_stream_from_the_earliest_begins_behind_all_that_its_filters_lost(
    filters: list[str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long they are, and however much of others' comes first."""
    read_in_pieces(monkeypatch, random.Random(seed))
    async with running_node() as node:
        await publish(node, "others", *range(20))
        await node.replica.propose(CreateTopic("m.a", 1))
        await publish(node, "m.a", *range(30))
        await publish(node, "others", *range(20))
        async with reading(node, *filters, after="earliest") as reader:
            begins = 49 if FilterSet(filters).matches("m.a") else 70
            (subscribed,) = await reader.read()
            assert subscribed["event"] == "subscribed"
            assert json.loads(subscribed["data"])["position"] == subscribed["id"]
            if reader.cursor != event_id(begins):  # it is told at once, and this when it is found
                assert subscribed["id"] == event_id(0)
                (found,) = await reader.read()
                assert found["event"] == "heartbeat"
        assert reader.cursor == event_id(begins)
        await node.broker.delete_topic(ANYONE, "others")
        last = await publish(node, "z.z" if begins == 70 else "m.b", "new")
        async with reading(node, *filters, "m.b", after=reader.cursor) as reader:
            await reader.read_until(last)
        assert not reader.named("gap")
        assert reader.messages == ([29, "new"] if begins == 49 else ["new"])


async def test_a_stream_is_told_at_once_that_it_is_open_whatever_its_filters() -> None:
    """Before the log is looked at: that takes turns, and these may be long."""
    async with running_node() as node:
        await publish(node, "m.a", 1)
        for filters in (["m.a"], ["m.*"], ["m.*", *LONG]):
            for after in ("earliest", "latest", event_id(1)):
                stream = node.broker.subscribe(ANYONE, filters, after)
                _, beginning = stream.open()
                stream.leave()
                assert beginning[0].startswith(b"retry: "), (filters, after)
                assert b"\nevent: subscribed\n" in beginning[0], (filters, after)


async def test_what_is_lost_while_the_first_message_is_sought_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("repl_broker.subscription.LOOKS_AT_ONCE", 0)
    monkeypatch.setattr("repl_broker.turnstile.PIECE_SECONDS", -1)
    monkeypatch.setattr("repl_broker.order.BLOCK_NUMBERS", 3)
    monkeypatch.setattr("repl_broker.scan.NEAR_MESSAGES", 1000)
    async with running_node() as node:
        await publish(node, "others", *range(20))
        await publish(node, "m.a", *range(10))
        subscription = node.broker.subscribe(ANYONE, ["m.*", *LONG], "earliest")
        async with subscription as stream:
            assert await stream.read_log() is None, "it is not found yet"
            assert stream.place is None
            await node.replica.propose(CreateTopic("m.a", 2, replace=True))
            reader = Reader(stream)
            assert [block["event"] for block in await reader.read()] == ["subscribed"]
            assert reader.cursor == event_id(0)
            assert [block["event"] for block in await reader.read()] == ["heartbeat"]
            assert reader.cursor == event_id(28)
            await reader.read_until(event_id(30))
            await reader.read_until(await publish(node, "m.a", "new"))
    assert not reader.named("gap")
    assert reader.messages == [8, 9, "new"]


async def test_a_topic_that_does_not_exist_yet_is_waited_for() -> None:
    async with running_node() as node, reading(node, "new.topic", after="earliest") as reader:
        await reader.read()
        await reader.read_until(await publish(node, "new.topic", 1))
        assert reader.messages == [1]


async def test_without_auto_create_an_unknown_topic_is_refused() -> None:
    config = configured(topics={"auto_create": False})
    async with running_node(config=config) as node:
        with pytest.raises(RequestError, match="does not exist") as refused:
            node.broker.subscribe(ANYONE, ["chat"])
        assert refused.value.code == "topic_not_found"
        node.broker.subscribe(ANYONE, ["chat.>"])  # a pattern is no topic


# --- resuming ---


async def test_a_cursor_resumes_after_its_message() -> None:
    async with running_node() as node:
        await publish(node, "chat", *range(1, 11))
        async with reading(node, "chat", after=event_id(4)) as reader:
            assert (await reader.read())[0]["id"] == event_id(4)
            await reader.read_until(event_id(10))
            assert reader.messages == [5, 6, 7, 8, 9, 10]


async def test_a_cursor_resumes_in_many_topics_in_one_order() -> None:
    async with running_node() as node:
        for number in range(30):
            await publish(node, f"t.{number % 4}", number)
        async with reading(node, "t.*", "other", after=event_id(5)) as reader:
            await reader.read_until(event_id(30))
            assert reader.messages == list(range(5, 30))


async def test_a_cursor_resumes_after_a_restart() -> None:
    disk = Disk()
    async with running_node(disk) as node:
        await publish(node, "chat", *range(1, 6))
    async with running_node(disk) as node:
        await publish(node, "chat", 6)
        async with reading(node, "chat", after=event_id(3)) as reader:
            await reader.read_until(event_id(6))
            assert reader.messages == [4, 5, 6]


# --- loss is told ---


async def test_a_gap_is_told_before_what_comes_after_it() -> None:
    """Promise 4. ``subscribed`` repeats the client's cursor: until it has heard of the gap,
    a broken connection leaves it where it was."""
    async with running_node() as node:
        await node.replica.propose(CreateTopic("chat", messages=3))
        await publish(node, "chat", *range(10))
        async with reading(node, "chat", after=event_id(2)) as reader:
            await reader.read_until(event_id(10))
            subscribed, gap, *messages = reader.events
            assert subscribed["id"] == event_id(2)
            assert gap["event"] == "gap"
            assert gap["id"] == event_id(7)
            assert json.loads(gap["data"]) == {
                "after": event_id(2),
                "first_available": event_id(8),
                "reason": "retention",
            }
            assert [m["id"] for m in messages] == [event_id(8), event_id(9), event_id(10)]


async def test_a_client_that_resumes_from_the_gap_is_not_told_again() -> None:
    async with running_node() as node:
        await node.replica.propose(CreateTopic("chat", messages=3))
        await publish(node, "chat", *range(10))
        async with reading(node, "chat", after=event_id(7)) as reader:
            await reader.read_until(event_id(10))
            assert not reader.named("gap")
            assert reader.messages == [7, 8, 9]


async def test_a_gap_with_nothing_left_says_so() -> None:
    clock = Clock()
    async with running_node(clock=clock) as node:
        await node.replica.propose(CreateTopic("chat", seconds=10))
        await publish(node, "chat", 1, 2)
        clock.now_ms += 60_000
        await node.replica.propose(CreateTopic("chat", seconds=10, replace=True))
        async with reading(node, "chat", after=event_id(1)) as reader:
            await reader.read()
            (gap,) = await reader.read()
            assert json.loads(gap["data"])["first_available"] is None
            assert gap["id"] == event_id(2)


@pytest.mark.parametrize("filters", ["chat", "chat.>|chat"])
async def test_a_snapshot_in_the_place_of_the_state_hides_no_loss(
    filters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions of losses begin anew with it: what a stream knows of the old ones says nothing."""
    monkeypatch.setattr("repl_broker.subscription.PAGE_MESSAGES_MAX", 2)
    async with running_node() as node:
        await node.replica.propose(CreateTopic("other", messages=1))
        for number in range(5):
            await publish(node, "other", number)
            node.replica.state.timeline.look()
        await publish(node, "chat", *range(10))
        async with node.broker.subscribe(ANYONE, filters.split("|"), event_id(5)) as stream:
            seen = [await anext(stream) for _ in range(2)]
            assert [e["id"] for e in events(seen[1:])] == [event_id(6), event_id(7)]
            state = BrokerState.restore(node.replica.state.snapshot())
            trim = CreateTopic("chat", messages=1, replace=True)
            state.apply(state.applied_index + 1, state.time_ms, [trim])
            state.generation = node.replica.state.generation + 1
            node.replica.state = state
            gap, message = events([await anext(stream), await anext(stream)])
    assert gap["event"] == "gap"
    assert json.loads(gap["data"])["first_available"] == message["id"] == event_id(15)


async def test_a_cursor_of_another_cluster_is_told_and_gets_what_there_is() -> None:
    async with running_node() as node:
        await publish(node, "chat", 1, 2)
        async with reading(node, "chat", after="deadbeef-77") as reader:
            await reader.read_until(event_id(2))
            subscribed, gap, *_ = reader.events
            assert subscribed["id"] == "deadbeef-77"
            assert json.loads(gap["data"]) == {
                "after": "deadbeef-77",
                "first_available": event_id(1),
                "reason": "unknown_epoch",
            }
            assert reader.messages == [1, 2]


async def test_a_cursor_from_the_future_is_told_and_goes_live() -> None:
    async with running_node() as node:
        await publish(node, "chat", 1, 2)
        async with reading(node, "chat", after=event_id(99)) as reader:
            await reader.read()
            (gap,) = await reader.read()
            assert gap["id"] == event_id(2)
            assert json.loads(gap["data"])["reason"] == "ahead"
            await reader.read_until(await publish(node, "chat", 3))
            assert reader.messages == [3]


async def test_loss_in_other_topics_is_no_loss() -> None:
    async with running_node() as node:
        await node.replica.propose(CreateTopic("busy", messages=1))
        await publish(node, "chat", 1)
        await publish(node, "busy", *range(100))
        async with reading(node, "chat", after=event_id(0)) as reader:
            await reader.read_until(event_id(1))
            assert not reader.named("gap")


async def test_a_removed_topic_is_told_to_those_who_follow_it() -> None:
    async with running_node() as node, reading(node, "chat", "other") as reader:
        await reader.read()
        await publish(node, "chat", 1)
        await node.broker.delete_topic(ANYONE, "chat")
        await reader.read_until(await publish(node, "chat", 2))
        assert [e.get("event", "message") for e in reader.events[1:]] == [
            "message",
            "topic-deleted",
            "message",
        ]
        assert json.loads(reader.named("topic-deleted")[0]["data"]) == {"topic": "chat"}


async def test_removal_while_away_is_told_with_the_loss_that_it_caused() -> None:
    async with running_node() as node:
        await publish(node, "chat", 1, 2)
        await publish(node, "other", 3)
        await node.broker.delete_topic(ANYONE, "chat")
        await publish(node, "other", 4)
        async with reading(node, "chat", "other", after=event_id(1)) as reader:
            await reader.read_until(event_id(4))
            assert [e.get("event", "message") for e in reader.events[1:]] == [
                "gap",
                "message",
                "topic-deleted",
                "message",
            ]


async def test_a_removal_at_the_very_position_of_a_cursor_is_told() -> None:
    async with running_node() as node:
        await publish(node, "chat", 1, 2)
        await node.broker.delete_topic(ANYONE, "chat")
        async with reading(node, "chat", after=event_id(2)) as reader:
            await reader.read()
            (deleted,) = await reader.read()
            assert (deleted["event"], deleted["id"]) == ("topic-deleted", event_id(2))
            await reader.read_until(await publish(node, "chat", 3))
            assert len(reader.named("topic-deleted")) == 1


async def test_a_removal_that_leaves_nothing_is_told_with_its_gap() -> None:
    async with running_node() as node:
        await publish(node, "chat", 1, 2, 3)
        await node.broker.delete_topic(ANYONE, "chat")
        async with reading(node, "chat", after=event_id(1)) as reader:
            await reader.read()
            gap, deleted = await reader.read()
            assert gap["event"] == "gap"
            assert deleted["event"] == "topic-deleted"
            assert gap["id"] == deleted["id"] == event_id(3)


async def test_a_removal_while_the_log_is_read_is_told() -> None:
    disk = Disk()
    async with running_node(disk) as node:
        await publish(node, "chat", 1, 2)
    async with running_node(disk) as node, reading(node, "chat", after="earliest") as reader:
        await reader.read()
        node.replica._history._cache.clear()
        node.gate.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.read)
            await wait_all_tasks_blocked()
            nursery.start_soon(node.broker.delete_topic, ANYONE, "chat")
            await wait_all_tasks_blocked()
            node.gate.open()
        while not reader.named("topic-deleted"):
            await reader.read()
        assert reader.messages == [1, 2]


async def test_a_loss_that_was_told_does_not_hide_a_later_one_of_another_topic() -> None:
    async with running_node() as node:
        await node.replica.propose(CreateTopic("a", messages=1))
        await publish(node, "b", *range(1, 901))
        await publish(node, "a", *range(901, 2001))
        async with reading(node, "a", "b", after=event_id(0)) as reader:
            await reader.read()
            assert [e["event"] for e in await reader.read()] == ["gap"]
            await reader.read()
            position = int(reader.cursor[9:])
            assert 0 < position < 800
            await node.replica.propose(CreateTopic("b", messages=50, replace=True))
            (gap,) = await reader.read()
            assert json.loads(gap["data"])["after"] == event_id(position)
            assert json.loads(gap["data"])["first_available"] == event_id(851)
            await reader.read_until(event_id(2000))
            assert reader.messages == [*range(1, position + 1), *range(851, 901), 2000]
            assert len(reader.named("gap")) == 2


@pytest.mark.parametrize("filters", ["x", "x|other", "x.>|x", ">"])
@pytest.mark.parametrize("is_reborn", [False, True])
async def test_the_loss_of_a_topic_that_is_forgotten_meanwhile_is_told(
    filters: str, is_reborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic that lost something later was forgotten before it."""
    monkeypatch.setattr("repl_broker.state.TOMBSTONES_MAX", 2)
    monkeypatch.setattr("repl_broker.subscription.PAGE_MESSAGES_MAX", 2)

    async def forget() -> None:
        for name in ("e", "f"):
            await node.replica.propose(CreateTopic(name))
            await node.broker.delete_topic(ANYONE, name)

    async with running_node() as node:
        await publish(node, "other", 0)
        await publish(node, "x", *range(10))
        await publish(node, "late", 0)
        await node.broker.delete_topic(ANYONE, "late")
        await forget()
        async with reading(node, *filters.split("|"), after=event_id(1)) as reader:
            while not reader.messages:
                await reader.read()
            position = reader.cursor
            if filters == ">":  # it has been told of "late"
                assert len(reader.named("gap")) == 1
            reader.events.clear()
            await node.broker.delete_topic(ANYONE, "x")
            await forget()
            if is_reborn:
                await node.replica.propose(CreateTopic("x"))
            last = await publish(node, "other" if filters == ">" else "x", "new")
            await reader.read_until(last)
    assert reader.messages == ["new"]
    (gap,) = reader.named("gap")  # else messages are missing, and nothing was said
    assert json.loads(gap["data"])["after"] == position


# --- silence ---


async def test_silence_is_broken_by_a_heartbeat_that_moves_the_cursor(
    autojump_clock: MockClock,
) -> None:
    async with running_node() as node, reading(node, "chat") as reader:
        await reader.read()
        await publish(node, "elsewhere", *range(5))
        started = trio.current_time()
        assert await reader.read() == [beat(5)]
        assert trio.current_time() - started == pytest.approx(15)


async def test_a_message_that_comes_with_the_heartbeat_is_not_overtaken_by_its_id(
    autojump_clock: MockClock,
) -> None:
    """A client that breaks off behind such a heartbeat would never see the message."""
    async with running_node() as node:
        for number in range(1, 41):
            async with reading(node, "chat") as reader, trio.open_nursery() as nursery:
                await reader.read()

                async def publish_then() -> None:
                    await trio.sleep(15)
                    state = node.replica.state
                    command = Publish("chat", (b"1",))
                    applied = state.apply(state.applied_index + 1, 0, [command])
                    node.hub.publish(applied.events, state.seq)

                nursery.start_soon(publish_then)
                (first,) = await reader.read()
                assert is_message(first) or first["id"] == event_id(number - 1)


# --- the slow ---

SMALL_TAIL = configured(limits={"tail_bytes": 2000})


async def test_a_reader_that_stalls_catches_up_from_the_log() -> None:
    """Promise 6: its backlog lives in the log; memory stays bounded; nobody waits for it."""
    async with running_node(config=SMALL_TAIL) as node, reading(node, "chat") as slow:
        await slow.read()
        async with reading(node, "chat") as quick:
            await quick.read()
            for number in range(1, 501):
                last = await publish(node, "chat", number)
                await quick.read()
                assert node.hub.statistics().tail_bytes <= 2000
            assert quick.messages == list(range(1, 501))
        await slow.read_until(last)
        assert slow.messages == list(range(1, 501))
        await slow.read_until(await publish(node, "chat", 501))
        assert slow.messages[-1] == 501


async def test_a_reader_that_falls_behind_twice_is_given_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It joined the tail before the log was read out, then fell off the tail again."""
    monkeypatch.setattr("repl_broker.subscription.PAGE_MESSAGES_MAX", 3)
    async with running_node(config=SMALL_TAIL) as node, reading(node, "chat") as reader:
        await reader.read()
        for round_number in range(5):
            for number in range(round_number * 50 + 1, round_number * 50 + 51):
                last = await publish(node, "chat", number)
            await reader.read_until(last)
        assert reader.messages == list(range(1, 251))


async def test_a_stalled_reader_that_outlives_retention_is_told() -> None:
    async with running_node(config=SMALL_TAIL) as node:
        await node.replica.propose(CreateTopic("chat", messages=50))
        async with reading(node, "chat") as slow:
            await slow.read()
            for number in range(1, 501):
                last = await publish(node, "chat", number)
            await slow.read_until(last)
            (gap,) = slow.named("gap")
            assert json.loads(gap["data"]) == {
                "after": event_id(0),
                "first_available": event_id(451),
                "reason": "retention",
            }
            assert slow.messages == list(range(451, 501))


async def test_streams_of_a_huge_entry_read_it_from_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch of 100,000 lines times 200 filter sets must not stop the node for seconds."""
    monkeypatch.setattr("repl_broker.hub.APPENDS_MAX", 100)
    async with running_node() as node, reading(node, "chat") as a, reading(node, "chat", "x") as b:
        await a.read()
        await b.read()
        await publish(node, "chat", 1, 2, 3)
        await a.read()
        last = await publish(node, "chat", *range(4, 200))
        assert node.hub.statistics().tail_bytes == 0
        last = await publish(node, "chat", 200)
        for reader in (a, b):
            await reader.read_until(last)
            assert reader.messages == list(range(1, 201))


async def test_a_page_from_the_log_is_bounded_in_bytes() -> None:
    async with running_node() as node:
        for _ in range(5):
            last = await publish(node, "chat", "x" * 60_000)
        async with reading(node, "chat", after="earliest") as reader:
            await reader.read()
            sizes = []
            while reader.cursor != last:
                sizes.append(len(await reader.read()))
            assert sizes == [1, 1, 1, 1, 1]


async def test_messages_that_are_trimmed_while_they_are_read_are_told_as_lost() -> None:
    disk = Disk()
    async with running_node(disk) as node:
        await publish(node, "chat", *range(3))
        await publish(node, "chat", *range(3, 6))
    async with running_node(disk) as node:
        async with reading(node, "chat", after=event_id(1)) as reader:
            await reader.read()
            node.replica._history._cache.clear()
            node.gate.shut()
            chunks: list[list[dict[str, str]]] = []
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    chunks.append(await reader.read())

                nursery.start_soon(read)
                await wait_all_tasks_blocked()
                # Retention moves on while the disk is slow, and compaction with it.
                node.replica.state.apply(
                    node.replica.state.applied_index + 1,
                    0,
                    [CreateTopic("chat", messages=2, replace=True)],
                )
                disk.drop([entry for entry in disk.entries if entry <= 3])
                node.gate.open()
            assert [e.get("event") for e in chunks[0]] == ["gap"]
            await reader.read_until(event_id(6))
            assert reader.messages == [4, 5]


# --- the end ---


async def test_drain_ends_a_stream_with_a_retry_of_its_own() -> None:
    async with running_node() as node:
        waits = set()
        for _ in range(5):
            async with reading(node, "chat") as reader:
                await reader.read()
                node.hub.close()
                (farewell,) = await reader.read()
                waits.add(int(farewell.pop("retry")))
                assert farewell == {"event": "goodbye", "data": '{"reason":"shutting_down"}'}
                with pytest.raises(StopAsyncIteration):
                    await anext(reader.stream)
                node.hub.closing = False
        assert all(2000 <= wait < 7000 for wait in waits)
        assert len(waits) > 1, "they do not all come back at once"


async def test_a_stream_that_is_left_is_not_counted() -> None:
    async with running_node() as node:
        async with reading(node, "chat"):
            assert node.broker.statistics().hub.subscribers == 1
        assert node.broker.statistics().hub.subscribers == 0


# --- all at once ---


@given(seed=st.integers(0, 2**32))
def test_every_reader_gets_every_message_once_in_order_or_is_told_of_the_loss(seed: int) -> None:
    """Promises 1, 3, 4 and 6 together: readers that stall, vanish and come back with their
    cursor, restarts, tails of a few frames, retention that overtakes."""
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repl_broker.subscription.PAGE_MESSAGES_MAX", chance.choice([2, 5, 256]))
        read_in_pieces(patch, chance)
        trio.run(_anything_goes, chance, clock=MockClock(autojump_threshold=0))


async def _anything_goes(chance: random.Random) -> None:
    disk, clock = Disk(), Clock()
    config = configured(
        limits={"tail_bytes": chance.choice([300, 2000, 1_000_000])},
        raft={"snapshot_entries": 100},
    )
    published: dict[int, str] = {}  # seq → topic
    followers = [_Follower(chance) for _ in range(4)]
    for _ in range(chance.randrange(1, 4)):
        async with running_node(disk, clock, config) as node:
            for _ in range(chance.randrange(60)):
                match chance.randrange(12):
                    case 0:
                        topic = chance.choice(TOPICS)
                        keep = chance.choice([1, 5, 1000])
                        await node.replica.propose(CreateTopic(topic, messages=keep, replace=True))
                    case 1:
                        topic = chance.choice(TOPICS)
                        if topic in node.replica.state.topics:
                            await node.broker.delete_topic(ANYONE, topic)
                    case 2 | 3 | 4 | 5:
                        topic = chance.choice(TOPICS)
                        first = node.replica.state.seq + 1
                        await publish(node, topic, *range(chance.choice([1, 1, 2, 40])))
                        published.update(
                            (seq, topic) for seq in range(first, node.replica.state.seq + 1)
                        )
                    case _:
                        await chance.choice(followers).step(node)
            for follower in followers:
                await follower.finish(node, published)


TOPICS = ["a", "b", "c.d"]


class _Follower:
    """A client: it has a cursor, and checks what it is given against it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.filters = chance.choice([["a"], ["a", "b"], [">"], ["*"], ["c.>", "b"]])
        self.cursor = event_id(0)
        self.seen: list[int] = []
        self.lost: list[tuple[str, range]] = []  # by topic: what may be missing, as was told
        self.stream: Subscription | None = None

    async def step(self, node: Node) -> None:
        if self.stream is None:
            self.stream = await node.broker.subscribe(
                ANYONE, self.filters, self.cursor
            ).__aenter__()
        elif self.chance.random() < 0.2:
            await self.leave()
            return
        for _ in range(self.chance.randrange(3)):
            with trio.move_on_after(1):
                self.take(node, await anext(self.stream))

    def take(self, node: Node, chunk: bytes) -> None:
        for event in events([chunk]):
            name = event.get("event")
            if name == "gap":
                after = int(json.loads(event["data"])["after"][9:])
                losses = node.replica.state.losses(FilterSet(self.filters), after)
                self.lost += [(name, range(after + 1, upto + 1)) for name, upto in losses.items()]
            elif is_message(event):
                self.seen.append(int(event["id"][9:]))
            self.cursor = event.get("id", self.cursor)

    async def leave(self) -> None:
        if self.stream is not None:
            await self.stream.__aexit__(None, None, None)
            self.stream = None

    async def finish(self, node: Node, published: dict[int, str]) -> None:
        """Read out; then every message of the filters was seen once, or lies in a gap."""
        await self.leave()
        async with node.broker.subscribe(ANYONE, self.filters, self.cursor) as stream:
            with trio.move_on_after(1):
                while True:
                    self.take(node, await anext(stream))
        assert self.seen == sorted(set(self.seen)), "in order, none twice"
        matches = FilterSet(self.filters).matches
        for seq, topic in published.items():
            if matches(topic) and seq not in self.seen:
                told = any(seq in lost for name, lost in self.lost if name in (topic, ""))
                assert told, f"{seq} of {topic} is missing and nothing was said"
        assert all(matches(published[seq]) for seq in self.seen)


def test_events_are_parsed_as_blocks() -> None:
    """The helper of these tests refuses half a block."""
    message = b'id: e-1\ndata: {"id":"e-1"}\n\n'
    assert events([message[:9], message[9:]]) == [{"id": "e-1", "data": '{"id":"e-1"}'}]
    for bad in (message[:-1], b"retry: 5\n\n", b"id: e-1\n\n", b": hi\n\n", b"data: {}\n\n"):
        with pytest.raises((AssertionError, KeyError)):
            events([bad])
