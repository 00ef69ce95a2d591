"""Feature levels, and numbers of what is sent on: versions side by side, and repeats."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    Expire,
    Numbered,
    RaiseLevel,
    Retention,
    Settings,
)
from repl_broker.errors import ConfigError, RequestError
from repl_broker.levels import FIRST, NEWEST, NUMBERED
from repl_broker.raft.log import EntryKind
from repl_broker.transport import PeerRefusedError, PeerUnreachableError
from repl_broker.wire import decode_entry, encode_command
from tests.network import Cluster, ClusterNode, running_cluster
from tests.nodes import configured
from tests.test_cluster import history, publish, seq_of
from tests.test_cluster_attacks import follower_of, outcome_of

OLD = {"n1": FIRST, "n2": FIRST, "n3": FIRST}


def commands_of(cluster: Cluster) -> list[Command]:
    """All that is in any node's log."""
    return [
        command
        for disk in cluster.disks.values()
        for entry in disk.load().entries
        if entry.kind is EntryKind.DATA
        for command in decode_entry(entry.data)[1]
    ]


async def restarted(cluster: Cluster, node_id: str, level: int) -> None:
    cluster.levels[node_id] = level
    cluster.kill(node_id)
    await cluster.leader()
    await cluster.start(node_id)
    await cluster.converged()


async def test_the_level_rises_once_all_members_are_upgraded(autojump_clock: MockClock) -> None:
    async with running_cluster(levels=OLD) as cluster:
        for node_id in ("n1", "n2", "n3"):
            await trio.sleep(10)
            assert {node.replica.state.level for node in cluster.running.values()} == {FIRST}
            for node in cluster.running.values():
                await seq_of(node.replica, publish(node_id.encode()))
            assert not any(isinstance(command, Numbered) for command in commands_of(cluster))
            await restarted(cluster, node_id, NEWEST)
        await trio.sleep(10)
        await cluster.converged()
        assert {node.replica.state.level for node in cluster.running.values()} == {NEWEST}
        for node in cluster.running.values():
            await seq_of(node.replica, publish(b"last"))
        assert any(isinstance(command, Numbered) for command in commands_of(cluster))
        assert not cluster.failures


async def test_until_then_each_node_can_go_one_step_back(autojump_clock: MockClock) -> None:
    async with running_cluster(levels=OLD) as cluster:
        await restarted(cluster, "n1", NEWEST)
        await restarted(cluster, "n2", NEWEST)
        await seq_of(cluster["n1"].replica, publish(b"1"))
        await restarted(cluster, "n1", FIRST)
        await restarted(cluster, "n3", NEWEST)
        await trio.sleep(10)
        await seq_of(cluster["n1"].replica, publish(b"2"))
        await cluster.converged()
        assert await history(cluster["n1"].replica) == [b"1", b"2"]
        assert cluster["n2"].replica.state.level == FIRST
        assert not cluster.failures


async def test_a_member_that_is_away_keeps_the_level_as_it_is(autojump_clock: MockClock) -> None:
    async with running_cluster(levels=OLD) as cluster:
        await restarted(cluster, "n1", NEWEST)
        await restarted(cluster, "n2", NEWEST)
        cluster.kill("n3")
        await cluster.leader()
        await trio.sleep(30)
        assert cluster["n1"].replica.state.level == FIRST
        cluster.levels["n3"] = NEWEST
        await cluster.start("n3")
        await trio.sleep(10)
        assert cluster["n3"].replica.state.level == NEWEST


async def test_a_node_of_an_older_version_does_not_join(autojump_clock: MockClock) -> None:
    async with running_cluster() as cluster:
        cluster.levels["n4"] = FIRST
        await cluster.start("n4", join=("n1",))
        await cluster.until(lambda: "n4" in cluster.failures, "the newcomer to end")
        assert isinstance(cluster.failures["n4"], ConfigError)
        assert f"feature level {NEWEST}" in str(cluster.failures["n4"])
        assert "install a newer one" in str(cluster.failures["n4"])
        assert "n4" not in cluster["n1"].replica.membership.ids


@pytest.mark.parametrize("joins_first", [True, False])
async def test_a_node_that_joins_while_the_level_rises_can_read_all_that_it_gets(
    joins_first: bool, autojump_clock: MockClock
) -> None:
    """Either it is a member first, and the level waits; or the level is first, and it waits
    outside: it was let in when it was dialled, before the command for it was applied."""
    async with running_cluster(levels=OLD) as cluster:
        await restarted(cluster, "n1", NEWEST)
        await restarted(cluster, "n2", NEWEST)
        cluster.levels |= {"n3": NEWEST, "n4": FIRST}
        cluster.kill("n3")
        leader = await cluster.leader()
        if joins_first:
            await cluster.start("n4", join=(leader.id,))
            await cluster.start("n3")
        else:
            await cluster.start("n3")
            follower_of(cluster, leader).gate.shut()
            cluster["n3"].gate.shut()
            rises = leader.replica._proposals.has
            await cluster.until(lambda: rises(RaiseLevel), "the level to rise")
            await cluster.start("n4", join=(leader.id,))
            await trio.sleep(0.3)
            for node in cluster.running.values():
                node.gate.open()
        await trio.sleep(20)
        level, ids = leader.replica.state.level, leader.replica.membership.ids
        assert (level, "n4" in ids) == ((FIRST, True) if joins_first else (NEWEST, False))


