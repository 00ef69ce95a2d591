"""Nodes that start beside others: members wait for their majority, founders find out.

As in test_cluster.py: whole nodes in one process, on the mock clock.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from repl_broker.errors import ConfigError, RequestError
from repl_broker.founding import Rebuilt
from repl_broker.handshake import Hello, Loss, Lost, Removal
from repl_broker.levels import NEWEST
from repl_broker.raft.core import Loss as DataLoss
from repl_broker.storage import Identity
from tests.network import Cluster, ClusterNode, Line, running_cluster
from tests.nodes import ANYONE, Disk
from tests.test_cluster import history, publish, seq_of


def wiped(node_id: str) -> Disk:
    """The disk of a node that lost its own."""
    disk = Disk(node_id)
    disk.identity = Identity.draw(node_id)
    return disk


def lines_of(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [message for message in caplog.messages if text in message]


# --- members that start ---


@pytest.mark.parametrize("at_its_address", ["another cluster", "nobody", "a newcomer"])
async def test_members_are_a_majority_whoever_answers_at_join(
    autojump_clock: MockClock, at_its_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second of three voters to start ended, as another cluster at the address of the
    first refused it; the third had waited for it."""
    async with running_cluster(3) as cluster:
        before = await seq_of(cluster["n2"].replica, publish(b"before"))
        for node_id in ("n1", "n2", "n3"):
            cluster.kill(node_id)
        kept = cluster.disks["n1"]
        if at_its_address != "nobody":
            cluster.disks["n1"] = wiped("n1")
            join = ("n7",) if at_its_address == "a newcomer" else ()
            await cluster.start("n1", join=join)
        for node_id in ("n2", "n3"):
            await cluster.start(node_id, join=("n1",))
            await trio.sleep(30)
        assert not cluster.failures
        leader = await cluster.leader("n2", "n3")
        assert await seq_of(leader.replica, publish(b"after")) == before + 1
        lines = lines_of(caplog, "waits for a majority of its cluster")
        assert 1 <= len(lines) <= 4, "for n2, before n3 came: each reason once, not each second"
        if at_its_address == "another cluster":
            assert "belongs to the cluster" in lines[0] or "has lost its data" in lines[0]
            cluster.kill("n1")
        if at_its_address != "a newcomer":
            cluster.disks["n1"] = kept
            await cluster.start("n1", join=("n2",))
            await cluster.converged()
            assert await history(cluster["n1"].replica) == [b"before", b"after"]


async def test_a_member_is_not_ended_by_a_refusal_of_its_own_cluster(
    autojump_clock: MockClock,
) -> None:
    """Of a member that finds another node at its address, say: a newcomer would have to be told."""
    async with running_cluster(5) as cluster:
        for node_id in [*cluster.running]:
            cluster.kill(node_id)
        first = await cluster.start("n1")
        asked = []

        async def refuse(peer: str, argument: object) -> tuple[str, str]:
            asked.append(peer)
            return "invalid_parameter", "The node at n2:4081 is 'n7', not 'n2'."

        first.replica.handlers["join"] = refuse
        await cluster.start("n2", join=("n1",))
        await cluster.until(lambda: len(asked) > 3, "it to ask")
        await cluster.start("n3", join=("n1",))
        await cluster.leader("n1", "n2", "n3")
        assert not cluster.failures


async def test_one_who_was_taken_in_is_not_ended_by_another_cluster(
    autojump_clock: MockClock,
) -> None:
    """It was invited, and has nothing of the log yet: its own may be at another address."""
    async with running_cluster(1) as cluster:
        ours = cluster["n1"].line.me.cluster_id
        cluster.disks["n9"] = wiped("n9")
        await cluster.start("n9")
        disk = cluster.disks["n2"] = wiped("n2")
        disk.identity = replace(disk.identity, cluster_id=ours, adopted=True)
        cluster.network.lost |= {("n1", "n2"), ("n2", "n1")}
        await cluster.start("n2", join=("n9", "n1"))
        await trio.sleep(60)
        assert not cluster.failures
        cluster.heal()
        await cluster.until(
            lambda: cluster["n1"].replica.committed_membership.voters == {"n1", "n2"}, "its vote"
        )


