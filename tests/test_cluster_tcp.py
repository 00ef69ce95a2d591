"""Whole nodes over real connections, in real time: what only the transport's limits show.

Their disks are memory. All else of a cluster is in test_cluster.py, where time
is Trio's mock clock.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from repl_broker import cluster as clustering
from repl_broker.broker import Broker
from repl_broker.certificates import Certificates
from repl_broker.clocks import Clocks
from repl_broker.config import Address, Config
from repl_broker.hub import Hub
from repl_broker.members import Members
from repl_broker.raft.core import CoreOptions
from repl_broker.raft.log import Member
from repl_broker.raft.rpc import Append, Rpc
from repl_broker.replica import Replica
from repl_broker.transport import PeerRefusedError, PeerUnreachableError
from tests.authority import peer_config, write
from tests.nodes import ANYONE, Clock, Disk, Gate
from tests.test_cluster import SMALL, publish
from tests.test_transport import Node

SECRET = b"a secret of this cluster"
OPTIONS = CoreOptions(election_timeout_seconds=2.0, heartbeat_interval_seconds=0.1)


class TcpNode:
    """A node that listens on loopback."""

    def __init__(
        self,
        node_id: str,
        config: Config,
        join: tuple[Address, ...],
        disk: Disk | None = None,
    ) -> None:
        self.id = node_id
        self.config = config
        self.certificates = Certificates(config)
        self.join = join
        self.port = 0  # where it is to listen, if that is known
        self.disk = disk or Disk(node_id)
        self.gate = Gate()
        self.hub = Hub(self.disk.identity.epoch, config.limits.tail_bytes)
        clock = Clock()
        self.replica = Replica(
            self.disk,
            Broker.settings(config),
            now_ms=clock,
            on_applied=lambda applied: self.hub.publish(applied.events, self.replica.state.seq),
            on_restored=lambda: self.hub.jump(self.replica.state.seq),
            on_members=lambda members: self.members.follow(members),
            snapshot_entries=config.raft.snapshot_entries,
            core_options=OPTIONS,
            in_thread=self.gate,
            writer=self.gate,
            randomness=random.Random(node_id),
        )
        self.clocks = Clocks(self.replica, clock, config.cluster.clock_skew_seconds_max)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.replica.load(joins=bool(self.join))
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.address = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
        incarnation = self.disk.identity.incarnation
        me = Member(self.id, str(self.address), f"http://{self.id}", True, incarnation)
        self.members = Members(self.replica, me, join=self.join)
        self.transport = clustering.connect(self.replica, self.members, [SECRET], self.certificates)
        self.broker = Broker(self.replica, self.hub, self.config, self.members)
        async with trio.open_nursery() as nursery:
            parts = (self.transport, self.members, self.clocks, listeners)
            await nursery.start(clustering.run, *parts)
            await nursery.start(self.replica.run)
            task_status.started()
            await trio.sleep_forever()


@asynccontextmanager
async def tcp_cluster(
    config: Config | None = None, configs: Sequence[Config] = ()
) -> AsyncIterator[list[TcpNode]]:
    """Three voters, level and connected with each other; the first is the leader.

    ``configs`` has one for each, in the order of their names.
    """
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nodes: list[TcpNode] = []
            for number in range(1, 4):
                join = (nodes[0].address,) if nodes else ()
                own = configs[number - 1] if configs else config or Config()
                nodes.append(TcpNode(f"n{number}", own, join))
                await nursery.start(nodes[-1].run)
            while not all(map(_is_settled, nodes)):  # noqa: ASYNC110
                await trio.sleep(0.02)
            yield sorted(nodes, key=lambda node: not node.replica.leads)
            nursery.cancel_scope.cancel()


def _is_settled(node: TcpNode) -> bool:
    members = node.replica.committed_membership
    connected = node.transport.statistics().connected
    return members.voters == {"n1", "n2", "n3"} and connected == 2 and node.broker.ready


class Names(trio.abc.HostnameResolver):
    """Where hosts are, as it changes."""

    def __init__(self, **hosts: str) -> None:
        self.hosts = hosts
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        self.asked.append(name)
        if name not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (self.hosts[name], int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.02)


async def test_a_name_in_join_is_looked_up_anew_at_each_try() -> None:
    """The host that it names comes up at another address than it had, or has one only later."""
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)
    async with tcp_cluster() as nodes:
        member = nodes[0]
        newcomer = TcpNode("n4", Config(), (Address("seed", member.address.port),))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(newcomer.run)
            await until(lambda: names.asked.count("seed") >= 2)
            names.hosts["seed"] = "127.0.0.99"  # where nobody listens
            asked = len(names.asked)
            await until(lambda: len(names.asked) > asked + 1)
            names.hosts["seed"] = "127.0.0.1"
            await until(lambda: "n4" in member.replica.committed_membership.voters)
            nursery.cancel_scope.cancel()


async def test_a_newcomer_passes_over_itself_by_whichever_name() -> None:
    """The list in ``join`` may be the same on all nodes, and names them as none listens."""
    names = Names(itself="127.0.0.1")
    trio.socket.set_custom_hostname_resolver(names)
    async with tcp_cluster() as nodes:
        newcomer = TcpNode("n4", Config(), (Address("nobody", 1),))
        async with trio.open_nursery() as nursery:
            await nursery.start(newcomer.run)
            newcomer.members._join = (
                Address("itself", newcomer.address.port),
                Address("member", nodes[0].address.port),
            )
            await until(lambda: names.asked.count("itself") > 1)  # and nobody else has answered
            names.hosts["member"] = "127.0.0.1"
            await until(lambda: "n4" in nodes[0].replica.committed_membership.voters)
            nursery.cancel_scope.cancel()


async def test_a_member_is_dialed_where_its_name_leads_now() -> None:
    """Its address in the members' record is a name, and stays."""
    names = Names(b="127.0.0.2")
    trio.socket.set_custom_hostname_resolver(names)
    a = Node("a")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            (first,) = await trio.open_tcp_listeners(0, host="127.0.0.2")
            port = first.socket.getsockname()[1]
            a.transport.set_peers({"b": ("b", port)})
            await nursery.start(a.transport.run, [])
            async with trio.open_nursery() as life:
                await life.start(Node("b").transport.run, [first])
                assert await a.transport.call("b", "ask", 1, seconds=10)
                life.cancel_scope.cancel()
            names.hosts["b"] = "127.0.0.3"
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.3")
            await nursery.start(Node("b").transport.run, listeners)
            assert await a.transport.call("b", "ask", 2, seconds=10) == ("a", "ask", 2)
            nursery.cancel_scope.cancel()


