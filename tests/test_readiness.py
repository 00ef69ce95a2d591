"""Ready means ready: a leader, what was committed, room; and whoever would starve is told to go."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from repl_broker.command import RevokeTokens
from repl_broker.config import LimitsConfig
from repl_broker.errors import PROBLEMS, OutcomeUnknownError, RequestError
from repl_broker.readiness import (
    BEHIND_SECONDS_MAX,
    END_STREAMS_SECONDS,
    LEADERLESS_SECONDS,
    REMEDIES,
    STUCK_SECONDS,
)
from repl_broker.room import Room
from repl_broker.subscription import Subscription
from repl_broker.web.openapi import NOT_READY_CODES
from tests.network import Cluster, ClusterNode, running_cluster
from tests.nodes import ANYONE, events, running_node
from tests.test_room import FLOOR

NAME = "repl_broker.readiness"


@asynccontextmanager
async def disks() -> AsyncIterator[tuple[Cluster, dict[str, int]]]:
    """Three nodes, and the free space of the disk of each."""
    async with running_cluster(3) as cluster, trio.open_nursery() as beside:
        free = dict.fromkeys(cluster.running, 1 << 40)
        for name, node in cluster.running.items():
            limits = LimitsConfig(disk_free_bytes=FLOOR)
            room = Room(node.replica, limits, partial(free.__getitem__, name), in_thread=node.gate)
            node.broker._room = node.broker.readiness.room = room
            beside.start_soon(room.run)
        yield cluster, free
        beside.cancel_scope.cancel()


def codes(node: ClusterNode) -> list[str]:
    """Why it is not ready, as it says in all places where it says that."""
    reasons = [reason.code for reason in node.broker.readiness.reasons()]
    assert node.broker.ready == (not reasons)
    if reasons:
        with pytest.raises(RequestError) as refused:
            node.broker.check_ready()
        assert refused.value.code == reasons[0]
        assert refused.value.status == 503
        found = refused.value.extra["reasons"]
        assert isinstance(found, list)
        assert [each["code"] for each in found] == reasons
    else:
        node.broker.check_ready()
    return reasons


async def ending(stream: Subscription) -> tuple[dict[str, str], str]:
    """The last block of a stream, and the newest id."""
    blocks = events([chunk async for chunk in stream])
    return blocks[-1], [block["id"] for block in blocks if "id" in block][-1]


async def test_a_node_by_itself_is_ready_whatever_room_it_has(autojump_clock: MockClock) -> None:
    async with running_node() as node:
        node.free_bytes = 0
        node.room._free = 0
        node.room._note()
        assert node.broker.ready, "it is the only way to what makes room"
        assert node.broker.readiness.reasons() == []


async def test_a_follower_whose_disk_is_full_is_not_ready_and_the_leader_is(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, NAME)
    async with disks() as (cluster, free):
        leader = (await cluster.leader()).id
        full, other = sorted(cluster.running.keys() - {leader})
        free[full] = FLOOR * 3 // 4
        await trio.sleep(5)
        assert codes(cluster[full]) == ["no_room"]
        assert codes(cluster[leader]) == codes(cluster[other]) == []
        free[full] = 1 << 40
        await trio.sleep(5)
        assert codes(cluster[full]) == []
        free[leader] = free[full] = free[other] = FLOOR * 3 // 4
        await trio.sleep(10)
        assert [codes(node) for node in cluster.running.values()] == [[], [], []], (
            "no other is any better, and all of them serve what there is"
        )
        free[full] = free[other] = FLOOR // 2 - 1
        await trio.sleep(10)
        ready = [name for name, node in cluster.running.items() if not codes(node)]
        assert ready == [(await cluster.leader()).id], "what makes room still has a way in"
    said = [record.getMessage() for record in caplog.records if record.name == NAME]
    assert said[0].startswith("not ready: requests should go to other nodes code=no_room")
    assert f"The disk of node '{full}' has" in said[0]
    assert "make room on the disk of this node" in said[0]
    assert said[1].startswith("ready again after_seconds=")


async def test_a_follower_that_takes_nothing_any_more_ends_its_streams_with_a_cursor(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with disks() as (cluster, free):
        leader = (await cluster.leader()).id
        full, _ = sorted(cluster.running.keys() - {leader})
        await cluster[leader].broker.publish(ANYONE, "chat", b"1")
        await cluster.converged()
        free[full] = 0
        await trio.sleep(2)
        async with cluster[full].broker.subscribe(ANYONE, ["chat"], "earliest") as stream:
            for n in range(10):
                await cluster[leader].broker.publish(ANYONE, "chat", b"%d" % n)
            await trio.sleep(BEHIND_SECONDS_MAX + 2)
            assert codes(cluster[full]) == ["behind", "no_room"]
            with trio.fail_after(STUCK_SECONDS + 5):
                block, cursor = await ending(stream)
        assert block["event"] == "goodbye"
        assert json.loads(block["data"]) == {"reason": "no_room"}
        assert cursor.endswith("-1"), "what it had of this node"
        assert "id" not in block
        assert int(block["retry"]) >= 2000
        async with cluster[leader].broker.subscribe(ANYONE, ["chat"], cursor) as stream:
            chunks = b"".join([await anext(stream) for _ in range(2)])
            assert chunks.count(b"\ndata: ") == 11, "all that it missed"
    said = [r.getMessage() for r in caplog.records if r.name == NAME]
    assert any(
        line.startswith("ends its event streams") and "code=no_room" in line for line in said
    )


async def test_streams_that_come_to_a_starving_node_are_taken_and_ended_later(
    autojump_clock: MockClock,
) -> None:
    """A browser's own EventSource gives up for good when it is refused."""
    async with running_cluster(3) as cluster:
        leader = (await cluster.leader()).id
        alone = sorted(cluster.running.keys() - {leader})[0]
        cluster.cut(alone)
        await trio.sleep(LEADERLESS_SECONDS + 10)
        async with cluster[alone].broker.subscribe(ANYONE, ["chat"]) as stream:
            with trio.fail_after(END_STREAMS_SECONDS + 5):
                block, _ = await ending(stream)
        assert json.loads(block["data"]) == {"reason": "no_leader"}
        cluster.heal()
        await cluster.converged()
        await trio.sleep(2)
        async with cluster[alone].broker.subscribe(ANYONE, ["chat"]) as stream:
            with trio.move_on_after(2 * END_STREAMS_SECONDS) as patience:
                await ending(stream)
            assert patience.cancelled_caught


