"""Whole nodes in one process, on a network that a test can cut. Time is Trio's mock clock.

Real: broker, hub, replica, members, the core, every RPC's bytes. Not real: the
disk is memory, and a connection is a call; both outlive a node that is killed.

    async with running_cluster(3) as cluster:
        await cluster["n2"].replica.propose(publish())
        cluster.cut("n1")
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import trio

from repl_broker.broker import Broker
from repl_broker.clocks import Clocks
from repl_broker.config import Address, Config
from repl_broker.errors import ReplBrokerError
from repl_broker.founding import Rebuilt
from repl_broker.handshake import Hello, Loss, Lost, Refused, Removal, Twin, lost_its_data
from repl_broker.hub import Hub
from repl_broker.levels import NEWEST
from repl_broker.members import Members
from repl_broker.raft.codec import decode_rpc, encode_rpc
from repl_broker.raft.core import CoreOptions
from repl_broker.raft.log import Member
from repl_broker.raft.rpc import Rpc
from repl_broker.replica import Replica
from repl_broker.state import Applied
from repl_broker.transport import (
    Me,
    PeerRefusedError,
    PeerUnreachableError,
    TransportStatistics,
)
from tests.nodes import Clock, Disk, Gate

DELAY_SECONDS = 0.001
OPTIONS = CoreOptions(election_timeout_seconds=1.0, heartbeat_interval_seconds=0.1)
WAIT_SECONDS_MAX = 60  # of mock time


class Line:
    """What a node has in the place of a Transport."""

    def __init__(self, network: Network, node_id: str) -> None:
        self.me = Me("", node_id, "")
        self._network = network
        self._node_id = node_id

    def set_peers(
        self,
        addresses: Mapping[str, tuple[str, int]],
        incarnations: Mapping[str, str] | None = None,
    ) -> None:
        pass  # whoever is there can be reached

    def send(self, rpc: Rpc) -> None:
        assert rpc.sender == self._node_id
        self._network.start(self._network.carry, encode_rpc(rpc), self._node_id, rpc.receiver)

    def flush(self) -> None:
        pass

    async def call(self, peer: str, name: str, argument: Any, *, seconds: float) -> Any:
        return await self._network.ask(self._node_id, peer, name, argument, seconds)

    async def call_address(
        self, address: tuple[str, int], name: str, argument: Any, *, seconds: float
    ) -> Any:
        return await self._network.ask(self._node_id, address[0], name, argument, seconds)

    async def meet(
        self,
        address: tuple[str, int],
        name: str,
        argument: Any,
        *,
        seconds: float,
        who: tuple[str, str] | None = None,
    ) -> tuple[Any, int, str]:
        node = self._network.nodes.get(address[0])
        answer = await self.call_address(address, name, argument, seconds=seconds)
        assert node is not None, "it has answered"
        assert who in (None, (node.id, node.replica.incarnation))
        return answer, node.replica.level_max, node.process

    has_twin = had_twin = False

    async def find_twin(self, node_id: str, process: str, address: str) -> Twin | None:
        node = self._network.nodes.get(node_id)
        if node is None or not self.is_heard(node_id) or process == node.process:
            return None
        return Twin(f"node {node_id!r} runs twice")

    def is_heard(self, peer: str) -> bool:
        return self._network.reaches(peer, self._node_id)

    def refusals(self) -> dict[str, str]:
        return {}

    def statistics(self) -> TransportStatistics:
        connected = sum(map(self.is_connected, self._network.nodes.keys() - {self._node_id}))
        return TransportStatistics(connected, 0, 0, 0, 0)

    def is_connected(self, peer: str) -> bool:
        return self._network.reaches(self._node_id, peer)

    def level_of(self, peer: str) -> int | None:
        """As in a transport, what is said in the handshake."""
        nodes = self._network.nodes
        return nodes[peer].replica.level_max if self.is_connected(peer) else None


class Network:
    """Who reaches whom. A node's host name is its id."""

    def __init__(self) -> None:
        self.nodes: dict[str, ClusterNode] = {}  # those that run
        self.lost: set[tuple[str, str]] = set()  # from, to
        self.ask_seconds: dict[str, float] = {}  # to whom is asked, if not DELAY_SECONDS
        self.nursery: trio.Nursery | None = None
        self.asked: list[tuple[str, str, str]] = []  # from, to, what
        self.started: list[str] = []  # each life of a node has chances of its own

    def start(self, task: Any, *arguments: Any) -> None:
        if self.nursery is not None:
            self.nursery.start_soon(task, *arguments)

    def reaches(self, sender: str, receiver: str) -> bool:
        node = self.nodes.get(receiver)
        return node is not None and node.listens and (sender, receiver) not in self.lost

    async def carry(self, data: bytes, sender: str, receiver: str) -> None:
        await trio.sleep(DELAY_SECONDS)
        if sender in self.nodes and self.reaches(sender, receiver):
            if self._refuses(self.nodes[sender], self.nodes[receiver]):
                self._tell_loss(self.nodes[sender], self.nodes[receiver])
                return
            self.nodes[receiver].replica.receive(decode_rpc(data))
            self.nodes[receiver].replica.turn()

    def _refuses(self, dialer: ClusterNode, acceptor: ClusterNode) -> bool:
        """Whether there would be no connection between members: of another cluster, or wiped."""
        known = dialer.replica.membership.find(acceptor.id)
        is_lost = known is not None and known.incarnation not in ("", acceptor.line.me.incarnation)
        clusters = {dialer.line.me.cluster_id, acceptor.line.me.cluster_id}
        return is_lost or len(clusters - {""}) > 1

    def _tell_loss(self, dialer: ClusterNode, acceptor: ClusterNode) -> None:
        """As the handshake does, with whoever is dialled under a name that another had."""
        known = dialer.replica.membership.find(acceptor.id)
        me = dialer.line.me
        if dialer.replica.disowned is not None or known is None or not me.cluster_id:
            return
        if known.incarnation not in ("", acceptor.line.me.incarnation):
            reason = lost_its_data(acceptor.id, me.cluster_id)
            acceptor.members.disown(Lost(reason, dialer.id, me.cluster_id, dialer.members.is_led))

    async def ask(
        self, sender: str, receiver: str, name: str, argument: Any, seconds: float
    ) -> Any:
        self.asked.append((sender, receiver, name))
        if not self.reaches(sender, receiver):
            raise PeerUnreachableError("no connection", sent=False)
        with trio.move_on_after(seconds):
            await trio.sleep(self.ask_seconds.get(receiver, DELAY_SECONDS))
            node = self.nodes.get(receiver)
            if node is None:
                raise PeerUnreachableError("the connection broke")
            reply = await self._answer(node, sender, name, argument)
            await trio.sleep(DELAY_SECONDS)
            if self.nodes.get(receiver) is node and self.reaches(receiver, sender):
                return reply
        raise PeerUnreachableError("no answer")

    async def _answer(self, node: ClusterNode, sender: str, name: str, argument: Any) -> Any:
        me = self.nodes[sender].line.me
        known_index = self.nodes[sender].members.known_index
        identity = (me.cluster_id, me.node_id, me.incarnation)
        about = (node.line.me.node_id, node.line.me.cluster_id, node.members.is_led)
        hello = Hello(2, 2, *identity, known_index, node.id, "", level=me.level)
        objection = node.members.admit(hello)
        if objection is not None:
            if isinstance(objection, Removal):
                self.nodes[sender].replica.removed.set()
            if isinstance(objection, Loss):
                lost = Lost(str(objection), *about, objection.member_at)
                self.nodes[sender].members.disown(lost)
            refused = Refused("refused", str(objection), *about)
            raise PeerRefusedError(objection, about=refused)
        peer = sender if me.cluster_id else ""
        try:
            return _over_the_wire(await node.members.answer(peer, name, _over_the_wire(argument)))
        except ReplBrokerError as error:
            raise PeerRefusedError(str(error)) from None


