"""Whole nodes together: replication, forwarding, failover, snapshots, members, streams."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from repl_broker.command import CreateTopic, DeleteTopic, Publish
from repl_broker.errors import ConfigError, OutcomeUnknownError, RequestError, StorageError
from repl_broker.handshake import Hello
from repl_broker.message import FilterSet
from repl_broker.raft.log import Snapshot
from repl_broker.raft.rpc import Append, AppendReply, Rpc
from repl_broker.replica import LOOK_SECONDS_MIN, Replica
from repl_broker.state import Applied, Published, TopicChanged
from repl_broker.transport import PeerRefusedError, PeerUnreachableError
from tests.network import OPTIONS, Cluster, running_cluster
from tests.nodes import ANYONE, Disk, configured, events


def publish(*data: bytes, topic: str = "chat", key: str | None = None) -> Publish:
    return Publish(topic, data or (b"1",), key, b"digest" if key else b"")


async def history(replica: Replica, topic: str = "chat") -> list[bytes]:
    locations = replica.state.scan(FilterSet([topic]), 0, 1_000_000)
    return [message.data for message in await replica.fetch(locations)]


async def seq_of(replica: Replica, command: Publish) -> int:
    outcome = await replica.propose(command)
    assert isinstance(outcome, Published)
    return outcome.first_seq


# --- replication ---


async def test_a_publish_through_any_node_reaches_all_in_one_order(
    autojump_clock: MockClock,
) -> None:
    """Promise 1; RAFT.md scenario 50."""
    async with running_cluster() as cluster:
        seqs = [
            await seq_of(cluster[node].replica, publish(b"%d" % number))
            for number, node in enumerate(["n2", "n1", "n3", "n2", "n3", "n1"])
        ]
        assert seqs == [1, 2, 3, 4, 5, 6]
        await cluster.converged()
        for node in cluster.running.values():
            assert await history(node.replica) == [b"%d" % n for n in range(6)]


async def test_what_a_node_acknowledged_it_has_applied_itself(autojump_clock: MockClock) -> None:
    """Who publishes through a follower reads there what it wrote."""
    async with running_cluster() as cluster:
        for _ in range(20):
            seq = await seq_of(cluster["n3"].replica, publish())
            assert cluster["n3"].replica.state.seq >= seq


async def test_many_publishers_on_all_nodes_are_served_in_batches(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                node = cluster[f"n{number % 3 + 1}"]
                nursery.start_soon(node.replica.propose, publish(b"%d" % number))
        await cluster.converged()
        assert cluster["n1"].replica.state.seq == 300
        assert sorted(map(int, await history(cluster["n2"].replica))) == [*range(300)]
        assert cluster["n1"].replica.statistics().last_index < 100, "what waits goes together"


async def test_a_leader_with_a_publisher_is_hardly_woken_for_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The news of a commit waits for the next append, up to 3 ms. An alarm for it that goes
    off after that append costs as much as a publish."""
    async with running_cluster() as cluster:
        leader = (await cluster.leader()).replica
        wakings, rounds = 0, leader._rounds

        class Counted:
            def unpark_all(self) -> None:
                nonlocal wakings
                wakings += 1
                rounds.unpark_all()

        monkeypatch.setattr(leader, "_rounds", Counted())
        began = trio.current_time()
        for _ in range(300):
            await seq_of(leader, publish())
        heartbeats = (trio.current_time() - began) / OPTIONS.heartbeat_interval_seconds
        assert 0 < wakings < 3 * heartbeats


async def test_a_follower_acknowledges_an_entry_before_it_applies_the_ones_before(
    autojump_clock: MockClock,
) -> None:
    """The leader's clients wait for the first, and nobody for the second."""
    async with running_cluster() as cluster:
        leader, follower = cluster["n1"].replica, cluster["n2"]
        done: list[tuple[str, int]] = []
        send, tell, receive = (
            follower.line.send,
            follower.replica._on_applied,
            follower.replica.receive,
        )

        def note_sent(rpc: Rpc) -> None:
            if isinstance(rpc, AppendReply):
                done.append(("acknowledged", rpc.index))
            send(rpc)

        def note_applied(applied: Applied) -> None:
            done.append(("applied", follower.replica.state.applied_index))
            tell(applied)

        def note_received(rpc: Rpc) -> None:
            applied = follower.replica.state.applied_index
            if isinstance(rpc, Append) and rpc.entries and rpc.commit > applied:
                done.append(("received with news of a commit", rpc.entries[-1].index))
            receive(rpc)

        follower.line.send = note_sent  # type: ignore[method-assign]
        follower.replica._on_applied = note_applied
        follower.replica.receive = note_received  # type: ignore[method-assign]
        for _ in range(20):
            await leader.propose(publish())
        both = [i for i, (what, _) in enumerate(done) if what.startswith("received")]
        assert both, "an entry and the news that others are committed came together"
        for place in both:
            assert done[place + 1] == ("acknowledged", done[place][1])


