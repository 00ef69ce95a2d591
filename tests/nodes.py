"""A node without disk, clock or network, for tests of what lies between them."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from repl_broker import disk as disks
from repl_broker.access import Asking, Credentials
from repl_broker.broker import Broker
from repl_broker.config import Config
from repl_broker.hub import Hub
from repl_broker.raft.log import WriteBatch
from repl_broker.replica import Replica
from repl_broker.room import Room
from repl_broker.state import Applied
from repl_broker.storage import Identity, MemoryStorage, Storage
from repl_broker.writer import Done
from tests.eventsource import blocks

EPOCH = "00c0ffee"
ANYONE = Asking(Credentials(), "127.0.0.1")  # where there are no tokens, nobody has to be more


class Clock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Disk(MemoryStorage):
    """Memory that can be slow, or fail, as a disk can."""

    def __init__(self, node_id: str = "n1") -> None:
        """The first node has the well-known EPOCH; others draw one, until they are adopted."""
        identity = Identity.draw(node_id)
        if node_id == "n1":
            identity = Identity("0" * 32, EPOCH, "n1", "1" * 16)
        super().__init__(identity)
        self.writes: list[WriteBatch] = []
        self.error: Exception | None = None

    def write(self, *batches: WriteBatch) -> None:
        if self.error is not None:
            raise self.error
        self.writes.extend(batches)
        super().write(*batches)


class Gate:
    """Stands in for worker threads and for the writer; while it is shut, calls wait."""

    def __init__(self) -> None:
        self.opened = trio.Event()
        self.opened.set()
        self.busy_seconds = 0.0
        self._jobs: list[tuple[Callable[[], None], Done]] = []

    def shut(self) -> None:
        self.opened = trio.Event()

    @property
    def is_quick(self) -> bool:
        return self.opened.is_set()

    def open(self) -> None:
        self.opened.set()
        while self._jobs and self.opened.is_set():
            self._run(*self._jobs.pop(0))

    async def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        await self.opened.wait()
        return call(*arguments)

    def submit(self, job: Callable[[], None], done: Done, *, quick: bool = False) -> None:
        if self.opened.is_set() and not self._jobs:  # in order, as the thread's queue is
            self._run(job, done)
        else:
            self._jobs.append((job, done))

    def _run(self, job: Callable[[], None], done: Done) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001  who submitted it decides
            done(error)
        else:
            done(None)

    async def close(self) -> None:
        pass


def queue_of(storage: Storage, gate: Gate | None = None) -> disks.Disk:
    """The one way to a store, where nothing else is tested with it."""
    gate = gate or Gate()
    return disks.Disk(storage, gate, gate)


class Node:
    """Broker, hub and replica over a Disk that outlives them."""

    def __init__(self, disk: Disk, clock: Clock, config: Config) -> None:
        self.disk = disk
        self.clock = clock
        self.gate = Gate()
        self.hub = Hub(EPOCH, config.limits.tail_bytes)
        self.replica = Replica(
            disk,
            Broker.settings(config),
            now_ms=clock,
            on_applied=self._applied,
            snapshot_entries=config.raft.snapshot_entries,
            in_thread=self.gate,
            writer=self.gate,
        )
        self.free_bytes = 1 << 40  # of its disk, as the room is told; it looks when it runs
        self.room = Room(self.replica, config.limits, lambda: self.free_bytes, in_thread=self.gate)
        self.broker = Broker(self.replica, self.hub, config, room=self.room)

    def _applied(self, applied: Applied) -> None:
        self.hub.publish(applied.events, self.replica.state.seq)
        self.broker.access.revoke(applied.revoked)


@asynccontextmanager
async def running_node(
    disk: Disk | None = None, clock: Clock | None = None, config: Config | None = None
) -> AsyncIterator[Node]:
    """A node that has recovered; it is cut off without ceremony at the end."""
    node = Node(disk or Disk(), clock or Clock(), config or Config())
    async with trio.open_nursery() as nursery:
        await nursery.start(node.replica.run)
        node.hub.position = node.replica.state.seq
        try:
            yield node
        finally:
            node.gate.open()  # a write that has begun cannot be cancelled
            nursery.cancel_scope.cancel()


def configured(config: Config | None = None, **sections: dict[str, Any]) -> Config:
    """``Config`` with some keys changed: ``configured(limits={"tail_bytes": 1000})``."""
    config = config or Config()
    for section, keys in sections.items():
        config = replace(config, **{section: replace(getattr(config, section), **keys)})
    return config


def read_in_pieces(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """Have streams find in either way what is next in the log, in small pieces and blocks."""
    for name, values in (
        ("scan.NEAR_MESSAGES", [0, 10, 4096]),
        ("scan.BY_TOPIC_MAX", [1, 256]),
        ("scan.LOOKS_MAX", [1, 64]),
        ("subscription.LOOKS_AT_ONCE", [0, 4]),
        ("turnstile.PIECE_SECONDS", [-1, 0.002]),
        ("turnstile.REST_SECONDS_MIN", [math.inf]),  # a task that rests looks as if it were done
        ("order.BLOCK_NUMBERS", [3, 1024]),
    ):
        monkeypatch.setattr(f"repl_broker.{name}", chance.choice(values))


def events(chunks: Sequence[bytes]) -> list[dict[str, str]]:
    """The blocks of an event stream as mappings of field to value; they must be sound."""
    return blocks(b"".join(chunks))
