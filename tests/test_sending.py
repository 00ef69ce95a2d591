"""A leader that brings a peer level by snapshots: in rounds, and as long as there is progress."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from repl_broker.command import CreateTopic
from tests.network import Cluster, ClusterNode, running_cluster
from tests.test_cluster import SMALL, history, lagging, publish

COUNT = 120  # of messages: enough to be compacted away, with SMALL and ``lagging``
PACE_SECONDS = 0.02


class Slow:
    """Some requests of a snapshot take their time; how many of each there were."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.seconds: dict[str, list[float]] = {}  # by request: of the next ones
        self._answer = cluster.network._answer
        monkeypatch.setattr(cluster.network, "_answer", self._slowly)

    async def _slowly(self, node: ClusterNode, sender: str, name: str, argument: Any) -> Any:
        if name.startswith("snapshot-"):
            self.asked.append(name)
            if seconds := self.seconds.get(name):
                await trio.sleep(seconds.pop(0) if len(seconds) > 1 else seconds[0])
        return await self._answer(node, sender, name, argument)


@asynccontextmanager
async def load(cluster: Cluster) -> AsyncIterator[None]:
    """Publishes go on meanwhile."""
    leader = await cluster.leader()

    async def publish_on() -> None:
        number = 0
        while True:
            number += 1
            await leader.replica.propose(publish(b'"more %06d"' % number))
            await trio.sleep(PACE_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_on)
        yield
        nursery.cancel_scope.cancel()


def keep_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the log in memory: some hundred messages while a snapshot is sent."""
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_MAX", 5000)
    monkeypatch.setattr("repl_broker.sending.BEHIND_BYTES_MAX", 1000)


async def equal(cluster: Cluster, node: ClusterNode) -> None:
    """The same state, all of whose history can be read, and no entry that nobody needs."""
    leader = await cluster.leader()
    await cluster.converged()
    assert node.replica.state.snapshot() == leader.replica.state.snapshot()
    leader.replica._history._cache.clear()
    node.replica._history._cache.clear()
    assert await history(node.replica) == await history(leader.replica)


async def test_what_is_published_while_history_is_sent_is_sent_in_a_round_of_its_own(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is more than the leader keeps in memory: once the snapshot was installed, the next began,
    and so on without end."""
    keep_little(monkeypatch)
    async with running_cluster(config=SMALL) as cluster:
        leader = await cluster.leader()
        await leader.replica.propose(CreateTopic("chat", messages=100))
        behind = await lagging(cluster, monkeypatch, COUNT)
        slow = Slow(cluster, monkeypatch)
        slow.seconds["snapshot-entries"] = [3, 1.5, 0]
        async with load(cluster):
            node = await cluster.start(behind)
            await cluster.until(lambda: node.replica.state.seq > COUNT, "it to have a snapshot")
            await trio.sleep(2)
            assert leader.replica.state.applied_index - node.replica.state.applied_index < 20
        await equal(cluster, node)
        assert slow.asked.count("snapshot-renew") >= 2
        assert leader.replica.statistics().snapshots_sent == 1
        assert node.replica.statistics().snapshots_received == 1
        snapshot = node.disk.snapshot
        assert snapshot is not None
        below = {index for index in node.disk.entries if index <= snapshot.index}
        assert len(below) <= 110, "what died while it was sent was dropped"


async def test_a_node_that_knows_of_no_rounds_gets_what_it_knows(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep_little(monkeypatch)
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        slow = Slow(cluster, monkeypatch)
        slow.seconds["snapshot-entries"] = [3, 0]
        async with load(cluster):
            node = await cluster.start(behind)
            del node.replica.handlers["snapshot-renew"]
            await cluster.until(
                lambda: node.replica.statistics().snapshots_received > 0, "it to have a snapshot"
            )
        await equal(cluster, node)
        assert slow.asked.count("snapshot-renew") >= 1
        assert "could not send a snapshot" not in caplog.text


async def test_rounds_that_grow_are_given_up_with_a_line_in_the_log(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More is published than can be sent: there is no end to it."""
    keep_little(monkeypatch)
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        slow = Slow(cluster, monkeypatch)
        slow.seconds["snapshot-entries"] = [3, 4, 6, 8, 0]
        async with load(cluster):
            node = await cluster.start(behind)
            await cluster.until(
                lambda: node.replica.statistics().snapshots_received > 0, "it to have a snapshot"
            )
        await equal(cluster, node)
        lines = [r for r in caplog.records if "not sent faster than is published" in r.message]
        assert len(lines) == 1


async def test_a_node_that_installs_for_long_is_waited_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: an earlier version needs minutes for it."""
    monkeypatch.setattr("repl_broker.sending.STILL_SECONDS_MAX", 2)
    monkeypatch.setattr("repl_broker.sending.ASK_SECONDS", 0.5)
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        leader = await cluster.leader()
        answer = cluster.network._answer

        async def reopen(node: ClusterNode) -> None:
            await trio.sleep(8)
            node.gate.open()

        async def slow(node: ClusterNode, sender: str, name: str, argument: Any) -> Any:
            reply = await answer(node, sender, name, argument)
            if name == "snapshot-end":
                node.gate.shut()
                cluster.network.start(reopen, node)
            return reply

        monkeypatch.setattr(cluster.network, "_answer", slow)
        node = await cluster.start(behind)
        await trio.sleep(7)
        assert node.replica.statistics().snapshots_received == 0
        await equal(cluster, node)
        await cluster.until(lambda: leader.replica.statistics().snapshots_sent == 1, "one")
        assert node.replica.statistics().snapshots_received == 1


async def test_a_node_that_refuses_is_asked_again_now_and_then_and_the_reason_is_told_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No snapshot is made for it: that is a lot of work."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("repl_broker.sending.REST_SECONDS_MAX", 0.5)
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        leader = await cluster.leader()
        slow = Slow(cluster, monkeypatch)
        made = 0
        begin = leader.replica._taker.begin

        def counted() -> Any:
            nonlocal made
            made += 1
            return begin()

        monkeypatch.setattr(leader.replica._taker, "begin", counted)
        node = await cluster.start(behind)
        node.replica.holds_back = True
        node.replica.snapshot_bytes_max = 0
        await trio.sleep(2)
        slow.asked.clear()
        made = 0
        await trio.sleep(4)
        assert 4 <= len(slow.asked) <= 4 / 0.5 + 1
        assert set(slow.asked) == {"snapshot-begin"}
        assert made == 0
        told = [r.message for r in caplog.records if "could not send a snapshot" in r.message]
        assert len(told) == 1
        assert "no room" in told[0]
        node.replica.holds_back = False
        node.replica.snapshot_bytes_max = math.inf
        await equal(cluster, node)


@pytest.mark.parametrize("fits", [True, False])
async def test_a_node_without_room_takes_a_snapshot_that_fits_beside_its_store(
    autojump_clock: MockClock,
    fits: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is far behind and takes no entries: nothing else would clear its disk."""
    monkeypatch.setattr("repl_broker.sending.REST_SECONDS_MAX", 0.5)
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        node = await cluster.start(behind)
        node.replica.holds_back = True
        node.replica.snapshot_bytes_max = (1 << 20) if fits else 3000
        await trio.sleep(20)
        assert (node.replica.statistics().snapshots_received > 0) is fits
        if not fits:
            assert "the disk has no room for the snapshot: more than 3000 bytes" in caplog.text
            assert node.disk.staged is None, "what has come of it takes no room"
        node.replica.holds_back = False
        node.replica.snapshot_bytes_max = math.inf
        await equal(cluster, node)