async def test_an_acknowledged_publish_is_on_the_disks_of_a_majority(
    autojump_clock: MockClock,
) -> None:
    """Promise 2; RAFT.md scenario 24."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        followers = [node for node in cluster.running.values() if node is not leader]
        for node in followers:
            node.gate.shut()
        done = trio.Event()

        async def propose() -> None:
            await leader.replica.propose(publish(b"kept"))
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(propose)
            await trio.sleep(0.5)
            assert not done.is_set(), "the leader's disk alone is no majority"
            followers[0].gate.open()
            with trio.fail_after(1):
                await done.wait()
        holders = [
            d for d in cluster.disks.values() if any(b"kept" in e.data for e in d.entries.values())
        ]
        assert len(holders) == 2
        followers[1].gate.open()


async def test_every_kind_of_outcome_comes_back_from_the_leader(autojump_clock: MockClock) -> None:
    async with running_cluster() as cluster:
        replica = cluster["n2"].replica
        assert await replica.propose(CreateTopic("a")) == TopicChanged(created=True)
        assert "a" in replica.state.topics
        refused = await replica.propose(CreateTopic("a"))
        assert getattr(refused, "code", None) == "topic_exists"
        assert not hasattr(await replica.propose(DeleteTopic("a")), "code")


# --- forwarding ---


async def test_who_does_not_lead_refuses_what_is_sent_to_it(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 47: forwarding never loops, since nobody sends on."""
    async with running_cluster() as cluster:
        await cluster.leader()
        with pytest.raises(PeerRefusedError, match="does not lead"):
            await cluster["n2"].line.call("n3", "propose", (1, ()), seconds=5)
        assert [name for _, _, name in cluster.network.asked] == ["propose"]


async def test_what_was_meant_for_an_older_term_is_refused(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 47; NRGTermFencedProposals."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        term = leader.replica.term
        with pytest.raises(PeerRefusedError, match="does not lead"):
            await cluster["n2"].line.call(leader.id, "propose", (term - 1, ()), seconds=5)


async def test_a_forward_waits_for_a_leader_and_is_kept_once(autojump_clock: MockClock) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        cluster.kill(leader.id)
        (one, other) = cluster.running.values()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.replica.propose, publish(b"one"))
            nursery.start_soon(other.replica.propose, publish(b"other"))
        await cluster.converged()
        assert sorted(await history(one.replica)) == [b"one", b"other"]


async def test_without_a_leader_a_publish_is_refused_and_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    """Not a false 504: nothing was appended anywhere."""
    async with running_cluster() as cluster:
        cluster.cut("n3")
        await cluster.until(lambda: cluster["n3"].replica.leader is None, "n3 to notice")
        began = trio.current_time()
        with pytest.raises(RequestError, match="knows no leader") as refused:
            await cluster["n3"].replica.propose(publish())
        assert refused.value.code == "no_leader"
        waited = trio.current_time() - began
        assert waited == pytest.approx(cluster["n3"].replica.patience, abs=2 * LOOK_SECONDS_MIN)
        cluster.heal()
        await cluster.leader()
        await cluster.converged()
        assert cluster["n1"].replica.state.seq == 0


# --- a leader is lost ---