def _over_the_wire(value: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(value), use_list=False)


class ClusterNode:
    """One life of a node; its disk outlives it."""

    def __init__(
        self,
        network: Network,
        node_id: str,
        disk: Disk,
        config: Config,
        *,
        join: tuple[str, ...] = (),
        watch: tuple[str, ...] = (),
        rebuilt: Rebuilt | bool = False,
        clock: Callable[[], int],
        level: int = NEWEST,
    ) -> None:
        self.id = node_id
        self.process = f"{node_id}, start {len(network.started)}"
        self.disk = disk
        self.gate = Gate()
        self.hub = Hub(disk.identity.epoch, config.limits.tail_bytes)
        self.replica = Replica(
            disk,
            Broker.settings(config),
            now_ms=clock,
            on_applied=self._publish,
            on_restored=self._restored,
            on_members=lambda members: self.members.follow(members),
            snapshot_entries=config.raft.snapshot_entries,
            core_options=OPTIONS,
            in_thread=self.gate,
            writer=self.gate,
            randomness=random.Random(f"{node_id}, {len(network.started)}"),
            level_max=level,
        )
        self.line = Line(network, node_id)
        self.listens = False
        self.clocks = Clocks(self.replica, clock, config.cluster.clock_skew_seconds_max)
        self.config = config
        self.join = join
        self.watch = watch
        self.rebuilt = rebuilt

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.replica.load(joins=bool(self.join))
        self.hub.position = self.replica.state.seq
        identity = self.disk.identity
        me = Member(
            self.id, f"{self.id}:4081", f"http://{self.id}:4080", True, identity.incarnation
        )
        self.members = Members(
            self.replica,
            me,
            join=[Address(host, 4081) for host in self.join],
            watch=[Address(host, 4081) for host in self.watch],
            rebuilt=Rebuilt(0, False, ()) if self.rebuilt is True else self.rebuilt or None,
            on_adopted=self._adopted,
            on_disowned=self.hub.close,
        )
        self.replica.peers = self.line
        self.members.connect(self.line)  # type: ignore[arg-type]
        self.listens = True
        self.members.skew_seconds = self.clocks.skew_seconds
        self.members.check_clock = self.clocks.check
        self.broker = Broker(self.replica, self.hub, self.config, self.members)
        self.broker.clocks = self.clocks
        async with trio.open_nursery() as nursery:
            await nursery.start(self.replica.run)
            nursery.start_soon(self.members.run)
            nursery.start_soon(self.members.look_around)
            nursery.start_soon(self.members.raise_level)
            nursery.start_soon(self.clocks.run)
            await self.members.look_first()
            nursery.start_soon(self.broker.idle.run)
            nursery.start_soon(self.broker.readiness.run)
            task_status.started()
            await trio.sleep_forever()

    def _publish(self, applied: Applied) -> None:
        self.hub.publish(applied.events, self.replica.state.seq)
        self.broker.access.revoke(applied.revoked)

    def _restored(self) -> None:
        self.hub.jump(self.replica.state.seq)
        self.broker.access.revoke_all()

    def _adopted(self) -> None:
        self.hub.epoch = self.replica.epoch


