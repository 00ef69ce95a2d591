"""A store that is full refuses publishes, and nothing else, before the disk is full."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from repl_broker.config import LimitsConfig
from repl_broker.errors import RequestError
from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
from repl_broker.raft.rpc import Append
from repl_broker.replica import ENTRY_BYTES
from repl_broker.room import HOLD_SECONDS, LOOK_SECONDS, MESSAGE_OVERHEAD_BYTES, NEARLY, Room
from repl_broker.storage import SqliteStorage
from tests.network import Cluster, running_cluster
from tests.nodes import ANYONE, Node, configured, running_node

FLOOR = 1 << 20


@asynccontextmanager
async def watched(**limits: int) -> AsyncIterator[Node]:
    async with (
        running_node(config=configured(limits=limits)) as node,
        trio.open_nursery() as beside,
    ):
        beside.start_soon(node.room.run)
        yield node
        beside.cancel_scope.cancel()


async def code_of_publish(node: Node, data: bytes = b"1", topic: str = "chat") -> str:
    try:
        await node.broker.publish(ANYONE, topic, data)
    except RequestError as error:
        return error.code
    return "kept"


async def look() -> None:
    await trio.sleep(LOOK_SECONDS + 0.1)


# --- the disk ---


async def test_publishes_are_refused_while_little_is_free_and_taken_again_with_a_distance(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(disk_free_bytes=FLOOR) as node:
        assert await code_of_publish(node) == "kept"
        node.free_bytes = FLOOR - 1
        await look()
        assert await code_of_publish(node) == "storage_full"
        node.free_bytes = FLOOR + 1
        await look()
        assert await code_of_publish(node) == "storage_full"
        node.free_bytes = int(FLOOR * 1.1) + 1
        await look()
        assert await code_of_publish(node) == "kept"
        assert node.room.statistics().refused == 2
    said = [record.levelno for record in caplog.records if record.name == "repl_broker.room"]
    assert said == [logging.WARNING]  # and that it is over at INFO, which caplog leaves out


async def test_all_else_goes_on_while_the_store_is_full(autojump_clock: MockClock) -> None:
    async with watched(disk_free_bytes=FLOOR) as node:
        await node.broker.publish(ANYONE, "chat", b'"before"')
        node.free_bytes = 0
        await look()
        with pytest.raises(RequestError) as refused:
            await node.broker.publish(ANYONE, "chat", b"1")
        assert refused.value.status == 507
        for words in ("'n1'", "0 bytes left", f"{FLOOR:,}", "[limits] disk_free_bytes", "deleting"):
            assert words in refused.value.detail
        page = await node.broker.history(ANYONE, "chat", limit=10)
        assert [message.data for message in page.messages] == [b'"before"']
        async with node.broker.subscribe(ANYONE, ["chat"], "earliest") as stream:
            assert b"before" in b"".join([await anext(stream) for _ in range(2)])
        await node.broker.create_topic(ANYONE, "chat", seconds=1, replace=True)
        await node.broker.create_topic(ANYONE, "other")
        await node.broker.delete_topic(ANYONE, "chat")
        assert node.broker.ready


async def test_what_is_taken_between_two_looks_counts_for_all_that_it_will_be_written(
    autojump_clock: MockClock,
) -> None:
    async with watched(disk_free_bytes=FLOOR) as node:
        node.free_bytes = FLOOR + 30_000
        await look()
        kept = 0
        while await code_of_publish(node, b'"%b"' % (b"x" * 998)) == "kept":
            kept += 1
        assert kept == 10, "each byte is written three times"
        await look()
        assert await code_of_publish(node) == "storage_full"
        assert node.room.statistics().is_full, "so little is left that it counts as full"
        node.free_bytes = FLOOR * 2
        await trio.sleep(HOLD_SECONDS + LOOK_SECONDS)
        assert await code_of_publish(node) == "kept"


async def test_a_store_found_full_by_an_estimate_says_so_at_once_and_does_not_flutter(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(disk_free_bytes=FLOOR) as node:
        node.free_bytes = FLOOR * 2
        await look()
        seen: list[str] = []
        for _ in range(8):  # each second more than there is room for, by the estimate
            node.room._taken_bytes = FLOOR
            seen.append(await code_of_publish(node))
            assert node.room.statistics().is_full == (seen[-1] == "storage_full")
            node.room._taken_bytes = 0
            await look()
            seen.append(await code_of_publish(node))
            assert node.room.statistics().is_full == (seen[-1] == "storage_full")
    changes = sum(one != other for one, other in itertools.pairwise(seen))
    assert seen[0] == "storage_full", "no publish is taken that there is no room for"
    assert changes <= 3, "not in turns"
    said = [r.getMessage() for r in caplog.records if "too little room" in r.getMessage()]
    assert "by an estimate" in said[0]
    assert f" disk_free_bytes={FLOOR} " in said[0]
    assert "[limits] storage_bytes and disk_free_bytes" in said[0]


async def test_under_load_it_looks_before_it_has_to_refuse_by_an_estimate(
    autojump_clock: MockClock,
) -> None:
    async with watched(disk_free_bytes=FLOOR) as node:
        node.free_bytes = FLOOR + 60_000
        await look()
        for _ in range(100):  # 100 KB, of a disk on which the log takes next to nothing
            assert await code_of_publish(node, b'"%b"' % (b"x" * 998)) == "kept"
            await trio.sleep(0.02)


@pytest.mark.parametrize("what", ["disk", "storage"])
async def test_the_log_and_a_metric_warn_before_anything_is_refused(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.INFO, "repl_broker.room")
    limits = {"disk_free_bytes": FLOOR} if what == "disk" else {"storage_bytes": 100_000}

    async def fill(share: float) -> None:
        if what == "disk":
            node.free_bytes = int(FLOOR / share)
        else:
            while node.room.fullness < share:
                assert await code_of_publish(node, b'"%b"' % (b"x" * 934)) == "kept"
        await look()

    async with watched(**limits) as node:
        await fill(NEARLY - 0.02)
        assert node.room.statistics().fullness == pytest.approx(NEARLY - 0.02, abs=0.011)
        assert not caplog.records
        await fill(NEARLY + 0.02)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("the store fills up; when it is full publishes are refused")
        assert "shorten their retention" in line
        assert await code_of_publish(node) == "kept"
        if what == "disk":
            await fill(0.5)
        else:
            await node.broker.delete_topic(ANYONE, "chat")
            await look()
        # The audit's line of the deletion is here, too, where a test before has set its level.
        lines = [each.getMessage() for each in caplog.records if each.name == Room.__module__]
        assert lines[-1].startswith("the store has room again")
        assert len(lines) == 2


async def test_a_floor_of_zero_watches_nothing(autojump_clock: MockClock) -> None:
    async with watched(disk_free_bytes=0) as node:
        node.free_bytes = 0
        await look()
        assert await code_of_publish(node, b'"%b"' % (b"x" * 100_000)) == "kept"
        assert not node.room.statistics().is_full


# --- all that is retained ---


async def test_what_is_retained_is_bounded_and_deleting_makes_room(
    autojump_clock: MockClock,
) -> None:
    each = 100 + MESSAGE_OVERHEAD_BYTES
    async with watched(storage_bytes=10 * each) as node:
        message = b'"%b"' % (b"x" * 98)
        outcomes = [await code_of_publish(node, message, f"t{n}") for n in range(11)]
        assert outcomes == ["kept"] * 10 + ["storage_full"]
        assert node.room.statistics().stored_bytes == 10 * each
        await node.broker.delete_topic(ANYONE, "t0")
        assert await code_of_publish(node, message) == "kept"


async def test_there_is_room_again_only_below_95_percent(autojump_clock: MockClock) -> None:
    each = 100 + MESSAGE_OVERHEAD_BYTES
    async with watched(storage_bytes=100 * each) as node:
        message = b'"%b"' % (b"x" * 98)
        for n in range(100):
            await node.broker.publish(ANYONE, f"t{n}", message)
        for n in range(5):
            assert await code_of_publish(node) == "storage_full"
            await node.broker.delete_topic(ANYONE, f"t{n}")
        assert await code_of_publish(node) == "storage_full", "exactly 95 %"
        await node.broker.delete_topic(ANYONE, "t5")
        assert await code_of_publish(node) == "kept"


async def test_retention_by_age_makes_room_by_itself(autojump_clock: MockClock) -> None:
    async with watched(storage_bytes=1000) as node:
        await node.broker.create_topic(ANYONE, "chat", seconds=60)
        while await code_of_publish(node) == "kept":
            pass
        node.clock.now_ms += 61_000
        await trio.sleep(10)  # the next Expire
        assert await code_of_publish(node) == "kept"


async def test_other_limits_hold_from_the_moment_they_are_loaded(
    autojump_clock: MockClock,
) -> None:
    async with watched(storage_bytes=65) as node:
        assert await code_of_publish(node) == "kept"
        assert await code_of_publish(node) == "storage_full"
        node.broker.reload(configured(limits={"storage_bytes": 0}))
        assert await code_of_publish(node) == "kept"
        node.broker.reload(configured(limits={"storage_bytes": 100}))
        assert await code_of_publish(node) == "storage_full"


async def test_the_bytes_retained_are_those_of_the_topics_after_a_restart_too() -> None:
    async with running_node() as node:
        for n in range(20):
            await node.broker.publish(ANYONE, f"t{n % 3}", b"%d" % n)
        await node.broker.create_topic(ANYONE, "t1", messages=2, replace=True)
        await node.broker.delete_topic(ANYONE, "t2")
        state = node.replica.state
        again = type(state).restore(state.snapshot())
        for each in (state, again):
            assert each.retained_messages == sum(map(len, each.topics.values())) == 9
            assert each.retained_bytes == sum(topic.bytes for topic in each.topics.values())


async def test_a_disk_that_cannot_be_asked_ends_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> int:
        raise OSError("unmounted")

    async with running_node() as node, trio.open_nursery() as beside:
        room = Room(node.replica, LimitsConfig(), lambda: 1 << 40, in_thread=node.gate)
        room._free_bytes = broken
        beside.start_soon(room.run)
        await look()
        room.check(1)
        assert "unmounted" in caplog.text
        beside.cancel_scope.cancel()


# --- the store's own free pages ---


def test_what_was_dropped_from_the_store_counts_as_free(tmp_path: Path) -> None:
    """The file of SQLite does not shrink, so the disk alone would never have room again."""
    storage = SqliteStorage(tmp_path, "n1")
    try:
        entries = tuple(Entry(n, 1, EntryKind.DATA, b"x" * 500_000) for n in range(1, 21))
        storage.write(WriteBatch(entries, HardState(1, "n1")))
        storage.tidy()
        before, size = storage.free_bytes(), storage.bytes
        storage.drop(range(1, 20))
        assert storage.bytes < size + 1_000_000, "dropping takes little room itself"
        storage.tidy()
        assert storage.free_bytes() > before + 5_000_000
    finally:
        storage.close()


async def test_a_full_disk_has_the_store_drop_what_is_not_retained_though_it_is_little(
    autojump_clock: MockClock,
) -> None:
    async with watched(disk_free_bytes=FLOOR) as node:
        for n in range(20):
            await node.broker.publish(ANYONE, "chat", b"%d" % n)
        await node.broker.delete_topic(ANYONE, "chat")
        await look()
        entries = len(node.disk.entries)
        node.free_bytes = 0
        await trio.sleep(10)
        assert len(node.disk.entries) < entries - 19
        assert node.disk.snapshot is not None


# --- a cluster ---


@dataclass
class WatchedCluster:
    """Three nodes, each with a disk whose free space is a number here."""

    cluster: Cluster
    free: dict[str, int]

    async def code_of_publish(self, node_id: str, data: bytes = b"1") -> str:
        try:
            await self.cluster[node_id].broker.publish(ANYONE, "chat", data)
        except RequestError as error:
            return error.code
        return "kept"

    async def roles(self) -> tuple[str, str, str]:
        """The leader and the two others."""
        leader = (await self.cluster.leader()).id
        others = sorted(self.cluster.running.keys() - {leader})
        return leader, others[0], others[1]


@asynccontextmanager
async def watched_cluster(size: int = 3) -> AsyncIterator[WatchedCluster]:
    async with running_cluster(size) as cluster, trio.open_nursery() as beside:
        free = dict.fromkeys(cluster.running, 1 << 40)
        for name, node in cluster.running.items():
            room = Room(
                node.replica,
                LimitsConfig(disk_free_bytes=FLOOR),
                partial(free.__getitem__, name),
                in_thread=node.gate,
            )
            node.broker._room = node.broker.readiness.room = room
            beside.start_soon(room.run)
        yield WatchedCluster(cluster, free)
        beside.cancel_scope.cancel()


async def test_the_node_that_is_asked_refuses_when_its_own_disk_is_full(
    autojump_clock: MockClock,
) -> None:
    async with watched_cluster() as there:
        leader, full, other = await there.roles()
        there.free[full] = FLOOR * 3 // 4
        await look()
        assert await there.code_of_publish(full) == "storage_full"
        assert await there.code_of_publish(leader) == "kept", "one full disk of three stops nothing"
        assert await there.code_of_publish(other) == "kept"
        await there.cluster.converged()


async def test_a_full_leader_hands_over_to_a_node_that_has_room(autojump_clock: MockClock) -> None:
    async with watched_cluster() as there:
        leader, second, third = await there.roles()
        there.free[second] = FLOOR * 3 // 4
        await look()
        there.free[leader] = FLOOR * 3 // 4
        there.free[second] = 1 << 40
        await trio.sleep(10)
        assert (await there.cluster.leader()).id != leader
        assert await there.code_of_publish(third) == "kept"
        assert await there.code_of_publish(leader) == "storage_full"


async def test_a_majority_of_full_disks_refuses_publishes_on_every_node(
    autojump_clock: MockClock,
) -> None:
    async with watched_cluster() as there:
        leader, second, third = await there.roles()
        await there.cluster[leader].broker.publish(ANYONE, "chat", b"1")
        there.free[second] = there.free[third] = FLOOR * 3 // 4
        await trio.sleep(3)
        for node in (leader, second, third):
            assert await there.code_of_publish(node) == "storage_full"
            assert (
                len((await there.cluster[node].broker.history(ANYONE, "chat", limit=10)).messages)
                == 1
            )
        await there.cluster[third].broker.delete_topic(ANYONE, "chat")
        there.free[second] = 1 << 40
        await trio.sleep(6)
        assert await there.code_of_publish(leader) == "kept"
        assert not there.cluster.failures


async def test_a_leader_that_is_full_refuses_what_others_send_on_but_not_a_deletion(
    autojump_clock: MockClock,
) -> None:
    async with watched_cluster() as there:
        leader, second, _ = await there.roles()
        await there.cluster[leader].broker.create_topic(ANYONE, "old")
        await there.cluster[leader].broker.publish(ANYONE, "chat", b"1")
        there.cluster[leader].broker.reload(configured(limits={"storage_bytes": 1}))
        outcomes = []

        async def publish() -> None:
            outcomes.append(await there.code_of_publish(second))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(publish)
            nursery.start_soon(there.cluster[second].broker.delete_topic, ANYONE, "old")
        assert outcomes == ["storage_full"] * 5
        assert "old" not in there.cluster[second].replica.state.topics
        asked = len(there.cluster.network.asked)
        assert await there.code_of_publish(second) == "storage_full"
        asked_for = there.cluster.network.asked[asked:]
        assert "propose" not in [what for _, _, what in asked_for], "it remembers for a moment"


async def test_a_follower_without_disk_takes_few_entries_and_catches_up_when_it_has_room(
    autojump_clock: MockClock,
) -> None:
    async with watched_cluster() as there:
        leader, full, _ = await there.roles()
        there.free[full] = FLOOR // 2 - 1
        await look()
        before = len(there.cluster.disks[full].entries)
        for n in range(50):
            assert await there.code_of_publish(leader, b"%d" % n) == "kept"
        await trio.sleep(10)
        taken = len(there.cluster.disks[full].entries) - before
        assert taken <= FLOOR // 4 // 3 // ENTRY_BYTES < 50, "what may have been under way"
        assert there.cluster[full].replica.leader == leader, "it hears the heartbeats"
        assert (await there.cluster.leader()).id == leader, "and disturbs nobody"
        there.free[full] = 1 << 40
        await there.cluster.converged()
        assert there.cluster[full].replica.state.seq == 50


async def test_a_majority_without_room_lets_through_what_makes_room(
    autojump_clock: MockClock,
) -> None:
    """Deleting, and a new leader's first entry; down to a reserve."""
    async with watched_cluster() as there:
        leader, second, third = await there.roles()
        await there.cluster[leader].broker.publish(ANYONE, "chat", b"1")
        await there.cluster[leader].broker.publish(ANYONE, "other", b"2")
        await there.cluster.converged()
        there.free[second] = there.free[third] = FLOOR // 2 - 1
        await trio.sleep(3)
        assert await there.code_of_publish(third) == "storage_full"
        await there.cluster[third].broker.delete_topic(ANYONE, "chat")
        there.cluster.kill(leader)
        await there.cluster.leader(second, third)
        await there.cluster[second].broker.delete_topic(ANYONE, "other")
        await there.cluster.converged()
        assert not there.cluster[second].replica.state.topics
        there.free[second] = there.free[third] = FLOOR // 8 - 1
        await look()
        with pytest.raises(RequestError):
            await there.cluster[third].broker.create_topic(ANYONE, "more")