async def test_an_isolated_leader_steps_down_and_its_publishes_end_unknown(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 10."""
    async with running_cluster() as cluster:
        old = await cluster.leader()
        cluster.cut(old.id)
        with trio.fail_after(10), pytest.raises(OutcomeUnknownError):
            await old.replica.propose(publish())
        assert not old.replica.leads


async def test_a_publish_that_an_old_leader_lost_is_offered_again(
    autojump_clock: MockClock,
) -> None:
    """Another entry at its place proves that it is in no committed log."""
    async with running_cluster() as cluster:
        old = await cluster.leader()
        cluster.cut(old.id)
        others = [node_id for node_id in cluster.running if node_id != old.id]
        seqs: dict[str, int] = {}

        async def propose(node_id: str, data: bytes) -> None:
            seqs[node_id] = await seq_of(cluster[node_id].replica, publish(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(propose, old.id, b"first")
            new = await cluster.leader(*others)
            await propose(new.id, b"second")
            cluster.heal()
        assert seqs == {new.id: 1, old.id: 2}
        await cluster.converged()
        assert await history(old.replica) == [b"second", b"first"]


async def test_a_publish_that_the_next_leader_has_keeps_its_outcome(
    autojump_clock: MockClock,
) -> None:
    """The old leader appended it and was lost; it is committed all the same, once."""
    async with running_cluster() as cluster:
        old = await cluster.leader()
        others = [node_id for node_id in cluster.running if node_id != old.id]
        for node_id in others:  # they hear the leader, and it does not hear them
            cluster.network.lost.add((node_id, old.id))
        async with trio.open_nursery() as nursery:
            outcome: list[int] = []

            async def propose() -> None:
                outcome.append(await seq_of(old.replica, publish(b"only")))

            nursery.start_soon(propose)
            await cluster.until(lambda: not old.replica.leads, "the leader to step down")
            cluster.heal()
        assert outcome == [1]
        await cluster.converged()
        assert await history(old.replica) == [b"only"]


@pytest.mark.parametrize("key", [None, "k1"])
async def test_a_forward_to_a_leader_that_dies_with_it_is_repeated_and_kept_once(
    autojump_clock: MockClock, key: str | None
) -> None:
    async with running_cluster() as cluster:
        old = await cluster.leader()
        follower = next(node for node in cluster.running.values() if node is not old)
        old.gate.shut()  # it has the publish, and its disk does not
        outcomes: list[object] = []

        async def propose() -> None:
            outcomes.append(await seq_of(follower.replica, publish(b"x", key=key)))

        async with trio.open_nursery() as nursery:
            cluster.network.lost.add((old.id, follower.id))  # no answer to it comes back
            nursery.start_soon(propose)
            await trio.sleep(0.05)
            cluster.kill(old.id)
            cluster.heal()
        await cluster.converged()
        assert await history(follower.replica) == [b"x"]
        assert outcomes == [1]
        if key:
            again = await follower.replica.propose(publish(b"x", key=key))
            assert again == Published(1, 1, again.time_ms, replayed=True)  # type: ignore[union-attr]


async def test_a_handover_is_no_loss_of_a_leader_in_any_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told by all at info, with the term that ends."""
    async with running_cluster(3) as cluster:
        old = await cluster.leader()
        caplog.clear()
        caplog.set_level(logging.INFO, "repl_broker.replica")
        term = old.replica.term
        await old.replica.hand_over()
        await cluster.converged()
        told = f"the leader hands over leader={old.id} term={term}"
        assert caplog.messages.count(told) == 3
        lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert not [x for x in lines if "lost its leader" in x or "does not lead" in x]


async def test_a_leader_that_dies_is_lost_in_its_own_term(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Though a handover came before it."""
    async with running_cluster(3) as cluster:
        await (await cluster.leader()).replica.hand_over()
        await cluster.converged()
        old = await cluster.leader()
        term = old.replica.term
        caplog.clear()
        cluster.kill(old.id)
        await cluster.leader(*({"n1", "n2", "n3"} - {old.id}))
        lost = [x for x in caplog.messages if x.startswith(f"lost its leader={old.id} ")]
        assert len(lost) == 2
        assert all(f" term={term} " in x for x in lost)


async def test_hand_over_loses_no_publish_and_answers_none_falsely(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        old = await cluster.leader()
        answered: list[int] = []

        async def propose(number: int) -> None:
            node = cluster[f"n{number % 3 + 1}"]
            answered.append(await seq_of(node.replica, publish(b"%d" % number)))

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(propose, number)
                if number == 30:
                    nursery.start_soon(old.replica.hand_over)
                await trio.sleep(0.001)
        assert not old.replica.leads
        assert sorted(answered) == [*range(1, 61)]
        await cluster.converged()


@pytest.mark.parametrize("what", ["publish", "read", "change of the members"])
async def test_a_refusal_that_comes_after_the_news_of_the_next_leader_costs_no_wait(
    autojump_clock: MockClock, what: str
) -> None:
    """Who is asked for the second time then is known: no more news will come."""
    async with running_cluster() as cluster:
        old = await cluster.leader()
        target, third = (node for node in cluster.running.values() if node is not old)
        cluster.network.ask_seconds[old.id] = 0.02
        await old.replica.transfer(target.id)
        began = trio.current_time()
        match what:
            case "publish":
                await third.replica.propose(publish())
            case "read":
                await third.replica.read_barrier()
            case _:
                with pytest.raises(RequestError, match="has no member"):
                    await third.members.remove("n9")
        asked = [to for sender, to, _ in cluster.network.asked if sender == third.id]
        assert asked[0] == old.id
        assert target.id in asked
        assert trio.current_time() - began < OPTIONS.heartbeat_interval_seconds / 2


async def test_a_failing_disk_ends_its_node_and_the_others_go_on(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 27."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        leader.disk.error = StorageError("the disk is gone")
        follower = next(node for node in cluster.running.values() if node is not leader)
        await follower.replica.propose(publish(key="again"))
        assert isinstance(cluster.failures[leader.id], StorageError)
        assert follower.replica.state.seq == 1


async def test_a_node_that_lost_what_it_had_acknowledged_ends_and_harms_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """RAFT.md scenario 27: its disk has lied. Asked again and again, it never got level."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        follower = next(node for node in cluster.running.values() if node is not leader)
        for number in range(5):
            await leader.replica.propose(publish(b"%d" % number))
        await cluster.converged()
        last = leader.replica.commit_index
        cluster.kill(follower.id)
        for index in (last - 1, last):
            del follower.disk.entries[index]
        cluster.network.lost.add((follower.id, leader.id))  # it is dialled before it has dialled
        await cluster.start(follower.id)
        await trio.sleep(OPTIONS.heartbeat_interval_seconds * 2)
        cluster.network.lost.clear()
        await cluster.until(lambda: follower.id in cluster.failures, "it to end")
        failure = cluster.failures[follower.id]
        assert isinstance(failure, StorageError)
        assert f"up to entry {last} at least, and its log ended at {last - 2}" in str(failure)
        assert f"cluster remove {follower.id}" in str(failure)
        (line,) = [r.getMessage() for r in caplog.records if "has lost what it had" in r.message]
        assert line.endswith(f"node={follower.id} acknowledged={last} last_index={last - 2}")

        assert await seq_of(leader.replica, publish(b"goes on")) == 6
        assert await cluster.leader(*cluster.running) is leader

        again = Replica(follower.disk, leader.replica._settings, now_ms=leader.replica._now_ms)
        with pytest.raises(StorageError, match="lost what it had acknowledged"):
            await again.load()


async def test_a_leader_whose_disk_hangs_is_replaced(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 48."""
    async with running_cluster() as cluster:
        old = await cluster.leader()
        old.gate.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.replica.propose, publish(b"hangs", key="k"))
            others = [node_id for node_id in cluster.running if node_id != old.id]
            new = await cluster.leader(*others)
            assert await seq_of(new.replica, publish(b"goes on")) in (1, 2)
            old.gate.open()
        await cluster.converged()


async def test_all_nodes_restart_at_once(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 13."""
    async with running_cluster() as cluster:
        for number in range(10):
            await cluster["n2"].replica.propose(publish(b"%d" % number))
        for node_id in [*cluster.running]:
            cluster.kill(node_id)
        for node_id in ("n1", "n2", "n3"):
            await cluster.start(node_id)
        await cluster.leader()
        await cluster["n3"].replica.read_barrier()
        assert await history(cluster["n3"].replica) == [b"%d" % n for n in range(10)]


# --- reads ---


async def test_a_read_on_any_node_sees_what_was_acknowledged_before(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 44."""
    async with running_cluster() as cluster:
        for number in range(1, 6):
            await cluster["n1"].replica.propose(publish())
            await cluster["n3"].replica.read_barrier()
            assert cluster["n3"].replica.state.seq == number


async def test_a_deposed_leader_answers_no_read(autojump_clock: MockClock) -> None:
    async with running_cluster() as cluster:
        old = await cluster.leader()
        cluster.cut(old.id)
        with pytest.raises(RequestError) as refused:
            await old.replica.read_barrier()
        assert refused.value.code == "no_leader"


# --- snapshots ---

SMALL = configured(raft={"snapshot_entries": 50}, topics={})


async def lagging(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, count: int = 300) -> str:
    """Kill a follower; publish until the others have compacted what it lacks. Its id."""
    monkeypatch.setattr("repl_broker.replica.RELEASE_BYTES", 2000)
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_KEPT", 1000)
    leader = await cluster.leader()
    behind = next(node_id for node_id in cluster.running if node_id != leader.id)
    cluster.kill(behind)
    for number in range(count):
        await leader.replica.propose(publish(b'"%06d"' % number))
    return behind


async def test_a_snapshot_is_saved_after_all_that_it_covers(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is applied may be on the disks of others only; a crash must not leave a snapshot
    above the log, or above entries that were never committed."""
    async with running_cluster(config=SMALL) as cluster:
        leader = await cluster.leader()
        slow = next(node for node in cluster.running.values() if node is not leader)
        saved: list[tuple[int, int]] = []
        save = slow.disk.save_snapshot

        def watched(snapshot: Snapshot, *sums: Any) -> None:
            saved.append((snapshot.index, max(slow.disk.entries)))
            save(snapshot, *sums)

        monkeypatch.setattr(slow.disk, "save_snapshot", watched)
        slow.gate.shut()
        for number in range(200):
            await leader.replica.propose(publish(b'"%06d"' % number))
        await trio.sleep(1)
        assert slow.replica.state.seq > 50, "the others are a majority"
        slow.gate.open()
        await cluster.converged()
        await trio.sleep(1)
        assert saved
        assert [place for place in saved if place[0] > place[1]] == []


async def test_a_node_that_lags_too_far_gets_a_snapshot(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 31: with the history that it covers; then it follows the log again."""
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch)
        await cluster.start(behind)
        await cluster.converged()
        assert cluster[behind].replica.statistics().snapshots_received == 1
        wanted = [b'"%06d"' % n for n in range(300)]
        assert await history(cluster[behind].replica) == wanted
        await cluster[behind].replica.propose(publish(b"after"))
        await cluster.converged()
        cluster.kill(behind)
        await cluster.start(behind)
        await cluster.converged()
        assert await history(cluster[behind].replica) == [*wanted, b"after"]


async def test_a_snapshot_brings_only_the_history_that_is_retained(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured(SMALL)
    async with running_cluster(config=config) as cluster:
        await cluster["n1"].replica.propose(CreateTopic("chat", messages=5))
        behind = await lagging(cluster, monkeypatch)
        await cluster.start(behind)
        await cluster.converged()
        replica = cluster[behind].replica
        assert await history(replica) == [b'"%06d"' % n for n in range(295, 300)]
        covered = [
            i for i in cluster.disks[behind].entries if i <= replica.statistics().snapshot_index
        ]
        assert len(covered) <= 5


async def test_a_snapshot_that_is_cut_short_is_sent_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 33: what has arrived in part is never seen."""
    async with running_cluster(config=SMALL) as cluster:
        behind = await lagging(cluster, monkeypatch)
        ends = 0
        answer = cluster.network._answer

        async def lossy(node: object, sender: str, name: str, argument: object) -> object:
            nonlocal ends
            if name == "snapshot-end":
                ends += 1
                if ends == 1:
                    argument = (argument[0], argument[1] + 1)  # type: ignore[index]
            return await answer(node, sender, name, argument)  # type: ignore[arg-type]

        monkeypatch.setattr(cluster.network, "_answer", lossy)
        await cluster.start(behind)
        await cluster.converged()
        assert ends == 2
        assert cluster[behind].replica.statistics().snapshots_received == 1


async def test_streams_on_a_node_that_gets_a_snapshot_miss_nothing(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RAFT.md scenario 50: the node jumps, the stream does not."""
    monkeypatch.setattr("repl_broker.replica.RELEASE_BYTES", 2000)
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_KEPT", 1000)
    async with running_cluster(config=SMALL) as cluster:
        leader = await cluster.leader()
        behind = next(node for node in cluster.running.values() if node is not leader)
        await leader.replica.propose(publish(b"0"))
        await cluster.converged()
        async with behind.broker.subscribe(ANYONE, ["chat"], "earliest") as stream:
            got = await messages(stream, 1)
            cluster.cut(behind.id)
            for number in range(1, 300):
                await leader.replica.propose(publish(b"%d" % number))
            cluster.heal()
            got += await messages(stream, 299)
        assert behind.replica.statistics().snapshots_received == 1
        assert got == [f"{number}" for number in range(300)]


async def messages(stream: object, count: int) -> list[str]:
    """The data of the next ``count`` messages."""
    found: list[str] = []
    with trio.fail_after(60):
        async for chunk in stream:  # type: ignore[attr-defined]
            for event in events([chunk]):
                if "event" in event or "data" not in event:
                    continue
                found.append(event["data"].partition('"data":')[2][:-1])
            if len(found) >= count:
                break
    assert len(found) == count
    return found


# --- streams ---


async def test_a_change_of_leader_ends_no_stream(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 50."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = next(node for node in cluster.running.values() if node is not leader)
        async with node.broker.subscribe(ANYONE, ["chat"]) as stream:
            await node.replica.propose(publish(b"1"))
            got = await messages(stream, 1)
            cluster.kill(leader.id)
            await node.replica.propose(publish(b"2"))
            got += await messages(stream, 1)
        assert got == ["1", "2"]


async def test_a_cursor_that_is_ahead_of_a_node_waits_for_it(autojump_clock: MockClock) -> None:
    """Promise 3; RAFT.md scenario 50."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        behind = next(node for node in cluster.running.values() if node is not leader)
        cluster.network.lost.add((leader.id, behind.id))
        first = await leader.broker.publish(ANYONE, "chat", b"1")
        async with behind.broker.subscribe(ANYONE, ["chat"], first.last_id) as stream:
            subscribed = events([await anext(stream)])
            assert [e.get("event") for e in subscribed if "event" in e] == ["subscribed"]
            cluster.heal()
            await leader.broker.publish(ANYONE, "chat", b"2")
            assert await messages(stream, 1) == ["2"]


async def test_a_cursor_that_no_node_has_reached_is_told(autojump_clock: MockClock) -> None:
    """Promise 4."""
    async with running_cluster() as cluster:
        node = cluster["n2"]
        ahead = f"{node.replica.epoch}-99"
        async with node.broker.subscribe(ANYONE, ["chat"], ahead) as stream:
            chunks = [await anext(stream), await anext(stream)]
        (gap,) = [e for e in events(chunks) if e.get("event") == "gap"]
        assert '"ahead"' in gap["data"]


# --- members ---


async def test_a_node_joins_catches_up_and_gets_its_vote(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 42."""
    async with running_cluster(1) as cluster:
        await cluster["n1"].replica.propose(publish())
        await cluster.start("n2", join=("n1",))
        await cluster.all_vote()
        node = cluster["n2"]
        assert node.replica.epoch == cluster["n1"].replica.epoch
        assert node.hub.epoch == node.replica.epoch
        assert await history(node.replica) == [b"1"]
        view = await node.broker.cluster(ANYONE)
        roles = {m["id"]: m["role"] for m in view["members"]}  # type: ignore[attr-defined]
        assert roles == {"n1": "leader", "n2": "voter"}


async def test_a_newcomer_asks_no_more_while_its_copy_is_on_its_way(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until that has come it is no member, and it takes longer than a leader is waited for."""
    monkeypatch.setattr("repl_broker.replica.RELEASE_BYTES", 2000)
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_KEPT", 1000)
    async with running_cluster(1, config=SMALL) as cluster:
        for _ in range(100):
            await cluster["n1"].replica.propose(publish(bytes(8 << 10)))
        cluster.network.ask_seconds["n2"] = 3.0  # for each piece
        began = trio.current_time()
        node = await cluster.start("n2", join=("n1",))
        await cluster.all_vote()
        assert trio.current_time() - began > 3 * node.replica.patience
        assert node.replica.statistics().snapshots_received == 1
        assert cluster.network.asked.count(("n2", "n1", "join")) == 1


async def test_a_node_may_join_through_any_member(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        through = next(node_id for node_id in cluster.running if node_id != leader.id)
        await cluster.start("n4", join=(through,))
        await cluster.all_vote()


async def test_an_id_that_another_node_has_is_refused_on_both_sides(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        cluster.kill("n3")
        cluster.disks["n3"] = Disk("n3")  # it has lost its data
        await cluster.start("n3", join=("n1",))
        await cluster.until(lambda: "n3" in cluster.failures, "the joiner to be told")
        assert isinstance(cluster.failures["n3"], ConfigError)
        assert "cluster remove n3" in str(cluster.failures["n3"])
        assert cluster["n1"].replica.membership.ids == {"n1", "n2", "n3"}


async def test_a_wiped_node_joins_again_after_its_removal(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 41."""
    async with running_cluster(3) as cluster:
        cluster.kill("n3")
        await cluster["n2"].broker.remove_member(ANYONE, "n3")
        cluster.disks["n3"] = Disk("n3")
        await cluster.start("n3", join=("n1",))
        await cluster.all_vote()
        await cluster.converged()
        assert not cluster["n3"].replica.removed.is_set()


async def test_a_removed_node_hears_of_it(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        removed = next(i for i in cluster.running if i != cluster["n1"].replica.leader)
        await cluster["n1"].broker.remove_member(ANYONE, removed)
        with trio.fail_after(5):
            await cluster[removed].replica.removed.wait()
        (other,) = cluster.running.keys() - {removed, cluster["n1"].replica.leader or ""}
        assert cluster[other].replica.membership.ids == cluster.running.keys() - {removed}


async def test_a_removed_node_is_not_let_in_again_with_its_old_data(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 9."""
    async with running_cluster(3) as cluster:
        removed = next(i for i in cluster.running if i != cluster["n1"].replica.leader)
        cluster.kill(removed)
        admitting = next(iter(cluster.running.values()))
        await admitting.broker.remove_member(ANYONE, removed)
        node = await cluster.start(removed)
        me = node.line.me
        identity = (me.cluster_id, me.node_id, me.incarnation)
        objection = admitting.members.admit(Hello(2, 2, *identity, 0, admitting.id, ""))
        assert objection is not None
        assert "was removed" in objection


async def test_a_leader_that_is_removed_hands_over_and_goes(autojump_clock: MockClock) -> None:
    """RAFT.md scenario 39."""
    async with running_cluster(3) as cluster:
        old = await cluster.leader()
        other = next(node for node in cluster.running.values() if node is not old)
        await other.broker.remove_member(ANYONE, old.id)
        with trio.fail_after(5):
            await old.replica.removed.wait()
        cluster.kill(old.id)
        await cluster.leader()
        assert await seq_of(other.replica, publish()) == 1


Change = Callable[[Cluster], object]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: c["n2"].broker.remove_member(ANYONE, "n9"), "member_not_found"),
        (lambda c: c["n2"].broker.move_leader(ANYONE, "n9"), "member_not_found"),
        (
            lambda c: c["n2"].broker.add_member(ANYONE, "n9", "n9:4081", "http://n9"),
            "member_unreachable",
        ),
        (
            lambda c: c["n2"].broker.add_member(ANYONE, "n9", "n3:4081", "http://n9"),
            "invalid_parameter",
        ),
    ],
    ids=["remove nobody", "move to nobody", "add nobody", "add another"],
)
async def test_a_change_that_cannot_be_is_refused_and_changes_nothing(
    autojump_clock: MockClock, change: Change, code: str
) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        before = leader.replica.statistics().last_index
        with pytest.raises(RequestError) as refused:
            await change(cluster)  # type: ignore[misc]
        assert refused.value.code == code
        assert leader.replica.statistics().last_index == before


async def test_a_node_that_keeps_the_leader_waiting_is_no_loss_of_the_leader(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the leader is about takes longer than one waits for a leader to be found."""

    async def silence(*_: object, seconds: float, **__: object) -> object:
        await trio.sleep(seconds)
        raise PeerUnreachableError("no answer", sent=False)

    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        monkeypatch.setattr(leader.line, "meet", silence)
        for node in [*cluster.running.values()]:
            with pytest.raises(RequestError) as refused:
                await node.broker.add_member(ANYONE, "n9", "n9:4081", "http://n9")
            assert refused.value.code == "member_unreachable"


async def test_a_transfer_that_is_refused_names_the_node(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        away = next(each for each in sorted(cluster.running) if each != leader.id)
        cluster.kill(away)
        await trio.sleep(5)
        with pytest.raises(RequestError) as refused:
            await leader.broker.move_leader(ANYONE, away)
        assert refused.value.code == "member_unreachable"
        assert f"not handed to {away!r}" in refused.value.detail


async def test_the_last_voter_stays(autojump_clock: MockClock) -> None:
    async with running_cluster(1) as cluster:
        with pytest.raises(RequestError) as refused:
            await cluster["n1"].broker.remove_member(ANYONE, "n1")
        assert refused.value.code == "last_voter"


async def test_a_removal_that_would_leave_no_majority_is_refused_by_name(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 37. A slip of the hand, on whichever node: the dead one stays, and one
    that lives is removed."""
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        dead, living = sorted(cluster.running.keys() - {leader.id})
        cluster.kill(dead)
        before = leader.replica.membership
        for node in (leader, cluster[living]):
            for removed in (living, leader.id):
                left = sorted({"n1", "n2", "n3"} - {removed})
                with pytest.raises(RequestError) as refused:
                    await node.broker.remove_member(ANYONE, removed)
                assert refused.value.code == "no_majority"
                assert f"2 of 2 voters must agree ({', '.join(left)}), and 1 can" in str(
                    refused.value
                )
                assert f"Start {dead} first" in str(refused.value)
        assert leader.replica.membership == before
        assert await seq_of(cluster[living].replica, publish()) == 1


async def test_who_is_away_is_removed_first_and_then_the_other_one(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        dead, living = sorted(cluster.running.keys() - {leader.id})
        cluster.kill(dead)
        await cluster[living].broker.remove_member(ANYONE, dead)
        await cluster[living].broker.remove_member(ANYONE, living)
        await cluster.until(lambda: leader.replica.committed_membership.ids == {leader.id}, "it")
        assert await seq_of(leader.replica, publish()) == 1


@pytest.mark.parametrize("through_leader", [True, False])
async def test_a_forced_removal_says_whom_it_waits_for_until_that_one_is_back(
    autojump_clock: MockClock, through_leader: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """RAFT.md scenario 37."""
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        dead, living = sorted(cluster.running.keys() - {leader.id})
        cluster.kill(dead)
        asked = leader if through_leader else cluster[living]
        await asked.broker.remove_member(ANYONE, living, forced=True)
        (line,) = [x for x in caplog.messages if x.startswith("audit action=member.remove")]
        assert "outcome=pending forced=True" in line, "nothing is done before it is committed"
        waits = {
            "joins": [],
            "promotes": [],
            "leaves": [living],
            "voters": sorted((dead, leader.id)),
            "needed": 2,
            "waits_for": [dead],
        }
        for moment in ("it still leads", "it has stepped down"):
            view = await leader.broker.cluster(ANYONE)
            assert view["change_pending"], moment
            assert view["change"] == waits, moment
            await cluster.until(lambda: leader.replica.leader is None, "it to step down")
        with pytest.raises(RequestError, match=f"The removal of {living} .* Start {dead}"):
            leader.broker.check_ready()
        await cluster.start(dead)
        await cluster.leader(leader.id, dead)
        await cluster.until(lambda: not leader.replica.change_pending, "the removal's commit")
        assert (await leader.broker.cluster(ANYONE))["change"] is None
        assert await seq_of(leader.replica, publish()) == 1


async def test_a_leader_of_an_older_version_removes_as_it_ever_did(
    autojump_clock: MockClock,
) -> None:
    """It has no guard, and does not know what to force is."""
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        other, removed = sorted(cluster.running.keys() - {leader.id})
        del leader.replica.handlers["remove-forced"]
        await cluster[other].broker.remove_member(ANYONE, removed, forced=True)
        await cluster.until(lambda: removed not in leader.replica.membership.ids, "the removal")


async def test_leadership_is_not_handed_to_a_voter_that_is_away(
    autojump_clock: MockClock,
) -> None:
    """Writes would wait for it."""
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        dead, living = sorted(cluster.running.keys() - {leader.id})
        cluster.kill(dead)
        for node in (leader, cluster[living]):
            with pytest.raises(RequestError) as refused:
                await node.broker.move_leader(ANYONE, dead)
            assert refused.value.code == "member_unreachable"
        await cluster[living].broker.move_leader(ANYONE, living)
        await cluster.until(lambda: cluster[living].replica.leads, "the other to lead")


async def test_a_learner_that_goes_again_never_gets_a_vote(autojump_clock: MockClock) -> None:
    """From one voter to two: the first must not wait for one that is gone."""
    async with running_cluster(1) as cluster:
        alone = cluster["n1"]
        learner = await cluster.start("n2", join=("n1",))
        learner.members._on_adopted = learner.gate.shut
        await cluster.until(lambda: "n2" in alone.replica.committed_membership.ids, "it to join")
        cluster.kill("n2")
        await trio.sleep(30)
        assert alone.replica.membership.voters == {"n1"}
        assert await seq_of(alone.replica, publish()) == 1


async def test_two_changes_at_once_are_made_one_after_the_other_or_refused(
    autojump_clock: MockClock,
) -> None:
    """RAFT.md scenario 37."""
    async with running_cluster(5) as cluster:
        codes: list[str] = []

        async def remove(node_id: str) -> None:
            try:
                await cluster["n1"].broker.remove_member(ANYONE, node_id)
                codes.append("done")
            except RequestError as error:
                codes.append(error.code)

        leader = await cluster.leader()
        followers = sorted(cluster.running.keys() - {leader.id})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove, followers[0])
            nursery.start_soon(remove, followers[1])
        assert sorted(codes) == ["done", "membership_change_in_progress"]
        assert len(leader.replica.membership.ids) == 4


async def test_leadership_moves_to_whom_it_is_asked_to(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        old = await cluster.leader()
        target = next(node_id for node_id in cluster.running if node_id != old.id)
        await cluster["n1"].broker.move_leader(ANYONE, target)
        await cluster.until(lambda: cluster[target].replica.leads, "the target to lead")
        await cluster[target].broker.move_leader(ANYONE, target)  # it does already


async def test_a_learner_is_shown_as_one_and_cannot_lead(autojump_clock: MockClock) -> None:
    """It has lost nothing but its disk's attention, so that it never catches up."""
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        learner = await cluster.start("n4", join=(leader.id,))
        learner.members._on_adopted = learner.gate.shut
        await cluster.until(lambda: "n4" in leader.replica.membership.ids, "it to be added")
        for node in (leader, next(n for n in cluster.running.values() if n is not leader)):
            with pytest.raises(RequestError) as refused:
                await node.broker.move_leader(ANYONE, "n4")
            assert refused.value.code == "not_a_voter"
            view = await node.broker.cluster(ANYONE)
            roles = {m["id"]: m["role"] for m in view["members"]}  # type: ignore[attr-defined]
            assert roles["n4"] == "learner"
        learner.gate.open()
        await cluster.all_vote()


async def test_a_node_that_cannot_ask_the_leader_shows_what_it_knows(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        alone = next(n for n in cluster.running if n != cluster["n1"].replica.leader)
        cluster.cut(alone)
        for moment in ("the leader has not been missed yet", "it has"):
            view = await cluster[alone].broker.cluster(ANYONE)
            for member in view["members"]:  # type: ignore[attr-defined]
                assert member["match_index"] is None, moment
                assert member["lag"] is None, moment
                assert member["reachable"] is (member["id"] == alone), moment
            await cluster.until(lambda: cluster[alone].replica.leader is None, "it to notice")


async def test_a_node_that_moved_tells_the_members(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        cluster.kill("n3")
        node = await cluster.start("n3")
        node.members._me = node.members._me.__class__(
            "n3", "n3:5081", "http://n3", True, node.replica.incarnation
        )
        await node.members._keep_record()
        leader = await cluster.leader()
        moved = leader.replica.membership.find("n3")
        assert moved is not None
        assert (moved.raft_address, moved.voter) == ("n3:5081", True)


async def test_adding_a_member_again_changes_nothing_for_good(autojump_clock: MockClock) -> None:
    """Where clients reach a node is its own to say."""
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        before = leader.replica.membership
        for node_id in ("n1", "n2", "n3"):
            for node in cluster.running.values():
                await node.broker.add_member(ANYONE, node_id, f"{node_id}:4081", "http://elsewhere")
        await cluster.until(lambda: leader.replica.membership == before, "the records to be right")
        await cluster.converged()


async def test_a_node_is_ready_once_it_has_caught_up(autojump_clock: MockClock) -> None:
    async with running_cluster(3) as cluster:
        await cluster.leader()
        await cluster.until(
            lambda: all(node.broker.ready for node in cluster.running.values()), "all to be ready"
        )
        cluster.cut("n2")
        await cluster.until(lambda: not cluster["n2"].broker.ready, "n2 to notice")
        with pytest.raises(RequestError, match="knows no leader"):
            cluster["n2"].broker.check_ready()
        cluster.heal()
        await cluster.until(lambda: cluster["n2"].broker.ready, "n2 to be ready again")


# --- what the leader knows of the others ---


async def test_the_leader_tells_how_far_each_member_is(autojump_clock: MockClock) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        brokers = {name: node.broker for name, node in cluster.running.items()}
        others = sorted(set(brokers) - {leader.replica.node_id})
        await cluster.converged()
        await trio.sleep(1)
        for name, broker in brokers.items():
            members = broker.statistics().members
            expected = [(other, 0, True) for other in others] if broker is leader.broker else []
            assert [*members] == expected, name
        lost = others[0]
        cluster.kill(lost)
        for _ in range(10):
            await leader.replica.propose(publish())
        await trio.sleep(5)
        (gone,) = (m for m in leader.broker.statistics().members if m.id == lost)
        assert (gone.lag, gone.reachable) == (10, False)


async def test_a_node_that_is_taken_in_knows_it_even_if_the_invitation_breaks_off(
    autojump_clock: MockClock,
) -> None:
    """On its disk it belongs to the cluster then: its streams must not have another epoch."""
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery, configured())
        node = await cluster.start("n2", join=("nobody",))
        node.gate.shut()

        async def open_later() -> None:
            await trio.sleep(2)
            node.gate.open()

        nursery.start_soon(open_later)
        with trio.move_on_after(1):
            await node.members.answer("n1", "invite", ("c" * 32, "0badcafe"))
        await trio.sleep(2)
        assert node.replica.adopted
        assert node.hub.epoch == node.replica.epoch == "0badcafe"
        assert node.line.me.cluster_id == "c" * 32
        nursery.cancel_scope.cancel()


async def test_a_removal_that_cannot_be_committed_is_shown_as_pending(
    autojump_clock: MockClock,
) -> None:
    """The leader shows the members as in its log: whoever is gone there may not have gone."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        await cluster.converged()
        assert not leader.replica.change_pending
        gone, other = [node for node in cluster.running if node != leader.id]
        cluster.kill(gone)
        cluster.kill(other)
        await leader.members.remove(gone, forced=True)
        assert gone not in leader.replica.membership.ids
        assert leader.replica.change_pending
        await cluster.start(other)
        await cluster.until(lambda: not leader.replica.change_pending, "the removal's commit")
        assert leader.replica.committed_membership.ids == {leader.id, other}


async def test_what_waits_when_a_node_stops_is_answered_before_it_ends(
    autojump_clock: MockClock,
) -> None:
    """Writes in no log, a write that may be in one, and reads; and what comes after that."""
    async with running_cluster(2) as cluster:
        leader = await cluster.leader()
        (other,) = [node for node in cluster.running.values() if node is not leader]
        await leader.broker.publish(ANYONE, "chat", b"1")
        await cluster.converged()
        other.gate.shut()  # what it writes does not come on its disk
        told: dict[str, str] = {}

        async def ask(name: str, request: Callable[[], Awaitable[object]]) -> None:
            try:
                await request()
            except RequestError as error:
                told[name] = error.code

        async with trio.open_nursery() as nursery:
            write = partial(other.broker.publish, ANYONE, "chat", b"1")
            nursery.start_soon(ask, "sent", write)
            await trio.sleep(0.1)
            cluster.cut(leader.id)
            await trio.sleep(2)
            nursery.start_soon(ask, "waiting", write)
            nursery.start_soon(ask, "read", partial(other.broker.topics, ANYONE, limit=10))
            await trio.sleep(0.1)
            assert len(told) == 0
            with trio.fail_after(1):
                await other.replica.drain(0.5)
            with trio.fail_after(0.1):
                await ask("late", partial(other.broker.topics, ANYONE, limit=10))
        assert told == {
            "sent": "outcome_unknown",
            "waiting": "shutting_down",
            "read": "shutting_down",
            "late": "shutting_down",
        }
