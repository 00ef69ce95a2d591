"""Topics that go when nobody uses them: whole nodes, in mock time.

The last part draws what happens: clocks that jump, readers, failovers.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from repl_broker import idle
from repl_broker.command import Command, DeleteTopics, KeepTopics, Publish
from repl_broker.config import Config
from repl_broker.errors import RequestError
from repl_broker.idle import HOLD_SECONDS, LOOK_SECONDS, SETTLE_SECONDS
from repl_broker.message import Cursor
from repl_broker.proposals import Watch
from repl_broker.replica import Replica
from repl_broker.state import BrokerState, Outcome
from repl_broker.subscription import Subscription
from tests.network import Cluster, ClusterNode, running_cluster
from tests.nodes import ANYONE, Node, configured, events, running_node

IDLE_SECONDS = 20
SOON_SECONDS = SETTLE_SECONDS + 4 * LOOK_SECONDS  # after its time, a topic is gone


@contextmanager
def seen(node: Node | ClusterNode) -> Iterator[list[Command]]:
    """What the node proposes."""
    commands: list[Command] = []
    propose = node.replica.propose

    async def noting(command: Command) -> object:
        commands.append(command)
        return await propose(command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.replica, "propose", noting)
        yield commands


@asynccontextmanager
async def watched_node(config: Config | None = None) -> AsyncIterator[Node]:
    """A node that looks after its idle topics, and has led for a moment."""
    async with running_node(config=config) as node, trio.open_nursery() as nursery:
        nursery.start_soon(node.broker.idle.run)
        await trio.sleep(LOOK_SECONDS)
        yield node
        nursery.cancel_scope.cancel()


def names(node: Node | ClusterNode) -> list[str]:
    return [*node.replica.state.topics]


async def create(node: Node | ClusterNode, *topics: str, seconds: int = IDLE_SECONDS) -> None:
    for topic in topics:
        await node.broker.create_topic(ANYONE, topic, idle_seconds=seconds)


def subscribe(node: Node | ClusterNode, *filters: str, after: str = "latest") -> Subscription:
    return node.broker.subscribe(ANYONE, filters, after)


async def come_back(node: ClusterNode, followed: str, after: str, read: list[bytes]) -> None:
    """As a browser: a stream that ends, as all do where there is no leader, is opened again."""
    while True:
        with suppress(RequestError):
            async with subscribe(node, followed, after=after) as stream:
                async for chunk in stream:
                    read.append(chunk)
        await trio.sleep(1)


async def test_a_topic_that_nobody_uses_goes_when_its_time_is_over_and_not_before(
    autojump_clock: MockClock,
) -> None:
    async with watched_node() as node:
        await node.broker.publish(ANYONE, "stays", b"1")
        await create(node, "job")
        await trio.sleep(IDLE_SECONDS / 2)
        receipt = await node.broker.publish(ANYONE, "job", b"1")
        await trio.sleep(IDLE_SECONDS - 1)
        assert names(node) == ["stays", "job"], "publishing begins its time anew"
        await trio.sleep(1 + SOON_SECONDS)
        assert names(node) == ["stays"]
        async with subscribe(node, "job", after=receipt.first_id) as stream:
            found = events([await stream.__anext__() for _ in range(3)])
        assert {event.get("event") for event in found} == {
            "subscribed",
            "topic-deleted",
            "gap",
        } or {event.get("event") for event in found} >= {"topic-deleted"}


@pytest.mark.parametrize("followed", ["job.1", "job.*", ">"])
async def test_a_stream_keeps_what_it_follows_and_its_time_begins_when_that_ends(
    followed: str,
    autojump_clock: MockClock,
) -> None:
    async with watched_node() as node:
        await create(node, "job.1")
        with seen(node) as commands:
            async with subscribe(node, followed):
                await trio.sleep(10 * IDLE_SECONDS)
            kept = [c for c in commands if isinstance(c, KeepTopics)]
            assert {c.names for c in kept} == {("job.1",)}
            assert 30 <= len(kept) <= 40, "once in a quarter of its time"
            await trio.sleep(IDLE_SECONDS * 3 / 4 - 1)
            assert names(node) == ["job.1"]
            await trio.sleep(IDLE_SECONDS / 4 + 1 + SOON_SECONDS)
        assert names(node) == []


async def test_a_stream_that_ends_between_two_looks_was_there(autojump_clock: MockClock) -> None:
    async with watched_node() as node:
        await create(node, "job.1", "job.2", seconds=4)
        for _ in range(100):
            async with subscribe(node, "job.1"), subscribe(node, "*.2"):
                pass
            await trio.sleep(0.7)
        assert names(node) == ["job.1", "job.2"]


async def test_what_was_opened_between_two_looks_is_bounded(autojump_clock: MockClock) -> None:
    async with running_node() as node:
        await create(node, "job")
        for number in range(2 * idle.OPENED_MAX):
            node.broker.idle.opened([f"job.{number}"])
        assert len(node.broker.idle._opened) == idle.OPENED_MAX


async def test_nothing_is_written_while_no_topic_may_go(autojump_clock: MockClock) -> None:
    async with watched_node() as node:
        await node.broker.publish(ANYONE, "stays", b"1")
        await create(node, "job", seconds=10_000)
        applied = node.replica.state.applied_index
        async with subscribe(node, ">"):
            await trio.sleep(2400)
        assert node.replica.state.applied_index == applied


async def test_many_topics_go_in_entries_of_bounded_size(autojump_clock: MockClock) -> None:
    async with watched_node() as node:
        await create(node, *(f"job.{number}" for number in range(2500)))
        for name in ("job.7", "job.9"):
            await node.replica.propose(Publish(name, (b"1",) * 9000))
        with seen(node) as commands, pytest.MonkeyPatch.context() as patch:
            patch.setattr(idle, "BATCH_MESSAGES", 10_000)
            await trio.sleep(IDLE_SECONDS + SOON_SECONDS)
        assert names(node) == []
        parts = [c.names for c in commands if isinstance(c, DeleteTopics)]
        assert parts[0] == tuple(f"job.{number}" for number in range(10)), "bounded by messages"
        assert sum(map(len, parts)) == 2500
        assert max(map(len, parts)) == idle.BATCH_TOPICS, "bounded by their number"


async def test_the_default_holds_for_topics_that_say_nothing(autojump_clock: MockClock) -> None:
    retention = replace(Config().topics.retention, idle_seconds=IDLE_SECONDS)
    config = configured(topics={"retention": retention})
    async with watched_node(config=config) as node:
        await node.broker.publish(ANYONE, "visitor.1", b"1")
        await node.broker.create_topic(ANYONE, "stays", idle_seconds=0)
        view = await node.broker.topic(ANYONE, "visitor.1")
        assert view.retention.idle_seconds == IDLE_SECONDS
        await trio.sleep(IDLE_SECONDS + SOON_SECONDS)
        assert names(node) == ["stays"]


# --- several nodes, and what may happen to them ---


async def follower_of(cluster: Cluster) -> ClusterNode:
    leader = await cluster.leader()
    return next(node for node in cluster.running.values() if node is not leader)


async def test_streams_of_any_node_keep_a_topic(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        leader, follower = await cluster.leader(), await follower_of(cluster)
        await create(follower, "job", "other")
        async with subscribe(follower, "job"):
            await trio.sleep(5 * IDLE_SECONDS)
            assert names(leader) == ["job"]
        await trio.sleep(IDLE_SECONDS + SOON_SECONDS)
        await cluster.converged()
        assert [names(node) for node in cluster.running.values()] == [[], [], []]


async def test_a_new_leader_gives_streams_the_time_to_come_back(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        await create(leader, "job", "other")
        async with subscribe(leader, "job"):
            await trio.sleep(IDLE_SECONDS / 2)
            cluster.kill(leader.id)
        node = await cluster.leader()
        await trio.sleep(HOLD_SECONDS / 2)  # its time is over, but its reader is on the way
        assert names(node) == ["job", "other"]
        async with subscribe(await follower_of(cluster), "job"):
            await trio.sleep(HOLD_SECONDS)
            assert names(node) == ["job"], "and what is not used does go"


async def test_what_is_new_since_a_leader_began_does_not_wait(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        cluster.kill((await cluster.leader()).id)
        node = await cluster.leader()
        await trio.sleep(LOOK_SECONDS)
        await create(node, "job", seconds=2)
        await trio.sleep(2 + SOON_SECONDS)
        assert names(node) == []


async def test_a_restart_after_a_long_time_removes_nothing_that_is_followed_again(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        await create(await cluster.leader(), "job", "other")
        await cluster.converged()
        for node_id in [*cluster.running]:
            cluster.kill(node_id)
        cluster.clock.now_ms += 3_600_000
        for node_id in ("n1", "n2", "n3"):
            await cluster.start(node_id)
        node = await cluster.leader()
        await trio.sleep(30)  # as long as clients may wait between two tries
        async with subscribe(await follower_of(cluster), "job"):
            await trio.sleep(HOLD_SECONDS)
            assert names(node) == ["job"]


async def test_a_clock_that_jumps_ahead_removes_nothing_that_is_followed(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        await create(leader, "job", "other")
        async with subscribe(await follower_of(cluster), "job"):
            cluster.clock.now_ms += 86_400_000
            await trio.sleep(HOLD_SECONDS + 2 * IDLE_SECONDS)
            assert names(leader) == ["job"]


async def test_nothing_but_the_removal_is_written(autojump_clock: MockClock) -> None:
    async with watched_node() as node:
        await create(node, "job")
        with seen(node) as commands:
            await trio.sleep(IDLE_SECONDS + SOON_SECONDS)
        assert [type(command) for command in commands] == [DeleteTopics]


async def test_a_node_that_is_cut_off_for_a_while_keeps_its_topics_and_for_long_does_not(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        leader, follower = await cluster.leader(), await follower_of(cluster)
        await create(leader, "job", seconds=100)
        await follower.replica.read_barrier()
        cursor = str(Cursor(follower.hub.epoch, follower.replica.state.seq))
        read: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back, follower, "job", cursor, read)
            await trio.sleep(60)
            cluster.cut(follower.id)
            await trio.sleep(60)
            cluster.heal()
            await trio.sleep(300)
            assert names(leader) == ["job"]
            assert b"topic-deleted" not in b"".join(read)
            cluster.cut(follower.id)
            await trio.sleep(100 + SOON_SECONDS)
            assert names(leader) == []
            cluster.heal()
            await cluster.until(lambda: b"topic-deleted" in b"".join(read), "the stream's end")
            nursery.cancel_scope.cancel()


async def test_a_topic_that_is_used_at_the_last_moment_stays(autojump_clock: MockClock) -> None:
    async with running_node() as node:
        await create(node, "job")
        used = node.replica.state.topics["job"].used_index
        await trio.sleep(IDLE_SECONDS + 1)
        await node.broker.publish(ANYONE, "job", b"1")
        await node.replica.propose(DeleteTopics(("job",), (used,)))
        assert names(node) == ["job"]


async def test_what_could_not_be_told_is_told_later(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        leader, follower = await cluster.leader(), await follower_of(cluster)
        await create(leader, "job")
        await follower.replica.read_barrier()
        await trio.sleep(IDLE_SECONDS / 2)
        cluster.cut(follower.id)
        async with subscribe(follower, "job"):
            pass
        with pytest.raises(RequestError):
            await follower.broker.publish(ANYONE, "x", b"1")
        cluster.heal()
        await trio.sleep(IDLE_SECONDS * 3 / 4)
        assert names(leader) == ["job"]


# --- clocks that are wrong ---


@asynccontextmanager
async def ticking(cluster: Cluster) -> AsyncIterator[None]:
    """Nodes' clocks go on, but for how much they are ahead."""

    async def tick() -> None:
        while True:
            await trio.sleep(0.25)
            cluster.clock.now_ms += 250

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        yield
        nursery.cancel_scope.cancel()