def runs_out_of_room(there: WatchedCluster, free: int, *names: str) -> None:
    """All at once, and found by them before the leader can have been told."""
    for name in names:
        there.free[name] = free
        room = there.cluster[name].broker._room
        room._free = free
        room._note()


async def test_publishes_under_way_when_the_room_goes_do_not_stand_before_a_deletion(
    autojump_clock: MockClock,
) -> None:
    async with watched_cluster() as there:
        leader, second, third = await there.roles()
        await there.cluster[leader].broker.publish(ANYONE, "chat", b"1")
        await there.cluster.converged()
        runs_out_of_room(there, FLOOR // 2 - 1, second, third)
        outcomes = []

        async def publish(node: str) -> None:
            outcomes.append(await there.code_of_publish(node, b'"%b"' % (b"x" * 998)))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(publish, leader)
        assert outcomes == ["kept"] * 20, "the leader had taken them"
        await trio.sleep(3)
        for node in (leader, second, third):
            assert await there.code_of_publish(node) == "storage_full"
        await there.cluster[third].broker.delete_topic(ANYONE, "chat")
        await there.cluster.converged()
        for node in (leader, second, third):
            assert not there.cluster[node].replica.state.retained_bytes
        assert (await there.cluster.leader()).id == leader
        assert not there.cluster.failures


async def test_more_than_the_bound_under_way_does_not_stand_before_a_deletion_either(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The leader has taken them, and its followers cannot: one of these leads, without them."""
    async with watched_cluster() as there:
        leader, second, third = await there.roles()
        await there.cluster[leader].broker.publish(ANYONE, "chat", b"1")
        await there.cluster.converged()
        runs_out_of_room(there, FLOOR // 2 - 1, second, third)
        outcomes = []

        async def publish() -> None:
            outcomes.append(await there.code_of_publish(leader, b'"%b"' % (b"x" * 30_000)))

        async with trio.open_nursery() as nursery:
            for _ in range(FLOOR // 4 // 3 // 30_000 + 10):
                nursery.start_soon(publish)
            await trio.sleep(3)
            with trio.fail_after(20):
                await there.cluster[third].broker.delete_topic(ANYONE, "chat")
        assert set(outcomes) <= {"kept", "storage_full"}, "each knows what became of it"
        await there.cluster.converged()
        for node in (leader, second, third):
            assert not there.cluster[node].replica.state.retained_bytes
        assert (await there.cluster.leader()).id in (second, third)
        assert not there.cluster.failures
    assert "steps aside" in caplog.text


async def test_a_leader_does_not_step_aside_for_who_could_not_lead_without_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two, the other needs its vote, and does not get it: it would go on for ever."""
    async with watched_cluster(2) as there:
        leader = (await there.cluster.leader()).id
        (other,) = there.cluster.running.keys() - {leader}
        runs_out_of_room(there, FLOOR // 8 + 1, other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.code_of_publish, leader, b"1")
            await trio.sleep(20)
            assert (await there.cluster.leader()).id == leader
            there.free[other] = 1 << 40
    assert "steps aside" not in caplog.text


async def test_a_leader_that_cannot_commit_for_another_reason_does_not_step_aside(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched_cluster() as there:
        leader, second, third = await there.roles()
        there.free[second] = there.free[third] = FLOOR - 1  # full, but they take what comes
        await trio.sleep(20)
        assert (await there.cluster.leader()).id == leader
        assert there.cluster[second].broker.ready
    assert "steps aside" not in caplog.text


@pytest.mark.parametrize(
    ("free", "bound"),
    [(FLOOR // 2, 3 * FLOOR // 16), (FLOOR // 8, 0), (0, 0), (FLOOR, 7 * FLOOR // 16)],
)
async def test_a_snapshot_may_take_what_is_free_above_the_reserve_for_each_byte_twice(
    autojump_clock: MockClock, free: int, bound: int
) -> None:
    async with watched_cluster() as there:
        _, second, _ = await there.roles()
        runs_out_of_room(there, free, second)
        assert max(0, there.cluster[second].replica.snapshot_bytes_max) == bound


@pytest.mark.parametrize(
    ("free", "bound"),
    [
        (FLOOR // 2 - 1, FLOOR // 4 // 3),
        (FLOOR // 8 + 3 * 20_000, 20_000),
        (FLOOR // 8 + 1, 0),
        (0, 0),
    ],
)
async def test_a_follower_without_disk_stops_at_a_bound_though_its_leader_goes_on(
    autojump_clock: MockClock, free: int, bound: int
) -> None:
    """An older one, say: it refuses nothing, and stays. Nor do retries count as much again."""
    async with watched_cluster() as there:
        leader, second, third = await there.roles()
        await there.cluster[leader].broker.publish(ANYONE, "chat", b"1")
        await there.cluster.converged()
        room = there.cluster[leader].broker._room
        room.check = lambda size: None  # type: ignore[method-assign]
        room._is_stalled = lambda now: False  # type: ignore[method-assign]
        runs_out_of_room(there, free, second, third)
        before = {name: set(there.cluster.disks[name].entries) for name in (second, third)}

        def taken(name: str) -> int:
            entries = there.cluster.disks[name].entries
            new = entries.keys() - before[name]
            return sum(len(entries[index].data) + ENTRY_BYTES for index in new)

        each = 1000 + 100 + ENTRY_BYTES
        for _ in range(bound // each + 20):
            with trio.move_on_after(2):
                await there.code_of_publish(leader, b'"%b"' % (b"x" * 998))
        await trio.sleep(30)
        for name in (second, third):
            assert max(0, bound - each) <= taken(name) <= bound
            assert there.cluster[name].replica.leader == leader
        there.free[second] = there.free[third] = 1 << 40
        await there.cluster.converged()
        for name in (second, third):
            assert there.cluster[name].replica.tail_bytes == 0, "it begins anew the next time"


async def test_what_need_not_be_written_takes_nothing_of_the_bound(
    autojump_clock: MockClock,
) -> None:
    """What is here already, and what the log is asked about, however often it comes."""
    async with watched_cluster() as there:
        leader, second, _ = await there.roles()
        await there.cluster[leader].broker.publish(ANYONE, "chat", b"1")
        await there.cluster.converged()
        runs_out_of_room(there, FLOOR // 2 - 1, second)
        replica = there.cluster[second].replica
        entry = there.cluster.disks[leader].entries[replica.state.applied_index]

        def append(prev_index: int, entry: Entry) -> None:
            term = replica._core.term
            prev_term = replica._core.log.term(prev_index) or term
            replica.receive(
                Append(
                    sender=leader,
                    receiver=second,
                    term=term,
                    prev_index=prev_index,
                    prev_term=prev_term,
                    entries=(entry,),
                    commit=0,
                )
            )

        for _ in range(50):
            append(entry.index - 1, entry)
            replica.turn()
            append(entry.index + 5, replace(entry, index=entry.index + 6))
            replica.turn()
        assert replica.tail_bytes == 0
        append(entry.index, replace(entry, index=entry.index + 1))
        assert replica.tail_bytes == len(entry.data) + ENTRY_BYTES