async def test_a_follower_that_lost_its_leader_names_who_is_missing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, NAME)
    async with running_cluster(3) as cluster:
        leader = (await cluster.leader()).id
        others = sorted(cluster.running.keys() - {leader})
        for other in others:
            cluster.kill(other)
        await trio.sleep(5)
        assert codes(cluster[leader]) == ["no_leader"]
        (reason,) = cluster[leader].broker.readiness.reasons()
        assert f"Not reached: {', '.join(others)}; 2 of 3 voters have to meet." in reason.detail
        found = await cluster[leader].broker.describe_cluster()
        assert (found["ready"], found["reasons"]) == (False, [reason._asdict()])
        await cluster.start(others[0])
        await cluster.until(lambda: cluster[leader].broker.ready, "the leader to be ready")
        await trio.sleep(2)
    first, second = [
        r.getMessage() for r in caplog.records if r.name == NAME and "code=behind" not in r.message
    ][:2]
    assert "code=no_leader" in first
    assert "Not reached" in first
    assert "a majority of the voters" in first
    assert second.startswith("ready again after_seconds=")


async def test_a_node_that_gets_on_is_not_behind_however_much_comes(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        for n in range(50):
            await leader.broker.publish(ANYONE, "chat", b"%d" % n)
            await trio.sleep(0.5)
            assert [codes(node) for node in cluster.running.values()] == [[], [], []]


async def test_a_node_that_takes_nothing_is_behind_in_time_and_ready_once_it_does(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        slow = cluster[sorted(cluster.running.keys() - {leader.id})[0]]
        slow.replica.holds_back, slow.replica.has_reserve = True, False
        await leader.broker.publish(ANYONE, "chat", b"1")
        await trio.sleep(1)
        assert codes(slow) == []
        await trio.sleep(BEHIND_SECONDS_MAX + 2)
        assert codes(slow) == ["behind"]
        assert "lacks 1 entries" in slow.broker.readiness.reasons()[0].detail
        slow.replica.holds_back = False
        await cluster.converged()
        assert codes(slow) == []


async def told_at_once(node: ClusterNode) -> dict[str, tuple[str, str]]:
    """What the node says, code and detail, to each kind of request that needs the log."""
    broker = node.broker
    requests: dict[str, Callable[[], Awaitable[object]]] = {
        "publish": partial(broker.publish, ANYONE, "chat", b"1"),
        "create": partial(broker.create_topic, ANYONE, "chat", messages=5, replace=True),
        "delete": partial(broker.delete_topic, ANYONE, "old"),
        "delete many": partial(broker.delete_topics, ANYONE, "old.>"),
        "topic": partial(broker.topic, ANYONE, "chat"),
        "topics": partial(broker.topics, ANYONE, limit=10),
        "history": partial(broker.history, ANYONE, "chat", limit=10),
        "revoke": partial(node.replica.propose, RevokeTokens("somebody", 60)),
    }
    told = {}
    for what, ask in requests.items():
        with trio.fail_after(1), pytest.raises(RequestError) as refused:
            await ask()
        told[what] = refused.value.code, refused.value.detail
    return told


async def test_a_follower_without_room_says_so_at_once_whatever_is_asked_of_it(
    autojump_clock: MockClock,
) -> None:
    async with disks() as (cluster, free):
        leader = await cluster.leader()
        full = cluster[sorted(cluster.running.keys() - {leader.id})[0]]
        await leader.broker.publish(ANYONE, "old", b"1")
        await cluster.converged()
        free[full.id] = 0
        await trio.sleep(2)
        assert (await full.broker.topics(ANYONE, limit=10)).topics, "it lacks nothing yet"
        await leader.broker.publish(ANYONE, "chat", b"1")
        await trio.sleep(1)
        told = await told_at_once(full)
        assert {what: code for what, (code, _) in told.items()} == dict.fromkeys(
            told, "no_room"
        ) | {"publish": "storage_full"}
        for _, detail in told.values():
            assert f"The disk of node '{full.id}' has 0 bytes left" in detail
            assert "Ask another node: reading, deleting and shorter retention go on there" in detail
            assert detail.endswith("Nothing was changed.")
        assert "old" in leader.replica.state.topics, "nothing was"
        await leader.broker.delete_topic(ANYONE, "old")
        free[full.id] = 1 << 40
        await cluster.converged()
        await full.broker.topic(ANYONE, "chat")


async def test_a_write_under_way_when_a_followers_room_goes_is_told_why_its_outcome_is_unknown(
    autojump_clock: MockClock,
) -> None:
    async with disks() as (cluster, free):
        leader = await cluster.leader()
        full = cluster[sorted(cluster.running.keys() - {leader.id})[0]]
        await leader.broker.publish(ANYONE, "old", b"1")
        await cluster.converged()
        free[full.id] = 0
        await trio.sleep(2)
        with (
            trio.fail_after(2 * full.replica.patience),
            pytest.raises(OutcomeUnknownError, match="because it has no room"),
        ):
            await full.broker.delete_topic(ANYONE, "old")
        assert "old" not in leader.replica.state.topics


async def test_a_follower_that_is_behind_for_another_reason_says_so_at_once(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        slow = cluster[sorted(cluster.running.keys() - {leader.id})[0]]
        await leader.broker.publish(ANYONE, "chat", b"1")
        await cluster.converged()
        with lost_on_the_way(slow):
            await leader.broker.publish(ANYONE, "chat", b"1")
            await trio.sleep(BEHIND_SECONDS_MAX + 2)
            told = await told_at_once(slow)
        assert {code for code, _ in told.values()} == {"behind"}
        for _, detail in told.values():
            assert "it lacks 1 entries of the log" in detail
            assert detail.endswith("Ask another node. Nothing was changed.")
        await cluster.converged()
        await slow.broker.publish(ANYONE, "chat", b"1")


@contextmanager
def lost_on_the_way(node: ClusterNode) -> Iterator[None]:
    """What the leader sends there, but for its heartbeats."""
    take = node.replica._has_room_for
    node.replica.holds_back = True
    node.replica._has_room_for = lambda append: not append.entries  # type: ignore[method-assign]
    try:
        yield
    finally:
        node.replica.holds_back = False
        node.replica._has_room_for = take  # type: ignore[method-assign]


async def test_an_older_copy_of_a_node_is_not_ready(autojump_clock: MockClock) -> None:
    async with running_cluster(1) as cluster:
        cluster["n1"].replica._is_copy = True
        assert codes(cluster["n1"]) == ["older_copy"]


def test_each_code_is_documented_and_has_a_remedy() -> None:
    assert set(NOT_READY_CODES) == set(REMEDIES)
    assert all(PROBLEMS[code][0] == 503 for code in NOT_READY_CODES)