async def test_a_name_that_takes_long_to_look_up_is_not_asked_for_again_meanwhile() -> None:
    """Each lookup is a thread: given up after a second and begun anew, they would be all."""
    asked: list[str] = []

    class Slow(Names):
        async def getaddrinfo(self, host: Any, port: Any, *args: Any) -> Any:
            asked.append(str(host))
            await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(Slow())
    a = Node("a", connect_seconds=0.01)
    async with trio.open_nursery() as nursery:
        a.transport.set_peers({"b": ("b", 1)})
        await nursery.start(a.transport.run, [])
        await until(lambda: asked)
        with pytest.raises(PeerUnreachableError):
            await a.transport.call("b", "ask", 1, seconds=0.5)
        nursery.cancel_scope.cancel()
    assert len(asked) == 1


async def test_a_cluster_whose_addresses_have_all_changed_meets_again() -> None:
    """As those of containers do. What each knows of the others is out of date; ``join`` says
    where they are now, and the members' record follows."""
    async with tcp_cluster() as nodes:
        await nodes[0].replica.propose(publish(b"before"))
        disks = {node.id: node.disk for node in nodes}
        before = {m.id: m.raft_address for m in nodes[0].replica.membership.members}
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            again = [TcpNode(node_id, Config(), (), disk) for node_id, disk in disks.items()]
            for node in again:
                await nursery.start(node.run)
            await trio.sleep(0.5)
            assert not any(node.broker.ready for node in again), "they do not meet by themselves"
            for node in again:
                node.members._watch = tuple(each.address for each in again)
                nursery.start_soon(node.members.look_around)
            await until(lambda: all(node.broker.ready for node in again))
            await again[0].replica.propose(publish(b"after"))
            now = {node.id: str(node.address) for node in again}
            assert now.keys() == before.keys()
            assert not set(now.values()) & set(before.values())
            for node in again:
                await until(
                    lambda node=node: (
                        {m.id: m.raft_address for m in node.replica.committed_membership.members}
                        == now
                    )
                )
            await until(lambda: {node.replica.state.seq for node in again} == {2})
            nursery.cancel_scope.cancel()


async def test_many_reads_through_a_follower_depose_no_leader() -> None:
    """RAFT.md scenarios 9, 44: each was a request, and heartbeats waited behind them."""
    async with tcp_cluster() as nodes:
        leader, follower, _ = nodes
        term = leader.replica.term
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(follower.replica.read_barrier)
        assert {node.replica.term for node in nodes} == {term}
        assert leader.replica.leads


async def test_many_publishes_through_a_follower_depose_no_leader() -> None:
    async with tcp_cluster() as nodes:
        leader, follower, _ = nodes
        term = leader.replica.term
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(follower.replica.propose, publish(b"%d" % number))
        assert {node.replica.term for node in nodes} == {term}
        assert leader.replica.state.seq == 300


