"""What a hostile review found in whole nodes together, each as the danger that it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from repl_broker.command import CreateTopic
from repl_broker.errors import RequestError
from repl_broker.message import FilterSet
from repl_broker.raft.core import CoreOptions, UpdateMember
from repl_broker.raft.log import Snapshot
from repl_broker.raft.rpc import AppendReply
from repl_broker.writer import Done
from tests.network import Cluster, ClusterNode, running_cluster
from tests.nodes import ANYONE, Gate
from tests.test_cluster import SMALL, history, lagging, publish, seq_of

COUNT = 120  # of messages: enough to be compacted away, with SMALL and ``lagging``


def follower_of(cluster: Cluster, leader: ClusterNode) -> ClusterNode:
    return next(node for node in cluster.running.values() if node is not leader)


async def outcome_of(node: ClusterNode, *data: bytes, key: str | None = None) -> int | str:
    """The seq that a publish got, or the code with which it was refused."""
    try:
        return await seq_of(node.replica, publish(*data, key=key))
    except RequestError as error:
        return error.code


# --- what is said of a publish ---


async def test_no_publish_that_may_be_kept_is_said_to_have_changed_nothing(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 46: the leader took it; the repetition found no leader."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        follower = follower_of(cluster, leader)
        cluster.network.lost.add((leader.id, follower.id))  # no answer comes back

        async def cut() -> None:
            await trio.sleep(0.05)
            cluster.cut(follower.id)

        cluster.network.start(cut)
        assert await outcome_of(follower, b"x", key="k") == "outcome_unknown"
        cluster.heal()
        await cluster.leader()
        await cluster.converged()
        assert await history(leader.replica) == [b"x"]


async def test_what_was_never_sent_off_ends_as_refused_when_its_node_does(
    autojump_clock: MockClock,
) -> None:
    """Not as unknown, which makes its client look for it."""
    async with running_cluster() as cluster:
        node = cluster["n3"]
        cluster.cut("n3")
        await cluster.until(lambda: node.replica.leader is None, "n3 to notice")
        codes: list[int | str] = []

        async def propose() -> None:
            codes.append(await outcome_of(node))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(propose)
            await trio.sleep(0.1)
            cluster.kill("n3")
        assert codes == ["shutting_down"]


async def test_without_a_leader_each_publish_ends_even_when_there_is_no_room(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given up took room for good, and callers waited for it for ever."""
    monkeypatch.setattr("repl_broker.replica.PENDING_BYTES_MAX", 3000)
    async with running_cluster() as cluster:
        node = cluster["n3"]
        cluster.cut("n3")
        await cluster.until(lambda: node.replica.leader is None, "n3 to notice")
        codes: list[int | str] = []

        async def propose() -> None:
            codes.append(await outcome_of(node, b"x" * 1000))

        with trio.fail_after(40):  # however many are before it
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(propose)
        assert {*codes} == {"no_leader", "overloaded"}  # what waited, and what found no room
        assert len(codes) == 60
        assert node.replica._proposals.waiting_bytes == 0
        cluster.heal()
        await cluster.leader()
        assert await outcome_of(node) == 1