async def test_a_member_that_starts_alone_says_once_what_it_waits_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster(3) as cluster:
        for node_id in ("n1", "n2", "n3"):
            cluster.kill(node_id)
        node = await cluster.start("n3", join=("n1", "n2"))
        await trio.sleep(600)
        assert not cluster.failures
        assert not node.broker.ready
        lines = lines_of(caplog, "waits for a majority of its cluster")
        assert len(lines) == 2, "one for each address"


async def test_a_newcomer_that_is_refused_ends(autojump_clock: MockClock) -> None:
    """It has nothing to wait for: its operator must hear of it."""
    async with running_cluster(2) as cluster:
        cluster.kill("n2")
        cluster.disks["n2"] = wiped("n2")
        await cluster.start("n2", join=("n1",))
        await cluster.until(lambda: cluster.failures, "its end")
        failure = cluster.failures["n2"]
        assert isinstance(failure, ConfigError)


async def test_one_who_waits_to_join_says_so_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster(1) as cluster:
        await cluster.start("n2", join=("n7", "n8"))
        await trio.sleep(600)
        assert len(lines_of(caplog, "cannot join yet")) == 2
        assert not cluster.failures


# --- who has been removed ---


async def test_a_removed_node_is_known_however_many_were_removed_after_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a member at an index that others know, too, and is none at a later one: that
    takes no memory. The list of those who have gone has an end."""
    monkeypatch.setattr("repl_broker.raft.log.REMOVED_MAX", 1)
    async with running_cluster(5) as cluster:
        leader = await cluster.leader()
        gone = [node for node in cluster.running.values() if node is not leader][:2]
        cluster.cut(*(node.id for node in gone))
        hellos = []
        for node in gone:
            me = node.line.me
            identity = (me.cluster_id, me.node_id, me.incarnation)
            assert node.members.known_index > 0
            known = node.members.known_index
            hellos.append(Hello(2, 2, *identity, known, "", "", level=NEWEST))
            await leader.broker.remove_member(ANYONE, node.id)
            await trio.sleep(5)
        assert len(leader.replica.committed_membership.removed) == 1, "the first is forgotten"
        for each in cluster.running.values():
            for hello in hellos if each not in gone else ():
                assert isinstance(each.members.admit(hello), Removal)
        for hello in hellos:
            behind = hello._replace(incarnation="another", commit_index=1 << 40)
            assert not isinstance(leader.members.admit(behind), Removal), "it may know more"
            new = hello._replace(node_id="n8", incarnation="another", commit_index=0)
            assert leader.members.admit(new) is None, "it was never a member, as far as it knows"
        for each in cluster.running.values():
            for other in cluster.running.values():
                if not {each, other} & {*gone} and each is not other:
                    me = other.line.me
                    identity = (me.cluster_id, me.node_id, me.incarnation)
                    index = other.members.known_index
                    hello = Hello(2, 2, *identity, index, "", "", level=NEWEST)
                    assert each.members.admit(hello) is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("older", "n2 speaks an older protocol (stop all nodes, and start them with one version)"),
        ("version", "n2 speaks another protocol (stop all nodes"),
        ("stranger", "n2 has another secret or version (compare [cluster] secret_file and"),
        ("lost", "n2 knows this node with other data"),
        ("removed", "n2 has removed this node"),
        ("anything", "n2 refuses this node, or is refused (see its log)"),
    ],
)
async def test_who_is_not_ready_says_which_peers_are_refused(
    autojump_clock: MockClock, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_cluster(3) as cluster:
        refused = {"n2": kind}
        monkeypatch.setattr(Line, "refusals", lambda line: refused)
        cluster["n1"].broker.check_ready()
        cluster.cut("n1")
        await trio.sleep(20)
        with pytest.raises(RequestError) as no:
            cluster["n1"].broker.check_ready()
        missing = "Not reached: n2, n3; 2 of 3 voters have to meet."
        assert f"The node knows no leader. {missing} Not talked to: {words}" in no.value.detail
        refused.clear()
        with pytest.raises(RequestError) as no:
            cluster["n1"].broker.check_ready()
        assert no.value.detail == f"The node knows no leader. {missing}"


# --- founders ---


def check_takes_no_part(node: ClusterNode, words: str) -> None:
    assert not node.broker.ready
    with pytest.raises(RequestError, match=words) as refused:
        node.broker.check_ready()
    assert refused.value.code == "no_leader"
    assert "repl-broker cluster remove n1" in refused.value.detail


LOST = "This node takes no part: node 'n1' has lost its data"


async def test_a_founder_that_lost_its_disk_stops_once_a_member_tells_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It found nobody, founded another cluster and served: two took writes under its name."""
    caplog.set_level(logging.INFO)
    async with running_cluster(3) as cluster:
        for node_id in ("n1", "n2", "n3"):
            cluster.kill(node_id)
        cluster.disks["n1"] = wiped("n1")
        node = await cluster.start("n1", watch=("n1", "n2", "n3"))
        await trio.sleep(60)
        assert node.broker.ready, "nobody has told it yet"
        await node.replica.propose(publish(b"to the wrong one"))
        stream = node.broker.subscribe(ANYONE, ["chat"])
        await cluster.start("n2", join=("n1",))
        with trio.fail_after(30):
            while node.replica.disowned is None:  # noqa: ASYNC110
                await trio.sleep(0.1)
        check_takes_no_part(node, LOST)
        with pytest.raises(RequestError, match=LOST):
            await node.replica.propose(publish(b"more"))
        with pytest.raises(RequestError, match=LOST):
            node.broker.subscribe(ANYONE, ["chat"])
        with pytest.raises(RequestError, match=LOST):
            await node.broker.add_member(ANYONE, "n8", "n8:4081", "http://n8")
        assert node.hub.closing, "who reads here goes elsewhere"
        del stream
        (line,) = lines_of(caplog, "takes no writes and is not ready")
        assert "--join and an empty data directory" in line
        assert "What was acknowledged only in this cluster is lost" in line
        assert "'repl-broker backup'" in line
        # Nobody is there to tell it again when it is started anew.
        await trio.sleep(1)
        cluster.kill("n2")
        cluster.kill("n1")
        node = await cluster.start("n1")
        await trio.sleep(10)
        check_takes_no_part(node, LOST)
        assert len(lines_of(caplog, "takes no writes and is not ready")) == 2
        await cluster.start("n2", join=("n1",))
        await cluster.start("n3", join=("n1",))
        leader = await cluster.leader("n2", "n3")
        await leader.replica.propose(publish(b"to the right one"))
        # The remedy is taken.
        cluster.kill("n1")
        cluster.disks["n1"] = wiped("n1")
        await leader.broker.remove_member(ANYONE, "n1")
        await cluster.start("n1", join=("n2", "n3"))
        await cluster.all_vote()
        await cluster.converged()
        assert await history(cluster["n1"].replica) == [b"to the right one"]


