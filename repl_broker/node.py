"""A node beneath its doors: store, log, hub, peers and broker, put together in one place.

    load      reads the store; finds out whether there is a cluster
    connect   with the addresses at which it listens: peers, and the broker for the doors
    run       until cancelled
    close     after the last write

The daemon puts HTTP on top of it. A simulation puts clients there, and gives other
``Seams``: all that a node asks of its machine, beside the store and the network, is in these.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from repl_broker import cluster
from repl_broker.access import Access
from repl_broker.broker import Broker
from repl_broker.certificates import Certificates
from repl_broker.clocks import Clocks
from repl_broker.cluster_secret import ClusterSecret
from repl_broker.config import Config
from repl_broker.disk import InThread
from repl_broker.founding import FOUNDINGS, rebuilt_of
from repl_broker.hub import Hub
from repl_broker.members import Members
from repl_broker.raft.log import Membership
from repl_broker.replica import Replica
from repl_broker.room import Room
from repl_broker.state import Applied
from repl_broker.storage import SqliteStorage
from repl_broker.transport import Transport
from repl_broker.writer import Writer

__all__ = ["Node", "Seams"]


@dataclass(frozen=True, slots=True)
class Seams:
    """The clock of day, threads, and chance: the machine's own unless said otherwise."""

    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    in_thread: InThread = trio.to_thread.run_sync
    writer: Writer | None = None  # None: a thread
    randomness: random.Random | None = None  # of timeouts


class Node:
    """One life of a node over ``storage``, which whoever opened it closes after ``close``."""

    def __init__(
        self,
        config: Config,
        storage: SqliteStorage,
        access: Access,
        certificates: Certificates,
        *,
        make_broker: Callable[..., Broker] = Broker,
        seams: Seams | None = None,
    ) -> None:
        seams = seams or Seams()
        self.config = config
        self.storage = storage
        self.access = access
        self.hub = Hub(storage.identity.epoch, config.limits.tail_bytes)
        self.replica = Replica(
            storage,
            Broker.settings(config),
            now_ms=seams.now_ms,
            on_applied=self._publish,
            on_restored=self._restored,
            on_members=self._follow,
            snapshot_entries=config.raft.snapshot_entries,
            core_options=cluster.core_options(config),
            in_thread=seams.in_thread,
            writer=seams.writer,
            randomness=seams.randomness,
        )
        self.clustered = False  # known once it is loaded
        self.members: Members | None = None  # those of a cluster, once it is connected
        self.clocks: Clocks | None = None  # … and theirs
        self.room: Room
        self.broker: Broker
        self._make_broker = make_broker
        self._certificates = certificates
        self._in_thread = seams.in_thread
        self._join = config.cluster.join
        self._now_ms = seams.now_ms
        self.secret: ClusterSecret | None = None  # of a cluster, once it is loaded
        self._transport: Transport | None = None
        self._raft_listeners: list[trio.SocketListener] = []

    async def load(self, *, bootstrap: bool) -> None:
        """Read the store. Raises ConfigError, StorageError."""
        config, replica = self.config, self.replica
        self._join = () if bootstrap else config.cluster.join
        await replica.load(joins=bool(self._join))
        self.clustered = cluster.is_clustered(replica, config, bootstrap=bootstrap)
        if self.clustered:
            self.secret = ClusterSecret(config)
            await self.secret.load()
            self.secret.tell()
        if (
            bootstrap
            and replica.is_empty
            and await cluster.find_cluster(replica, config, self._keys, self._certificates)
        ):
            self._join = config.cluster.join
            await replica.load(joins=True)
        self.hub.position = replica.state.seq

    async def connect(
        self, listeners: list[trio.SocketListener], raft_listeners: list[trio.SocketListener]
    ) -> Broker:
        """What the doors call. Raises ConfigError."""
        config, replica = self.config, self.replica
        if self.clustered:
            me = cluster.own_record(config, replica, raft_listeners, listeners)
            foundings = await self._in_thread(self.storage.note, FOUNDINGS)
            self.members = Members(
                replica,
                me,
                join=self._join,
                watch=config.cluster.join,
                rebuilt=rebuilt_of(foundings, me),
                on_adopted=self._adopted,
                on_disowned=self.hub.close,
            )
            self.clocks = Clocks(replica, self._now_ms, config.cluster.clock_skew_seconds_max)
            self.members.skew_seconds = self.clocks.skew_seconds
            self.members.check_clock = self.clocks.check
            self._raft_listeners = raft_listeners
            self._transport = cluster.connect(replica, self.members, self._keys, self._certificates)
        self.room = Room(replica, config.limits, self.storage.free_bytes, in_thread=self._in_thread)
        self.broker = self._make_broker(
            replica, self.hub, config, self.members, self.room, self.access
        )
        self.broker.clocks = self.clocks
        self.broker.certificates = self._certificates
        return self.broker

    @property
    def _keys(self) -> tuple[bytes, ...]:
        assert self.secret is not None, "a cluster has a secret, be it empty"
        return self.secret.keys

    async def run(
        self,
        part: Callable[[], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Started once requests may come. If the log fails, ``part`` runs before the error is
        raised, which ends the node."""
        async with trio.open_nursery() as nursery:
            if self.members is not None:
                assert self._transport is not None, "members have connections"
                assert self.clocks is not None, "… and clocks"
                assert self.secret is not None, "… and a secret"
                nursery.start_soon(self.secret.run, self._transport.take_keys)
                await nursery.start(
                    cluster.run, self._transport, self.members, self.clocks, self._raft_listeners
                )
            await nursery.start(partial(self._run_replica, part))
            if self.members is not None:
                await self.members.look_first()
            nursery.start_soon(self.room.run)
            nursery.start_soon(self.broker.readiness.run)
            nursery.start_soon(self.broker.reached.run)
            nursery.start_soon(self.broker.idle.run)
            nursery.start_soon(self.access.run)
            nursery.start_soon(self._certificates.run)
            task_status.started()

    async def _run_replica(
        self,
        part: Callable[[], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            await self.replica.run(task_status=task_status)
        except Exception:
            await part()
            raise

    async def close(self) -> None:
        """Wait for the last write, however ``run`` ended or if it never ran."""
        await self.replica.close()

    def _publish(self, applied: Applied) -> None:
        self.hub.publish(applied.events, self.replica.state.seq)
        if applied.revoked:
            self.access.revoke(applied.revoked)

    def _restored(self) -> None:
        """A snapshot of the leader's took the place of the state."""
        self.hub.jump(self.replica.state.seq)
        self.access.revoke_all()

    def _follow(self, members: Membership) -> None:
        if self.members is not None:
            self.members.follow(members)

    def _adopted(self) -> None:
        """A cluster has taken this node in: ids are of its epoch now."""
        self.hub.epoch = self.replica.epoch