async def test_a_node_that_is_removed_while_it_gets_a_snapshot_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RAFT.md scenario 9: it does not stand for ever, and its operator learns why."""
    monkeypatch.setattr("repl_broker.replica.RELEASE_BYTES", 2000)
    monkeypatch.setattr("repl_broker.sending.LOG_BYTES_KEPT", 1000)
    async with tcp_cluster(SMALL) as nodes:
        leader, behind, _ = nodes
        begun = trio.Event()
        receive = behind.replica.receive

        async def begin(peer: str, argument: Any) -> None:
            begun.set()
            await trio.sleep_forever()

        def lose_entries(rpc: Rpc) -> None:
            if not (isinstance(rpc, Append) and rpc.entries):
                receive(rpc)

        behind.replica.handlers["snapshot-begin"] = begin
        behind.transport._on_rpc = lose_entries
        for number in range(120):
            await leader.replica.propose(publish(b'"%06d"' % number))
        await begun.wait()
        behind.transport._on_rpc = receive
        await leader.broker.remove_member(ANYONE, behind.id)
        with trio.fail_after(10):
            await behind.replica.removed.wait()


async def test_three_nodes_with_certificates_are_a_cluster_and_others_get_nothing(
    tmp_path: Path,
) -> None:
    """Joining, publishing through a follower, and new certificates while it goes on."""
    authority = trustme.CA()
    folders = [tmp_path / f"n{number}" for number in range(1, 4)]
    for folder in folders:
        folder.mkdir()
    configs = [peer_config(write(folder, authority)) for folder in folders]
    async with tcp_cluster(configs=configs) as nodes:
        leader, follower, _ = nodes
        term = leader.replica.term
        await follower.replica.propose(publish(b"before"))
        other_authority = trustme.CA()
        for folder in folders:
            write(folder, other_authority)
        for node in nodes:
            node.certificates.reload(node.config)
        await follower.replica.propose(publish(b"after"))
        assert leader.replica.state.seq == 2
        assert {node.replica.term for node in nodes} == {term}
        address = (leader.address.host, leader.address.port)
        (tmp_path / "x").mkdir()
        strangers = [
            Certificates(Config()),
            Certificates(peer_config(write(tmp_path / "x", trustme.CA()))),
            Certificates(peer_config(write(tmp_path / "x", authority))),  # the CA of before
        ]
        for certificates in strangers:
            stranger = Node("n4", tls=certificates.peers if certificates.has_peers else None)
            with pytest.raises(PeerRefusedError):
                await stranger.transport.call_address(address, "who", None, seconds=5)
        newcomer = TcpNode("n4", peer_config(write(tmp_path / "x", other_authority)), join=())
        newcomer.join = (follower.address,)
        async with trio.open_nursery() as nursery:
            await nursery.start(newcomer.run)
            while newcomer.replica.state.seq < 2 or not newcomer.broker.ready:  # noqa: ASYNC110
                await trio.sleep(0.02)
            assert await newcomer.replica.propose(publish(b"from the newcomer"))
            nursery.cancel_scope.cancel()


async def test_a_node_that_was_away_follows_a_leader_that_took_another_members_place() -> None:
    """That one lost its data and joined anew; who was away knows it by its old data."""
    async with tcp_cluster() as nodes, trio.open_nursery() as nursery:
        leader, replaced, _ = nodes

        async def start(node: TcpNode) -> trio.CancelScope:
            scope = trio.CancelScope()

            async def run(*, task_status: trio.TaskStatus[None]) -> None:
                with scope:
                    await node.run(task_status=task_status)

            await nursery.start(run)
            return scope

        def votes(node: TcpNode) -> bool:
            found = leader.replica.committed_membership.find(node.id)
            return found == replace(node.members._me, voter=True)

        async def until(condition: Callable[[], bool]) -> None:
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.02)

        away = TcpNode("n4", Config(), (leader.address,))
        scope = await start(away)
        await until(lambda: votes(away))
        scope.cancel()
        await leader.members.remove(replaced.id)
        await replaced.replica.removed.wait()
        assert replaced.transport._nursery is not None
        replaced.transport._nursery.cancel_scope.cancel()  # it ends
        anew = TcpNode(replaced.id, Config(), (leader.address,))
        await start(anew)
        await until(lambda: votes(anew))
        await leader.members.transfer(anew.id)
        await until(lambda: anew.replica.leads)
        back = TcpNode("n4", Config(), (), away.disk)
        back.port = away.address.port
        await start(back)
        await until(lambda: back.broker.ready)
        assert back.replica.leader == anew.id
        assert back.replica.membership.find(anew.id) == anew.members._me
        nursery.cancel_scope.cancel()