REASON = "node 'n1' has lost its data"
ELSEWHERE = "e" * 32


@pytest.mark.parametrize("case", ["rebuilt", "joined", "its own cluster", "twice"])
async def test_only_a_founder_is_disowned(
    autojump_clock: MockClock, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that was recovered, say, is known to old members with another incarnation."""
    async with running_cluster(1) as cluster:
        node = cluster["n1"]
        if case == "joined":
            node = await cluster.start("n2", join=("n1",))
            await cluster.all_vote()
        node.members._rebuilt = Rebuilt(0, False, ()) if case == "rebuilt" else None
        by = node.replica.cluster_id if case == "its own cluster" else ELSEWHERE
        for _ in range(2):
            node.members.disown(Lost(REASON, "n7", by, True))
        assert (node.replica.disowned is None) == (case != "twice")
        assert node.broker.ready == (case != "twice")
        assert len(lines_of(caplog, "takes no writes")) == (case == "twice")


@pytest.mark.parametrize(
    ("lost", "young", "old"),
    [
        (Lost(REASON), False, False),  # by an older node, which does not say more
        (Lost(REASON, "n7", ELSEWHERE), True, False),  # what is left of another cluster
        (Lost(REASON, "n7", ELSEWHERE, True), True, True),
        (Lost(REASON, "n7", ELSEWHERE, True, "n1:4081"), True, True),
        (Lost(REASON, "n7", ELSEWHERE, True, "n1.elsewhere:4081"), True, False),  # another n1
        (Lost(REASON, "n2", ELSEWHERE, True), False, False),  # the old data of a member
        (Lost(REASON, "n1", ELSEWHERE, True), False, False),
    ],
)
@pytest.mark.parametrize("is_old", [False, True])
async def test_a_cluster_that_others_have_joined_yields_to_few(
    autojump_clock: MockClock, lost: Lost, young: bool, old: bool, is_old: bool
) -> None:
    """Real clusters have founders, too: neither strangers nor a forgotten member end them."""
    async with running_cluster(2) as cluster:
        cluster.clock.now_ms += 3_600_000 * is_old
        cluster["n1"].members.disown(lost)
        await trio.sleep(1)
        for node in cluster.running.values():
            assert (node.replica.disowned is not None) == (old if is_old else young)


async def test_how_old_a_cluster_is_does_not_begin_anew(autojump_clock: MockClock) -> None:
    async with running_cluster(1) as cluster:
        await trio.sleep(1)
        cluster.kill("n1")
        cluster.clock.now_ms += 3_600_000
        node = await cluster.start("n1")
        assert 3600 <= node.replica.founded_seconds_ago < 3660
        cluster.clock.now_ms -= 7_200_000
        assert node.replica.founded_seconds_ago > 1e9, "the clock was set"


async def found_a_rival(cluster: Cluster, *others: str) -> None:
    """The founder has lost its disk, founds again while cut off, and others join it there."""
    cluster.kill("n1")
    cluster.disks["n1"] = wiped("n1")
    for node_id in others:
        cluster.disks[node_id] = wiped(node_id)
    cluster.cut("n1", *others)
    await cluster.start("n1", watch=("n1", "n2", "n3"))
    for node_id in others:
        await cluster.start(node_id, join=("n1",))
    await cluster.until(
        lambda: cluster["n1"].replica.committed_membership.voters == {"n1", *others}, "the rival"
    )


async def acknowledging(cluster: Cluster) -> set[str]:
    """The clusters that take writes, by any of their nodes."""
    found = set()
    for node in cluster.running.values():
        try:
            await node.broker.publish(ANYONE, "chat", b"1")
        except RequestError:
            continue
        found.add(node.replica.cluster_id)
    return found


@pytest.mark.parametrize("founder_is_told_by", ["a look", "a member that dials it"])
async def test_a_rival_that_others_have_joined_stops_as_a_whole(
    autojump_clock: MockClock, founder_is_told_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once one had joined it, nobody looked any more, and two clusters took writes for good."""
    async with running_cluster(3) as cluster:
        real = cluster["n2"].replica.cluster_id
        await found_a_rival(cluster, "n4", "n5")
        assert len(await acknowledging(cluster)) == 2
        if founder_is_told_by != "a look":
            cluster["n1"].members._watch = ()
        cluster.clock.now_ms += 86_400_000
        cluster.heal()
        await trio.sleep(15)
        assert await acknowledging(cluster) == {real}
        check_takes_no_part(cluster["n1"], LOST)
        for node_id in ("n4", "n5"):
            node = cluster[node_id]
            assert not node.broker.ready
            with pytest.raises(RequestError, match="was founded by node 'n1', which had") as no:
                node.broker.check_ready()
            said = no.value.detail
            assert "remove its data directory, and start it with --join" in said
            lost = said.index("acknowledged only in this cluster is lost")
            assert lost < said.index("'repl-broker backup'") < said.index("remove its data")
            assert "'repl-broker cluster recover --apart'" in said
            assert node.hub.closing
            with pytest.raises(RequestError, match="was founded by node 'n1'"):
                await node.broker.add_member(ANYONE, "n8", "n8:4081", "http://n8")
        assert len(lines_of(caplog, "takes no writes and is not ready")) == 3
        # It is known on the disk of each, whoever is there.
        cluster.kill("n1")
        for node_id in ("n4", "n5"):
            cluster.kill(node_id)
            await cluster.start(node_id)
        await trio.sleep(10)
        assert await acknowledging(cluster) == {real}
        # The remedy, for one that is no member of the other cluster.
        cluster.kill("n4")
        cluster.disks["n4"] = wiped("n4")
        await cluster.start("n4", join=("n2",))
        await cluster.until(lambda: cluster["n4"].broker.ready, "it to be ready")


@pytest.mark.parametrize("answers", ["at once", "late", "never"])
async def test_a_founder_asks_at_join_before_it_serves_again(
    autojump_clock: MockClock, answers: str
) -> None:
    """It had acknowledged what the real cluster never saw, until it was told."""
    async with running_cluster(3) as cluster:
        await found_a_rival(cluster)
        cluster.kill("n1")
        cluster.heal()
        cluster.network.lost |= {("n2", "n1"), ("n3", "n1")}  # they do not dial it
        for node_id in ("n2", "n3"):
            cluster.network.ask_seconds[node_id] = {"at once": 0.1, "late": 1.5, "never": 60}[
                answers
            ]
        began = trio.current_time()
        node = await cluster.start("n1", watch=("n1", "n2", "n3"))
        assert (node.replica.disowned is None) == (answers == "never")
        assert trio.current_time() - began <= 2.1


@pytest.mark.parametrize("answers", ["at once", "late"])
async def test_a_restored_store_does_not_serve_beside_the_living_cluster(
    autojump_clock: MockClock, answers: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On the host that keeps --bootstrap: it founded a second one, ready, under its name."""
    async with running_cluster(3) as cluster:
        cluster.kill("n1")
        await cluster.leader()
        cluster.disks["n1"] = wiped("n1")  # with other messages, as far as that matters here
        for node_id in ("n2", "n3"):
            cluster.network.ask_seconds[node_id] = {"at once": 0.1, "late": 2.5}[answers]
        node = await cluster.start("n1", watch=("n1", "n2", "n3"), rebuilt=True)
        assert (node.replica.disowned is not None) is (answers == "at once"), "before it serves"
        await cluster.until(lambda: node.replica.disowned is not None, "it to be found out")
        assert not node.broker.ready
        with pytest.raises(RequestError, match=r"restored or recovered, and the cluster .* lives"):
            node.broker.check_ready()
        with pytest.raises(RequestError, match=r"'repl-broker cluster recover --apart'"):
            node.broker.check_ready()
        with pytest.raises(RequestError, match="--join, without --bootstrap"):
            await node.replica.propose(publish(b"beside"))
        assert len(lines_of(caplog, "takes no writes and is not ready")) == 1
        leader = await cluster.leader("n2", "n3")
        assert leader.replica.disowned is None
        await leader.replica.propose(publish(b"in the real one"))


@pytest.mark.parametrize("has", ["a message", "a topic", "a member"])
@pytest.mark.parametrize("starts_anew", [False, True])
async def test_a_rebuilt_cluster_does_not_yield_what_it_has_to_old_members_that_come_back(
    autojump_clock: MockClock, has: str, starts_anew: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """They made it, and who had joined it, not ready for good; only these had what was
    acknowledged since, and were told to empty their data directories."""
    async with running_cluster(3) as cluster:
        for node_id in ("n1", "n2", "n3"):
            cluster.kill(node_id)
        cluster.disks["n1"] = wiped("n1")
        node = await cluster.start("n1", watch=("n1", "n2", "n3"), rebuilt=True)
        if has == "a message":
            await node.broker.publish(ANYONE, "chat", b'"only here"')
        elif has == "a topic":
            await node.broker.create_topic(ANYONE, "chat")
        else:
            await cluster.start("n4", join=("n1",))
            await cluster.until(
                lambda: node.replica.committed_membership.voters == {"n1", "n4"}, "its vote"
            )
        if starts_anew:
            cluster.kill("n1")
            node = await cluster.start("n1", watch=("n1", "n2", "n3"), rebuilt=True)
        await cluster.start("n2")
        await cluster.start("n3")
        await cluster.leader("n2", "n3")
        await trio.sleep(30)
        assert node.replica.disowned is None
        assert node.broker.ready
        assert "n4" not in cluster.running or cluster["n4"].broker.ready
        lines = lines_of(caplog, "goes on beside another cluster: node 'n")
        assert lines, "an operator has to say which of the two is wanted"
        assert "stop the nodes of the one that is not wanted" in lines[0]
        cluster.kill("n2")
        cluster.kill("n3")  # states are compared in the end, and these have another


async def test_a_store_that_was_said_to_be_apart_serves_beside_the_living_cluster(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        cluster.kill("n1")
        await cluster.leader()
        cluster.disks["n1"] = wiped("n1")
        apart = Rebuilt(0, True, ())
        node = await cluster.start("n1", watch=("n1", "n2", "n3"), rebuilt=apart)
        await trio.sleep(30)
        assert node.replica.disowned is None
        assert node.broker.ready


@pytest.mark.parametrize("kind", ["update", "add"])
@pytest.mark.parametrize("process", ["the connected one", "another"])
async def test_a_member_is_not_moved_to_a_copy_of_it_while_it_is_connected(
    autojump_clock: MockClock, kind: str, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader sent to the copy under its name, and the copy's last words had people remove
    the original."""
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        moved, other = (node for node in cluster.running.values() if node is not leader)
        me = moved.line.me
        there = moved.process if process == "the connected one" else "a copy's"

        async def meet(*_: object, **__: object) -> tuple[object, int, str]:
            return (moved.id, me.incarnation, me.cluster_id, 0), NEWEST, there

        monkeypatch.setattr(leader.line, "meet", meet)
        fields = (moved.id, "n9:4081", "http://n9:4080")
        argument = fields if kind == "add" else (*fields, me.incarnation)
        found = await other.line.call(leader.id, "change", (kind, argument, False), seconds=5)
        known = leader.replica.membership.find(moved.id)
        assert known is not None
        if process == "another":
            assert found is not None
            assert found[0] == "member_exists"
            assert "runs twice" in found[1]
            assert known.raft_address == f"{moved.id}:4081"
        else:
            assert found is None
            assert known.raft_address == "n9:4081"


async def test_a_copy_that_ends_has_nobody_remove_the_original(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_cluster(2) as cluster:
        node, loss = cluster["n2"], DataLoss(acknowledged=9, last_index=7)
        said = str(node.replica._lost(loss))
        assert said.index("leave it as it is") < said.index("cluster remove n2")
        monkeypatch.setattr(node.line, "had_twin", True)
        said = str(node.replica._lost(loss))
        assert "Another process runs as this node" in said
        assert "cluster remove" not in said
        assert "rejoin" not in said


async def test_a_recovered_store_serves_where_no_majority_of_the_old_cluster_is_left(
    autojump_clock: MockClock,
) -> None:
    """That is what recovering is for: one that is left answers, and hears no leader."""
    async with running_cluster(3) as cluster:
        for node_id in ("n1", "n2", "n3"):
            cluster.kill(node_id)
        await cluster.start("n2")
        cluster.disks["n1"] = wiped("n1")
        node = await cluster.start("n1", watch=("n1", "n2", "n3"), rebuilt=True)
        await trio.sleep(30)
        assert node.broker.ready
        await cluster.start("n3")
        await cluster.leader("n2", "n3")
        await cluster.until(lambda: node.replica.disowned is not None, "it to see the majority")


async def test_a_rebuilt_store_that_has_served_for_an_hour_yields_to_nobody(
    autojump_clock: MockClock,
) -> None:
    """Somebody may start old machines: what was acknowledged since counts for more."""
    async with running_cluster(3) as cluster:
        for node_id in ("n1", "n2", "n3"):
            cluster.kill(node_id)
        cluster.disks["n1"] = wiped("n1")
        node = await cluster.start("n1", watch=("n1", "n2", "n3"), rebuilt=True)
        cluster.clock.now_ms += 3_600_000
        cluster.kill("n1")
        await cluster.start("n2")
        await cluster.start("n3")
        await cluster.leader("n2", "n3")
        node = await cluster.start("n1", watch=("n1", "n2", "n3"), rebuilt=True)
        await trio.sleep(30)
        assert node.replica.disowned is None
        assert node.broker.ready


async def test_a_new_cluster_and_one_that_is_whole_serve_without_asking(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        cluster.network.ask_seconds = dict.fromkeys(("n1", "n2", "n3", "n5"), 60)
        began = trio.current_time()
        await cluster.start("n5", watch=("n2", "n3"))
        cluster.kill("n1")
        await cluster.start("n1", watch=("n1", "n2", "n3"))
        assert trio.current_time() - began < 0.5


async def test_two_of_three_lost_their_disks_and_the_second_asked_the_first(
    autojump_clock: MockClock,
) -> None:
    """The third is no majority, but has what was acknowledged; the two have nothing to lose yet."""
    async with running_cluster(3) as cluster:
        await cluster["n3"].replica.propose(publish(b"acknowledged"))
        cluster.kill("n2")
        await found_a_rival(cluster, "n2")
        cluster.heal()
        await trio.sleep(15)
        assert await acknowledging(cluster) == set(), "a human has to say which"
        assert "was founded by node 'n1'" in (cluster["n2"].replica.disowned or "")


async def test_a_member_of_a_rival_hears_of_it_from_another_member(
    autojump_clock: MockClock,
) -> None:
    """It does not reach the founder; with the third it is a majority that would go on."""
    async with running_cluster(3) as cluster:
        real = cluster["n2"].replica.cluster_id
        await found_a_rival(cluster, "n4", "n5")
        cluster.heal()
        cluster.network.lost |= {("n1", "n5"), ("n5", "n1")}
        await trio.sleep(30)
        assert await acknowledging(cluster) == {real}


@pytest.mark.parametrize("seed", range(12))
async def test_in_the_end_one_cluster_takes_writes_in_whatever_order_it_happens(
    autojump_clock: MockClock, seed: int
) -> None:
    """Cuts, ends and starts of all, while the emptied founder gathers others about it."""
    order = random.Random(seed)
    async with running_cluster(3) as cluster:
        real = cluster["n2"].replica.cluster_id
        await found_a_rival(cluster, *order.choice([(), ("n4",), ("n4", "n5")]))
        joins = {node_id: () if node_id == "n1" else ("n1",) for node_id in cluster.disks}
        for _ in range(order.randrange(12)):
            node_id = order.choice([*cluster.disks])
            what = order.choice(["cut", "heal", "end", "start", "old"])
            if what == "cut":
                cluster.cut(node_id)
            elif what == "heal":
                cluster.heal()
            elif what == "old":
                cluster.clock.now_ms += 3_600_000
            elif what == "end" and node_id in cluster.running:
                cluster.kill(node_id)
            elif what == "start" and node_id not in cluster.running:
                await cluster.start(node_id, join=joins[node_id], watch=("n2", "n3"))
            await trio.sleep(order.choice([0.01, 0.3, 2, 11]))
        cluster.heal()
        for node_id in cluster.disks.keys() - cluster.running.keys():
            await cluster.start(node_id, join=joins[node_id], watch=("n2", "n3"))
        await trio.sleep(45)
        assert not cluster.failures
        assert await acknowledging(cluster) == {real}
        for node in cluster.running.values():
            assert node.broker.ready == (node.replica.cluster_id == real)


async def test_a_founder_that_is_no_member_elsewhere_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    """Another cluster at ``join`` refuses it, as it would any stranger."""
    async with running_cluster(2) as cluster:
        cluster.disks["n5"] = wiped("n5")
        node = await cluster.start("n5", watch=("n1", "n2", "n9"))
        await trio.sleep(120)
        assert node.broker.ready
        assert node.replica.disowned is None
        assert cluster["n1"].broker.ready


async def test_a_member_says_of_which_kind_its_refusal_is(autojump_clock: MockClock) -> None:
    async with running_cluster(2) as cluster:
        members, me = cluster["n1"].members, cluster["n2"].line.me
        hello = Hello(2, 2, me.cluster_id, "n2", me.incarnation, 0, "n1", "", level=NEWEST)
        assert members.admit(hello) is None
        lost = members.admit(hello._replace(cluster_id="d" * 32, incarnation="new"))
        assert isinstance(lost, Loss)
        other = members.admit(hello._replace(cluster_id="d" * 32, node_id="n7"))
        assert other is not None
        assert "belongs to the cluster" in other
        assert not isinstance(other, Loss)
        twin = members.admit(
            hello._replace(node_id="n1", incarnation=cluster["n1"].line.me.incarnation)
        )
        assert twin is not None
        assert "runs twice, with copies of one data directory" in twin