async def test_a_publish_behind_the_end_of_the_new_log_is_offered_again(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 47: no entry comes to its place, so that it waited until it was given up."""
    async with running_cluster() as cluster:
        old = await cluster.leader()
        others = [node_id for node_id in cluster.running if node_id != old.id]
        cluster.cut(old.id)
        me = old.replica.membership.find(old.id)
        assert me is not None
        await old.replica.change_membership(UpdateMember(me))  # takes the place of the no-op
        seqs: list[int | str] = []

        async def propose() -> None:
            seqs.append(await outcome_of(old, b"x"))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(propose)
                await cluster.leader(*others)
                cluster.heal()
        assert seqs == [1]


async def test_a_leader_without_room_does_not_ask_itself_again_and_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 22: it kept the processor busy until a majority was back."""
    monkeypatch.setattr("tests.network.OPTIONS", CoreOptions(uncommitted_bytes_max=10_000))
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        followers = [node for node in cluster.running.values() if node is not leader]
        for node in followers:
            node.gate.shut()
        turns = 0
        step = leader.replica._core.step

        def counted(*arguments: Any) -> Any:
            nonlocal turns
            turns += 1
            return step(*arguments)

        monkeypatch.setattr(leader.replica._core, "step", counted)
        seqs: list[int | str] = []

        async def propose() -> None:
            seqs.append(await outcome_of(leader, b"x" * 7000))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(propose)
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                nursery.start_soon(propose)
                for _ in range(500):
                    await trio.lowlevel.checkpoint()  # no time passes
                assert turns < 50
                for node in followers:
                    node.gate.open()
        assert sorted(map(str, seqs)) == ["1", "2"], "what had no room goes when there is some"


# --- snapshots ---


async def behind_a_slow_disk(leader: ClusterNode) -> Gate:
    """Commit one more message, which the leader's own disk does not have yet."""
    disk = Gate()  # the writer's alone; reads go on
    leader.replica._disk.writer = disk
    disk.shut()
    with trio.fail_after(1):
        await leader.replica.propose(publish(b'"one more"'))  # a majority's disks have it
    return disk


async def open_later(disk: Gate) -> None:
    await trio.sleep(0.8)  # less than an election timeout
    disk.open()


async def test_a_snapshot_has_what_the_leader_applied_and_its_disk_does_not_have_yet(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """RAFT.md scenario 31: the state told of a message whose entry was not sent."""
    async with running_cluster(5, config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        disk = await behind_a_slow_disk(await cluster.leader())
        cluster.network.start(open_later, disk)
        node = await cluster.start(behind)
        await cluster.converged()
        assert node.replica.statistics().snapshots_received == 1
        node.replica._history._cache.clear()
        found = await history(node.replica)
        assert found == [*(b'"%06d"' % n for n in range(COUNT)), b'"one more"']
        assert "could not send a snapshot" not in caplog.text, "it waits, and fails at nothing"


async def test_a_learner_gets_what_the_leaders_disk_does_not_have_yet_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenarios 31, 42: and it votes as if it had everything."""
    monkeypatch.setattr("repl_broker.replica.RELEASE_BYTES", 2000)
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_KEPT", 1000)
    async with running_cluster(3, config=SMALL) as cluster:
        leader = await cluster.leader()
        for number in range(COUNT):
            await leader.replica.propose(publish(b'"%06d"' % number))
        send = leader.replica._sender.send

        async def send_behind_a_slow_disk(peer: str) -> None:
            cluster.network.start(open_later, await behind_a_slow_disk(leader))
            await send(peer)

        monkeypatch.setattr(leader.replica._sender, "send", send_behind_a_slow_disk)
        node = await cluster.start("n4", join=("n1",))
        await cluster.all_vote()
        await cluster.converged()
        node.replica._history._cache.clear()
        assert node.replica.statistics().snapshots_received == 1
        found = await history(node.replica)
        assert found == [*(b'"%06d"' % n for n in range(COUNT)), b'"one more"']


async def test_what_is_applied_and_not_on_this_nodes_disk_yet_is_no_damage(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of old history push the newest out of the cache, and the store is looked at."""
    monkeypatch.setattr("repl_broker.history.CACHE_BYTES_MAX", 1000)
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        for number in range(20):
            await leader.replica.propose(publish(b'"%0200d"' % number))
        await cluster.converged()
        disk = Gate()
        node.replica._disk.writer = disk
        disk.shut()
        for number in range(20, 30):
            await leader.replica.propose(publish(b'"%0200d"' % number))
        await cluster.until(lambda: node.replica.state.seq >= 29, "it to have applied them")
        cluster.network.start(open_later, disk)
        found = await history(node.replica)
        assert found == [b'"%0200d"' % number for number in range(len(found))]
        assert len(found) >= 29
        assert not cluster.failures


class LateGate(Gate):
    """Of an install that is done it tells only when ``tell`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.installed = trio.Event()
        self.tell = trio.Event()

    def submit(self, job: Callable[[], None], done: Done, *, quick: bool = False) -> None:
        def heard(error: Exception | None) -> None:
            if self.installed.is_set() and not self.tell.is_set():
                trio.lowlevel.spawn_system_task(self._tell_later, done, error)
            else:
                done(error)

        super().submit(job, heard, quick=quick)

    async def _tell_later(self, done: Done, error: Exception | None) -> None:
        await self.tell.wait()
        done(error)


async def test_nothing_is_called_damage_while_a_snapshot_takes_the_place_of_the_log(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has the new log, and the state is the old one yet: who reads now finds nothing of
    what was trimmed since. It is no loss, and not the end of the node."""
    monkeypatch.setattr("repl_broker.history.CACHE_BYTES_MAX", 100)
    monkeypatch.setattr("repl_broker.replica.RELEASE_BYTES", 2000)
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_KEPT", 1000)
    async with running_cluster(config=SMALL) as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        await leader.replica.propose(CreateTopic("chat", messages=100))
        for number in range(30):
            await leader.replica.propose(publish(b'"early %d"' % number))
        await cluster.converged()
        old = node.replica.state.scan(FilterSet(["chat"]), 0, 1_000_000)
        cluster.cut(node.id)
        for number in range(COUNT):
            await leader.replica.propose(publish(b'"%06d"' % number))
        gate = LateGate()
        install = node.disk.install

        def install_now() -> None:
            install()
            gate.installed.set()

        monkeypatch.setattr(node.disk, "install", install_now)
        node.replica._disk.writer = gate
        found: list[list[bytes]] = []

        async def read() -> None:
            found.append([message.data for message in await node.replica.fetch(old)])

        cluster.heal()
        with trio.fail_after(30):
            await gate.installed.wait()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read)
                await trio.sleep(0.5)
                assert found == [], "they wait for the other half of the switch"
                gate.tell.set()
        assert found == [[], [], []], "all of that is trimmed by now"
        assert not cluster.failures
        await cluster.converged()
        assert await history(node.replica) == [b'"%06d"' % n for n in range(COUNT - 100, COUNT)]


async def test_no_snapshot_of_older_state_is_saved_over_an_installed_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 32: a compaction fell due between the install and its being noticed."""
    async with running_cluster(config=SMALL) as cluster:
        await cluster["n1"].replica.propose(CreateTopic("chat", messages=5))
        behind = await lagging(cluster, monkeypatch, COUNT)
        disk = cluster.disks[behind]
        install, save = disk.install, disk.save_snapshot
        node = await cluster.start(behind)
        upkeep = node.replica._upkeep
        holes: list[str] = []

        def install_and_wake() -> None:
            install()
            upkeep._unsnapped_bytes = 1 << 40
            upkeep._due.set()

        def checked(snapshot: Snapshot, *sums: Any) -> None:
            before = disk.snapshot.index if disk.snapshot else 0
            save(snapshot, *sums)
            found = [entry.index for entry in disk.load().entries]
            if found != [*range(snapshot.index + 1, snapshot.index + 1 + len(found))]:
                holes.append(f"{before} -> {snapshot.index}, then {found}")

        monkeypatch.setattr(disk, "install", install_and_wake)
        monkeypatch.setattr(disk, "save_snapshot", checked)
        await cluster.converged()
        await trio.sleep(1)
        assert node.replica.statistics().snapshots_received == 1
        assert holes == []


async def test_one_snapshot_is_enough_while_much_is_published(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 31: while it was put in place the log that follows it was let go."""
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        leader = await cluster.leader()
        answer = cluster.network._answer

        async def reopen(node: ClusterNode) -> None:
            await trio.sleep(1.5)
            node.gate.open()

        async def slow(node: ClusterNode, sender: str, name: str, argument: Any) -> Any:
            reply = await answer(node, sender, name, argument)
            if name == "snapshot-end":  # to install it takes longer than LOG_BYTES_KEPT lasts
                node.gate.shut()
                cluster.network.start(reopen, node)
            return reply

        monkeypatch.setattr(cluster.network, "_answer", slow)
        stop = trio.Event()

        async def load() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await leader.replica.propose(publish(b'"%06d"' % number))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            node = await cluster.start(behind)
            await trio.sleep(6)
            lag = leader.replica.state.applied_index - node.replica.state.applied_index
            stop.set()
        assert lag < 20
        assert leader.replica.statistics().snapshots_sent == 1
        assert node.replica.statistics().snapshots_received == 1


async def test_time_does_not_jump_where_a_snapshot_was_installed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had passed since the node's own last entry was added to the snapshot's time."""
    monkeypatch.setattr("repl_broker.replica.RELEASE_BYTES", 2000)
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_KEPT", 1000)
    async with running_cluster(config=SMALL) as cluster:
        behind = follower_of(cluster, await cluster.leader())
        cluster.cut(behind.id)
        await trio.sleep(100)
        leader = await cluster.leader(*(cluster.running.keys() - {behind.id}))
        for number in range(COUNT):
            await leader.replica.propose(publish(b"%d" % number))
        cluster.heal()
        await cluster.converged()
        assert behind.replica.statistics().snapshots_received == 1
        await cluster["n1"].broker.move_leader(ANYONE, behind.id)
        await cluster.until(lambda: behind.replica.leads, "it to lead")
        await behind.replica.propose(publish(b"now"))
        assert behind.replica.state.time_ms - cluster.now_ms() < 10_000


async def test_the_store_is_not_tidied_at_every_turn_while_a_snapshot_is_sent(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 35: a compaction was due, was not made, and was due again."""
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch, COUNT)
        leader = await cluster.leader()
        answer = cluster.network._answer
        tidied = 0

        def tidy() -> None:
            nonlocal tidied
            tidied += 1

        async def slow(node: ClusterNode, sender: str, name: str, argument: Any) -> Any:
            if name.startswith("snapshot"):
                await trio.sleep(10)
            return await answer(node, sender, name, argument)

        monkeypatch.setattr(leader.disk, "tidy", tidy)
        monkeypatch.setattr(cluster.network, "_answer", slow)
        await cluster.start(behind)
        await trio.sleep(15)  # it was asked first whether it can take one
        assert leader.replica._upkeep.is_held
        before = tidied
        for number in range(COUNT):
            await leader.replica.propose(publish(b'"%06d"' % number))
        assert tidied - before < 10


# --- reads ---


async def test_reads_that_wait_share_one_question(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 44: many of them filled the leader's connection, and no heartbeat passed."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        await leader.replica.propose(publish())
        seen: list[int] = []

        async def read() -> None:
            await node.replica.read_barrier()
            seen.append(node.replica.state.seq)

        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(read)
        assert seen == [1] * 300
        assert [name for _, _, name in cluster.network.asked].count("read") <= 2


async def test_a_read_that_begins_while_one_is_asked_for_waits_for_the_next(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 44: the answer under way may be older than what was acknowledged since."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        answer = cluster.network._answer
        answered = trio.Event()

        async def slow(at: ClusterNode, sender: str, name: str, argument: Any) -> Any:
            reply = await answer(at, sender, name, argument)
            if name == "read" and not answered.is_set():
                answered.set()
                await trio.sleep(0.5)  # on its way back
            return reply

        monkeypatch.setattr(cluster.network, "_answer", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.replica.read_barrier)
            await answered.wait()
            cluster.network.lost.add((leader.id, node.id))  # the node applies nothing for now
            await leader.replica.propose(publish())
            assert node.replica.state.seq == 0
            cluster.heal()
            await node.replica.read_barrier()
            assert node.replica.state.seq == 1


async def test_a_read_on_a_node_whose_log_has_ended_is_refused(autojump_clock: MockClock) -> None:
    """Requests are answered for a moment more, after the disk has failed."""
    async with running_cluster() as cluster:
        node = follower_of(cluster, await cluster.leader())
        cluster.kill(node.id)
        await trio.sleep(0.1)
        assert node.replica._nursery is None
        with trio.fail_after(10), pytest.raises(RequestError) as refused:
            await node.replica.read_barrier()
        assert refused.value.code == "no_leader"


# --- nonsense ---


@pytest.mark.parametrize("reply", ["nonsense", None, (1, 2), (1, "x", 3)])
async def test_an_answer_that_makes_no_sense_ends_no_node(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, reply: object
) -> None:
    """RAFT.md scenario 49: what it did is not known; and where it was asked for, it is no news."""
    async with running_cluster() as cluster:
        node = follower_of(cluster, await cluster.leader())

        async def call(*_: object, seconds: float) -> object:
            return reply

        with monkeypatch.context() as patch:
            patch.setattr(node.line, "call", call)
            assert await outcome_of(node) == "outcome_unknown"
            with pytest.raises(RequestError) as refused:
                await node.replica.read_barrier()
            assert refused.value.code == "no_leader"
        assert not cluster.failures
        assert await outcome_of(node) == 1


async def test_a_place_that_there_is_not_ends_no_node_and_no_number_depends_on_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 49: the leader says that a publish is the sixth of an entry of one."""
    async with running_cluster() as cluster:
        node = follower_of(cluster, await cluster.leader())
        ask = node.line.call

        async def call(peer: str, name: str, argument: Any, *, seconds: float) -> Any:
            reply = await ask(peer, name, argument, seconds=seconds)
            return (*reply[:2], 5) if name == "propose" else reply

        monkeypatch.setattr(node.line, "call", call)
        assert await outcome_of(node) == 1
        await cluster.converged()
        assert not cluster.failures


async def test_a_peer_that_says_to_have_more_than_there_is_ends_no_leader(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 49: nor keeps it the others from committing."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        node.line.send(
            AppendReply(
                sender=node.id,
                receiver=leader.id,
                term=leader.replica.term,
                accepted=True,
                index=10_000,
                hint_index=0,
                hint_term=0,
            )
        )
        await trio.sleep(0.3)
        assert await outcome_of(leader) == 1
        assert not cluster.failures


# --- joining ---


@pytest.mark.parametrize("restart", [False, True])
async def test_a_node_whose_joining_was_lost_with_a_leader_joins_all_the_same(
    autojump_clock: MockClock, restart: bool
) -> None:
    """RAFT.md scenario 37: it was told that it is a member, by one who could not commit that."""
    async with running_cluster() as cluster:
        old = await cluster.leader()
        others = [node_id for node_id in cluster.running if node_id != old.id]
        cluster.cut(old.id)  # n4 is not known yet: it reaches all
        await cluster.start("n4", join=(old.id, *others))
        new = await cluster.leader(*others)
        await new.replica.propose(publish())
        await trio.sleep(3)
        assert cluster.disks["n4"].identity.adopted
        assert "n4" not in new.replica.membership.ids
        if restart:
            cluster.kill("n4")
            await cluster.start("n4", join=(old.id, *others))
        cluster.heal()
        await cluster.all_vote()
        assert not cluster.failures
        await cluster.converged()


async def test_a_node_may_have_itself_in_its_list_of_whom_to_join(
    autojump_clock: MockClock,
) -> None:
    """All hosts share one list; the node that answers itself is none that refuses."""
    async with running_cluster(1) as cluster:
        cluster.kill("n1")
        await cluster.start("n2", join=("n1", "n2"))
        await trio.sleep(5)
        await cluster.start("n1")
        await cluster.all_vote()
        assert not cluster.failures