class Cluster:
    """Nodes n1, n2, … on one network."""

    def __init__(self, nursery: trio.Nursery, config: Config) -> None:
        self.network = Network()
        self.network.nursery = nursery
        self.config = config
        self.clock = Clock()
        self._began = trio.current_time()
        self.ahead_ms: dict[str, int] = {}  # by how much a node's clock is
        self.disks: dict[str, Disk] = {}
        self.levels: dict[str, int] = {}  # of nodes that run an older version
        self.failures: dict[str, BaseException] = {}  # of nodes that ended by themselves
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery = nursery

    def now_ms(self) -> int:
        """The right time, which goes on with Trio's."""
        return self.clock() + round((trio.current_time() - self._began) * 1000)

    def __getitem__(self, node_id: str) -> ClusterNode:
        return self.network.nodes[node_id]

    @property
    def running(self) -> dict[str, ClusterNode]:
        return self.network.nodes

    async def start(
        self,
        node_id: str,
        *,
        join: tuple[str, ...] = (),
        watch: tuple[str, ...] = (),
        rebuilt: Rebuilt | bool = False,
    ) -> ClusterNode:
        disk = self.disks.setdefault(node_id, Disk(node_id))
        node = ClusterNode(
            self.network,
            node_id,
            disk,
            self.config,
            join=join,
            watch=watch,
            rebuilt=rebuilt,
            clock=lambda: self.now_ms() + self.ahead_ms.get(node_id, 0),
            level=self.levels.get(node_id, NEWEST),
        )
        self.network.nodes[node_id] = node
        self.network.started.append(node_id)
        await self._nursery.start(self._run, node)
        return node

    async def _run(
        self, node: ClusterNode, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.CancelScope() as scope:
            self._scopes[node.id] = scope
            started = False
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(node.run)
                    started = True
                    task_status.started()
            except Exception as error:
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                if not isinstance(error, ReplBrokerError):
                    raise
                self.failures[node.id] = error
                self._leave(node)
                if not started:
                    task_status.started()

    def kill(self, node_id: str) -> None:
        """End it without ceremony; peers notice that its connections broke."""
        node = self.network.nodes[node_id]
        node.gate.open()  # a write that has begun cannot be cancelled
        self._scopes[node_id].cancel()
        self._leave(node)

    def _leave(self, node: ClusterNode) -> None:
        self.network.nodes.pop(node.id, None)
        for other in self.network.nodes.values():
            other.replica.lost(node.id)

    def cut(self, *ids: str) -> None:
        """Nothing passes between these and the others, without a sound."""
        for one in ids:
            for other in self.disks.keys() - set(ids):
                self.network.lost |= {(one, other), (other, one)}

    def heal(self) -> None:
        self.network.lost.clear()

    # --- waiting, in mock time ---

    async def until(self, condition: Any, what: str) -> None:
        for _ in range(WAIT_SECONDS_MAX * 100):
            if condition():
                return
            await trio.sleep(0.01)
        raise AssertionError(f"waited {WAIT_SECONDS_MAX} s for {what}")

    async def leader(self, *among: str) -> ClusterNode:
        """The node that leads, once all of ``among`` (all that run by default) agree."""
        found: list[ClusterNode] = []

        def agreed() -> bool:
            nodes = [self[each] for each in among] or [*self.running.values()]
            ids = {node.replica.leader for node in nodes}
            found[:] = [node for node in nodes if node.replica.leads]
            return len(ids) == 1 and len(found) == 1

        await self.until(agreed, "a leader")
        return found[0]

    async def converged(self) -> None:
        """Until every node has applied the same, and its state is the same."""

        def level() -> bool:
            nodes = self.running.values()
            indexes = {node.replica.state.applied_index for node in nodes}
            last = {node.replica.statistics().last_index for node in nodes}
            return len(indexes | last) == 1

        await self.until(level, "all nodes to be level")
        self.compare_digests()

    def compare_digests(self) -> None:
        """Nodes that have applied the same have the same state, however they came by it."""
        digests: dict[int, tuple[str, str]] = {}
        for node in self.running.values():
            state = node.replica.state
            if state._capture is not None:
                continue  # a snapshot of it is being taken, one at a time
            digest, other = digests.setdefault(state.applied_index, (state.digest(), node.id))
            assert state.digest() == digest, (
                f"{other} and {node.id} differ at entry {state.applied_index}"
            )

    async def all_vote(self) -> None:
        """Until every node that runs is a voter, as all of them know."""

        def level() -> bool:
            ids = set(self.running)
            members = [n.replica.committed_membership for n in self.running.values()]
            return all(m.voters >= ids and all(x.incarnation for x in m.members) for m in members)

        await self.until(level, "all nodes to be voters")


@asynccontextmanager
async def running_cluster(
    size: int = 3, config: Config | None = None, *, levels: dict[str, int] | None = None
) -> AsyncIterator[Cluster]:
    """A cluster of so many voters, level with each other; ``levels`` of older versions."""
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery, config or Config())
        cluster.levels |= levels or {}
        await cluster.start("n1")
        for number in range(2, size + 1):
            await cluster.start(f"n{number}", join=("n1",))
        await cluster.all_vote()
        await cluster.converged()
        cluster.network.asked.clear()
        try:
            yield cluster
            cluster.compare_digests()
        finally:
            for node in cluster.running.values():
                node.gate.open()
            nursery.cancel_scope.cancel()