async def test_an_older_version_at_a_members_place_is_refused_both_ways(
    autojump_clock: MockClock,
) -> None:
    """The one that is dialled has it from the same rule as the one that dials."""
    async with running_cluster() as cluster:
        for node in cluster.running.values():
            assert node.members.admit_level("n2", NEWEST) is None
            assert "install a newer one" in str(node.members.admit_level("n2", FIRST))


@pytest.mark.parametrize(
    "command",
    [
        RaiseLevel(1000),
        Expire(10),
        Configure(Settings(True, Retention(1, 1, 1), 1, 1)),
        Numbered("another", 1, 1, (1,)),
    ],
    ids=lambda command: type(command).__name__,
)
async def test_a_peer_has_nothing_appended_that_is_the_leaders_or_anothers(
    command: Command, autojump_clock: MockClock
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        peer = follower_of(cluster, leader)
        encoded = (encode_command(command), encode_command(publish(b"x")))
        argument = (leader.replica.term, encoded)
        with pytest.raises(PeerRefusedError):
            await peer.line.call(leader.id, "propose", argument, seconds=5)
        assert leader.replica.state.level == NEWEST
        assert await history(leader.replica) == []


async def test_what_only_a_leader_proposes_is_not_sent_on(autojump_clock: MockClock) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        cluster.network.asked.clear()
        with pytest.raises(RequestError) as refused:
            await node.replica.propose(Expire(10))
        assert refused.value.code == "no_leader"
        assert "propose" not in [name for _, _, name in cluster.network.asked]


# --- repeats ---


async def test_what_the_leader_refuses_ends_as_refused_and_not_in_doubt(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent, and answered: it is in no log, however long that is tried."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)

        async def call(*_: object, seconds: float) -> object:
            raise PeerRefusedError("not from you")

        monkeypatch.setattr(node.line, "call", call)
        assert await outcome_of(node, b"x") == "no_leader"


def losing_answers(node: ClusterNode, monkeypatch: pytest.MonkeyPatch, lost: int) -> list[Any]:
    """The next ``lost`` answers to what ``node`` sends on are. Returns all that were given."""
    ask, answers = node.line.call, list[Any]()

    async def call(peer: str, name: str, argument: Any, *, seconds: float) -> Any:
        reply = await ask(peer, name, argument, seconds=seconds)
        if name == "propose":
            answers.append(reply)
        if name != "propose" or len(answers) > lost:
            return reply
        await trio.sleep(1)
        raise PeerUnreachableError("the connection broke")

    monkeypatch.setattr(node.line, "call", call)
    return answers


@pytest.mark.parametrize(
    "first", [CreateTopic("chat", messages=2, replace=True), DeleteTopic("chat")]
)
async def test_a_command_whose_answer_was_lost_undoes_nothing_that_came_since(
    first: Command, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client sets the topic, and publishes, while the first command is in doubt."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        one, other = (node for node in cluster.running.values() if node is not leader)
        await leader.replica.propose(CreateTopic("chat", messages=3))
        answers = losing_answers(one, monkeypatch, 1)
        hold_back_entries(one, monkeypatch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.replica.propose, first)
            await cluster.until(lambda: answers, "the command to be appended")
            put = CreateTopic("chat", messages=1000, replace=True)
            await other.replica.propose(put)
            for number in range(5):
                await seq_of(other.replica, publish(b"%d" % number))
            await cluster.until(lambda: len(answers) == 2, "the command to be appended again")
            monkeypatch.undo()
        await cluster.converged()
        for node in cluster.running.values():
            assert await history(node.replica) == [b"0", b"1", b"2", b"3", b"4"]


def hold_back_entries(node: ClusterNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears of nothing that is appended: so it does not know what became of its command."""
    take: Any = node.replica.receive
    monkeypatch.setattr(
        node.replica, "receive", lambda rpc: None if getattr(rpc, "entries", ()) else take(rpc)
    )


async def test_of_two_that_are_appended_the_first_is_carried_out(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many answers are lost, each publish is kept once, and none ends in doubt."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        answers = losing_answers(node, monkeypatch, 3)
        hold_back_entries(node, monkeypatch)
        found: list[int] = []

        async def send(number: int) -> None:
            found.append(await seq_of(node.replica, publish(b"%d" % number)))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(send, number)
            await cluster.until(lambda: len(answers) > 3, "three answers to be lost")
            monkeypatch.undo()
        await cluster.converged()
        assert len(set(found)) == 10
        assert sorted(await history(leader.replica)) == [b"%d" % n for n in range(10)]


async def test_a_node_that_starts_anew_numbers_from_the_beginning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node_id = follower_of(cluster, leader).id
        for number in range(3):
            await seq_of(cluster[node_id].replica, publish(b"%d" % number))
            cluster.kill(node_id)
            await cluster.start(node_id)
            await cluster.converged()
        assert await history(cluster[node_id].replica) == [b"0", b"1", b"2"]
        numbered = [c for c in commands_of(cluster) if isinstance(c, Numbered)]
        assert {command.numbers for command in numbered} == {(1,)}
        assert len({command.run for command in numbered}) == 3
        assert "older copy" not in caplog.text


async def test_an_older_copy_of_a_store_takes_nothing_for_its_own_that_another_run_sent(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts its starts as the one did that went on, and its numbers, too."""
    async with running_cluster() as cluster:
        node_id = follower_of(cluster, await cluster.leader()).id
        cluster.kill(node_id)
        copy = deepcopy(cluster.disks[node_id])
        await cluster.start(node_id)
        for number in range(5):
            await seq_of(cluster[node_id].replica, publish(b"%d" % number))
        cluster.kill(node_id)
        leader = await cluster.leader()
        other = follower_of(cluster, leader)
        await leader.replica.transfer(other.id)  # whom the copy has acknowledged nothing
        await cluster.until(lambda: other.replica.leads, "the other to lead")
        cluster.disks[node_id] = copy
        node = await cluster.start(node_id)
        hold_back_entries(node, monkeypatch)
        await cluster.until(lambda: node.replica.state.level >= NUMBERED, "it to know its log")
        answers = losing_answers(node, monkeypatch, 0)
        found: list[int | str] = []

        async def send() -> None:
            found.append(await outcome_of(node, b"new"))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send)
            await cluster.until(lambda: answers, "them to be sent on")
            monkeypatch.undo()
        await cluster.converged()
        kept = (await history(node.replica)).count(b"new")
        assert kept == sum(isinstance(each, int) for each in found), found
        assert not {1, 2, 3, 4, 5} & {*found}, "those are another run's"
        (line,) = [r.getMessage() for r in caplog.records if "older copy" in r.message]
        assert "starts=2 starts_known=2" in line
        assert "cluster rejoin" in line


@pytest.mark.parametrize("by_snapshot", [False, True])
async def test_an_older_copy_says_so_to_who_publishes_there(
    by_snapshot: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and not after half a minute that nobody knows what became of it."""
    config = configured(raft={"snapshot_entries": 5 if by_snapshot else 10_000})
    async with running_cluster(config=config) as cluster:
        node_id = follower_of(cluster, await cluster.leader()).id
        cluster.kill(node_id)
        copy = deepcopy(cluster.disks[node_id])
        for _ in range(2):
            await cluster.start(node_id)
            await cluster.converged()
            await seq_of(cluster[node_id].replica, publish(b"kept"))
            cluster.kill(node_id)
        leader = await cluster.leader()
        if by_snapshot:
            for number in range(30):
                await seq_of(leader.replica, publish(b"%d" % number))
            core = leader.replica._core
            core.log.compact(core.committed_index)
        other = follower_of(cluster, leader)
        await leader.replica.transfer(other.id)  # whom the copy has acknowledged nothing
        await cluster.until(lambda: other.replica.leads, "the other to lead")
        other.replica._core.log.compact(other.replica._core.committed_index if by_snapshot else 0)
        cluster.disks[node_id] = copy
        node = await cluster.start(node_id)
        await cluster.converged()
        assert (node.replica.statistics().snapshots_received > 0) is by_snapshot
        began = trio.current_time()
        assert await outcome_of(node, b"new") == "older_copy"
        assert trio.current_time() == began
        assert b"new" not in await history(node.replica)
        with pytest.raises(RequestError, match=r"older copy.*cluster rejoin"):
            node.broker.check_ready()
        assert not node.broker.ready
        assert other.broker.ready
        assert len([r for r in caplog.records if "older copy" in r.getMessage()]) == 1


async def test_what_an_older_copy_has_under_way_is_refused_when_it_is_found_out(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later start has numbers in the log: those of this one are carried out by nobody."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        await seq_of(node.replica, publish(b"1"))
        hold_back_entries(node, monkeypatch)
        later = Numbered(node.replica.incarnation, node.replica._run + (1 << 32), 1, (1,))
        await leader.replica.propose(later)
        found: list[int | str] = []

        async def send() -> None:
            found.append(await outcome_of(node, b"new"))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send)
            await trio.sleep(1)
            assert found == []
            monkeypatch.undo()
        assert found == ["older_copy"] * 3
        await cluster.converged()
        assert await history(leader.replica) == [b"1"]


async def test_when_the_origin_leads_itself_it_appends_its_number_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sent to the leader before may be in the log that it takes over."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        node = follower_of(cluster, leader)
        answers = losing_answers(node, monkeypatch, 1)
        found: list[object] = []

        async def send() -> None:
            found.append(await outcome_of(node, b"x"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await cluster.until(lambda: answers, "the publish to be appended")
            await leader.replica.transfer(node.id)
        await cluster.leader()
        await cluster.converged()
        assert found == [1]
        assert await history(node.replica) == [b"x"]


def test_levels_are_in_order() -> None:
    assert FIRST < NUMBERED <= NEWEST
