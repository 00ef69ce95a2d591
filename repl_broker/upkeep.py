"""What costs time on the disk, done beside the commits, in pieces.

    much was applied  ──▶ a snapshot; then entries that it covers are dropped if
                          nothing of them is retained, and written anew without
                          what is not retained if that is most of them
    much was written  ──▶ the store's own checkpoint

Each piece is one job in the writer's queue. A snapshot that the leader sent
makes all that was planned worthless: jobs are of a *generation* of the log, and
one of an older generation does nothing. While a snapshot goes to a peer, what
it covers is *held*.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from repl_broker.history import InThread
from repl_broker.state import BrokerState
from repl_broker.storage import Storage
from repl_broker.taking import Taker
from repl_broker.wire import decode_entry, without_messages

__all__ = ["Upkeep"]

log = logging.getLogger(__name__)

SNAPSHOT_BYTES: Final = 64 << 20  # written since the last snapshot: large messages are few entries
TIDY_BYTES: Final = 4 << 20  # written since the last checkpoint
DROP_ENTRIES_MAX: Final = 2000  # removed in one transaction
REWRITE_ENTRIES_MAX: Final = 16

Written = Callable[..., Awaitable[None]]


class Upkeep:
    """Keeps the store small. ``state`` gives the newest; ``written`` runs a call in the
    writer's turn; ``durable`` waits until all that was applied is on this disk."""

    def __init__(
        self,
        storage: Storage,
        written: Written,
        in_thread: InThread,
        *,
        state: Callable[[], BrokerState],
        taker: Taker,
        durable: Callable[[], Awaitable[None]],
        snapshot_entries: int,
    ) -> None:
        self.snapshot_index = 0
        self.store_bytes = 0
        self.generation = 0  # of the log; moved in the writer's thread
        self._storage = storage
        self._written = written
        self._in_thread = in_thread
        self._state = state
        self._taker = taker
        self._durable = durable
        self._snapshot_entries = snapshot_entries
        self._written_bytes = 0  # since the last checkpoint
        self._unsnapped_bytes = 0  # since the last snapshot
        self._holders = 0
        self._is_urgent = False  # the disk is full: little is worth a snapshot, too
        self._released = trio.lowlevel.ParkingLot()
        self._due = trio.Event()

    @property
    def is_held(self) -> bool:
        return self._holders > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing that is retained now goes meanwhile."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self._released.unpark_all()
            self._due.set()

    def loaded(self, snapshot_index: int, entries_bytes: int) -> None:
        """The store holds a snapshot, and so many bytes of entries above it."""
        self.snapshot_index = snapshot_index
        self._unsnapped_bytes = entries_bytes

    def wrote(self, size: int) -> None:
        """So many bytes of entries more are on the disk."""
        self._written_bytes += size
        self._unsnapped_bytes += size

    def applied(self) -> None:
        """Look whether there is something to do."""
        compacts = self._snapshot_due() and not self.is_held
        if compacts or self._written_bytes >= TIDY_BYTES:
            self._due.set()

    def urge(self) -> None:
        """The disk is full: look for what can be dropped, however little."""
        if self._state().has_dead:
            self._is_urgent = True
            self._due.set()

    def _snapshot_due(self) -> bool:
        if self._is_urgent:
            return True
        # A large state is worth writing only once much has changed.
        state = self._state()
        entries = max(self._snapshot_entries, state.entries // 2)
        return (
            state.applied_index - self.snapshot_index >= entries
            or self._unsnapped_bytes >= SNAPSHOT_BYTES
        )

    async def sweep(self) -> None:
        """Drop what a crash kept from being dropped, of what the snapshot covers.

        The state must be the snapshot's.
        """
        live = self._state().live_entries()
        await self._written(self._storage.drop_others, self.snapshot_index, live)
        self.store_bytes = self._storage.bytes

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            if self._snapshot_due() and not self.is_held:
                await self._compact()
            self._written_bytes = 0
            await self._in_thread(self._storage.tidy)
            self.store_bytes = self._storage.bytes

    async def _compact(self) -> None:
        """Take a snapshot; drop what it covers and nothing retains, in small transactions.

        Entries are applied as soon as a majority has them, which may be before this disk
        does. A snapshot saved then would cover entries that a crash leaves nowhere here.
        """
        async with self._taker.one:
            if self.is_held:  # since it was looked last; when that is over, it is looked again
                return
            state, generation = self._state(), self.generation
            self._unsnapped_bytes = 0
            self._is_urgent = False
            begun = self._taker.begin()
            index = begun.index
            dead, sparse = state.take_dead(index), state.take_sparse(index)
            snapshot = (await begun.finish()).snapshot

        async def step(call: Callable[..., object], *arguments: Any) -> None:
            await self._written(call, *arguments, unless=lambda: self.generation != generation)

        await self._durable()
        await step(self._storage.save_snapshot, snapshot)
        if self.generation == generation:
            self.snapshot_index = index
        for start in range(0, len(dead), DROP_ENTRIES_MAX):
            await step(self._storage.drop, dead[start : start + DROP_ENTRIES_MAX])
        for start in range(0, len(sparse), REWRITE_ENTRIES_MAX):
            thinned = await self._thinned(state, sparse[start : start + REWRITE_ENTRIES_MAX])
            await step(self._storage.replace, thinned)
        log.debug("compacted index=%d dropped=%d rewritten=%d", index, len(dead), len(sparse))

    async def _thinned(self, state: BrokerState, indexes: list[int]) -> dict[int, bytes]:
        """These entries without what is not retained; nothing that is held is missing."""
        while True:
            while self.is_held:
                await self._released.park()
            found = await self._in_thread(self._storage.read, indexes)
            if not self.is_held:
                break
        thinned = {}
        for index, data in found.items():
            dead = state.dead_ordinals(index, decode_entry(data)[1])
            thinned[index] = without_messages(data, dead)
        return thinned