async def test_a_leaders_clock_that_is_ahead_for_a_moment_removes_nothing_in_use(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster, ticking(cluster):
        leader = await cluster.leader()
        await create(leader, "used", "followed", seconds=600)
        async with subscribe(await follower_of(cluster), "followed"):
            await trio.sleep(HOLD_SECONDS + 10)
            await leader.broker.publish(ANYONE, "used", b"1")
            cluster.ahead_ms[leader.id] = 3_600_000
            await leader.broker.publish(ANYONE, "other", b"1")  # the log's time is ahead, too
            await trio.sleep(5)
            cluster.ahead_ms.clear()
            await trio.sleep(590)
            assert names(leader) == ["used", "followed", "other"]
            await trio.sleep(5 + SOON_SECONDS)
            assert names(leader) == ["followed", "other"]


@pytest.mark.parametrize("ahead_ms", [12 * 3_600_000, -12 * 3_600_000])
async def test_a_followers_wrong_clock_makes_it_tell_no_more_than_others(
    ahead_ms: int,
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster, ticking(cluster):
        leader, follower = await cluster.leader(), await follower_of(cluster)
        await create(leader, "job.1", "job.2", seconds=400)
        cluster.ahead_ms[follower.id] = ahead_ms
        with seen(follower) as commands:
            async with subscribe(follower, "job.*"):
                await trio.sleep(1000)
        assert len(commands) == 1000 // 100
        assert all(isinstance(command, KeepTopics) for command in commands)


async def test_a_stream_of_a_node_that_has_just_begun_keeps_what_was_nearly_over(
    autojump_clock: MockClock,
) -> None:
    """The node cannot know how long ago it was used, by whatever clock."""
    async with running_cluster(3) as cluster:
        leader, follower = await cluster.leader(), await follower_of(cluster)
        await create(leader, "job", seconds=200)
        await cluster.converged()
        await trio.sleep(190)
        cluster.kill(follower.id)
        follower = await cluster.start(follower.id)
        await follower.replica.read_barrier()
        async with subscribe(follower, "job"):
            await trio.sleep(100)
            assert names(leader) == ["job"]


async def test_what_a_snapshot_brought_was_used_nobody_knows_when(
    autojump_clock: MockClock,
) -> None:
    async with running_node() as node:
        broker_idle = node.broker.idle
        await create(node, "job", seconds=200)
        async with subscribe(node, "job"):
            await broker_idle._keep()
            await trio.sleep(LOOK_SECONDS)
            await create(node, "other", seconds=200)
            with seen(node) as commands:
                await broker_idle._keep()
                assert commands == [], "it was used just now"
                restored = BrokerState.restore(node.replica.state.snapshot())
                restored.generation = node.replica.state.generation + 1
                node.replica.state = restored
                await broker_idle._keep()
                assert commands == [KeepTopics(("job",))]


async def test_a_new_leader_goes_by_what_it_saw_before_it_led(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        await create(leader, "job", seconds=200)
        await trio.sleep(150)
        cluster.kill(leader.id)
        node = await cluster.leader()
        await trio.sleep(HOLD_SECONDS + SOON_SECONDS)
        assert names(node) == []


async def test_a_leader_that_lost_its_reign_midway_removes_no_more(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        await create(leader, *(f"job.{number}" for number in range(9)), seconds=100)
        await trio.sleep(99)
        propose, removals = leader.replica.propose, 0

        async def losing(command: Command) -> object:
            nonlocal removals
            removals += isinstance(command, DeleteTopics)
            outcome = await propose(command)
            if isinstance(command, DeleteTopics) and leader.replica.leads:
                await leader.replica.hand_over()
            return outcome

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(idle, "BATCH_TOPICS", 2)
            patch.setattr(leader.replica, "propose", losing)
            await trio.sleep(1 + SOON_SECONDS)
        assert removals == 1
        assert (await cluster.leader()) is not leader
        await trio.sleep(HOLD_SECONDS)
        assert names(await cluster.leader()) == [], "the next one does"


@dataclass
class Model:
    """When topics were last used, by time as it passes."""

    published: dict[str, float] = field(default_factory=dict)
    followed: dict[str, float] = field(default_factory=dict)
    following: dict[str, int] = field(default_factory=dict)
    spared_until: dict[str, float] = field(default_factory=dict)  # it was over when it was used

    def use(self, topic: str) -> None:
        if not self.following.get(topic) and self.idle_seconds(topic) > IDLE_SECONDS * 3 / 4 - 1:
            self.spared_until[topic] = trio.current_time() + 2 * SETTLE_SECONDS

    def idle_seconds(self, topic: str) -> float:
        """For how long; what streams follow counts up to a quarter of the time more."""
        now = trio.current_time()
        if self.following.get(topic):
            return 0
        since_followed = now - self.followed.get(topic, -1e9) + IDLE_SECONDS / 4
        return min(now - self.published.get(topic, -1e9), since_followed)


class Story:
    """What happens to a cluster, drawn at random; it is held to the model meanwhile."""

    TOPICS = ("a", "b", "c", "d")

    def __init__(self, cluster: Cluster, seed: int, nursery: trio.Nursery) -> None:
        self.cluster = cluster
        self.draw = random.Random(seed)
        self.nursery = nursery
        self.model = Model()
        self.removed = 0

    def check(self, command: Command, node: ClusterNode) -> None:
        if not isinstance(command, DeleteTopics):
            return
        for name in command.names:
            if name in node.replica.state.topics:
                continue  # it was used meanwhile
            self.removed += 1
            if trio.current_time() > self.model.spared_until.get(name, 0):
                assert self.model.idle_seconds(name) >= IDLE_SECONDS, name

    async def publish(self) -> None:
        topic, node = self.draw.choice(self.TOPICS), self.any_node()
        self.model.use(topic)
        with suppress(RequestError):
            await node.broker.publish(ANYONE, topic, b"1")
            self.model.published[topic] = trio.current_time()

    async def follow(self) -> None:
        topic, node = self.draw.choice(self.TOPICS), self.any_node()
        self.nursery.start_soon(self._follow, topic, node, self.draw.uniform(0, 60))

    async def _follow(self, topic: str, node: ClusterNode, seconds: float) -> None:
        end = trio.current_time() + seconds
        async with subscribe(node, topic):
            self.model.use(topic)
            self.model.following[topic] = self.model.following.get(topic, 0) + 1
            while trio.current_time() < end:
                await trio.sleep(0.1)
                if node not in self.cluster.running.values():
                    break  # a reader does not outlive its node
            self.model.following[topic] -= 1
            self.model.followed[topic] = trio.current_time()

    async def move_clock(self) -> None:
        node_id = self.draw.choice(["n1", "n2", "n3"])
        ahead_ms = self.draw.choice([0, 0, 30_000, 3_600_000, -30_000, -3_600_000])
        self.cluster.ahead_ms[node_id] = ahead_ms

    async def fail_over(self) -> None:
        node = self.draw.choice([await self.cluster.leader(), self.any_node()])
        self.cluster.kill(node.id)
        await self.cluster.leader()
        await trio.sleep(self.draw.uniform(0, 5))
        await self.cluster.start(node.id)
        await self.cluster.leader()

    async def hand_over(self) -> None:
        await (await self.cluster.leader()).replica.hand_over()

    def any_node(self) -> ClusterNode:
        return self.draw.choice([*self.cluster.running.values()])


@pytest.mark.parametrize("seed", range(6, 11))
async def test_whatever_clocks_do_what_is_used_stays_and_what_is_idle_goes_at_last(
    seed: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention = replace(Config().topics.retention, idle_seconds=IDLE_SECONDS)
    config = configured(topics={"retention": retention})
    monkeypatch.setattr(idle, "HOLD_SECONDS", 10)  # else hardly anything would go
    async with (
        running_cluster(3, config) as cluster,
        ticking(cluster),
        trio.open_nursery() as nursery,
    ):
        story = Story(cluster, seed, nursery)
        propose = Replica.propose

        async def checked(
            replica: Replica, command: Command, watch: Watch | None = None
        ) -> Outcome:
            outcome = await propose(replica, command, watch)
            story.check(command, next(n for n in nodes if n.replica is replica))
            return outcome

        monkeypatch.setattr(Replica, "propose", checked)
        nodes = [*cluster.running.values()]
        acts = [story.publish] * 8 + [story.follow] * 4 + [story.move_clock] * 3
        acts += [story.fail_over, story.hand_over]
        for _ in range(150):
            await story.draw.choice(acts)()
            nodes += [n for n in cluster.running.values() if n not in nodes]
            await trio.sleep(story.draw.choice([0.1, 1, 1, 5, 12]))
        await trio.sleep(60 + IDLE_SECONDS * 5 / 4 + 10 + SOON_SECONDS)
        assert names(await cluster.leader()) == []
        assert story.removed >= len(story.TOPICS)
        nursery.cancel_scope.cancel()
