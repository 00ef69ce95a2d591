"""What costs time on the disk, done beside the commits, in pieces.

    much was applied  ──▶ a snapshot; then entries that it covers are dropped if
                          nothing of them is retained, and written anew without
                          what is not retained if that is most of them
    much was written  ──▶ the store's own checkpoint, beside all that

Each piece is one job of the disk's (disk.py), for the generation of the log for
which it was planned: a snapshot that the leader sent makes it worthless. While a
snapshot goes to a peer, what it covers is *held*: snapshots are saved as ever, so that
a start has no more to read, and what they need no more goes when that is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final

import trio

from repl_broker.disk import Disk
from repl_broker.state import BrokerState
from repl_broker.taking import Taker
from repl_broker.wire import decode_entry, without_messages

__all__ = ["Upkeep"]

log = logging.getLogger(__name__)

SNAPSHOT_BYTES: Final = 64 << 20  # written since the last snapshot: large messages are few entries
TIDY_BYTES: Final = 4 << 20  # written since the last checkpoint
REWRITE_ENTRIES_MAX: Final = 16  # in one transaction …
REWRITE_BYTES: Final = 2 << 20  # … which is over once that much was read for it


class Upkeep:
    """Keeps the store small. ``state`` gives the newest."""

    def __init__(
        self,
        disk: Disk,
        *,
        state: Callable[[], BrokerState],
        taker: Taker,
        snapshot_entries: int,
    ) -> None:
        self.snapshot_index = 0
        self.store_bytes = 0
        self._disk = disk
        self._state = state
        self._taker = taker
        self._snapshot_entries = snapshot_entries
        self._written_bytes = 0  # since the last checkpoint
        self._unsnapped_bytes = 0  # since the last snapshot
        self._holders = 0
        self._is_urgent = False  # the disk is full: little is worth a snapshot, too
        # The generation of a log, and of what its snapshot covers all that is to be kept.
        self._others: tuple[int, Sequence[int]] | None = None
        # What the newest snapshot needs no more, and the generation of which that is.
        self._dead: list[int] = []
        self._dead_ordinals: dict[int, set[int]] = {}  # by entry, of those that are mostly dead
        self._generation = 0
        self._due = trio.Event()
        self._untidy = trio.Event()

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
            self._due.set()

    def loaded(self, snapshot_index: int, entries_bytes: int) -> None:
        """The store holds a snapshot, and so many bytes of entries above it."""
        self.snapshot_index = snapshot_index
        self._unsnapped_bytes = entries_bytes

    def installed(self, snapshot_index: int, live: Sequence[int] | None) -> None:
        """A peer's snapshot took the place of the log; with ``live``, entries that it covers may
        have come with it that are not among these."""
        self.loaded(snapshot_index, 0)
        self._others = None if live is None else (self._disk.generation, live)
        self._due.set()

    def wrote(self, size: int) -> None:
        """So many bytes of entries more are on the disk."""
        self._written_bytes += size
        self._unsnapped_bytes += size

    def applied(self) -> None:
        """Look whether there is something to do."""
        if self._written_bytes >= TIDY_BYTES:
            self._untidy.set()
        if self._snapshot_due():
            self._due.set()

    def urge(self) -> None:
        """The disk is full: look for what can be dropped, however little."""
        if self._state().has_dead:
            self._is_urgent = True
            self._due.set()

    def _snapshot_due(self) -> bool:
        if self._is_urgent and not self.is_held:
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
        await self._disk.drop_others(self.snapshot_index, live, self._disk.generation)
        self.store_bytes = self._disk.store_bytes

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            await self._drop_others()
            if self._snapshot_due():
                await self._save_snapshot()
            if not self.is_held:
                await self._drop_dead()
                await self._rewrite()
            self._untidy.set()

    async def tidy(self) -> None:
        """Checkpoint the store when that is due, until cancelled.

        Not in turn with the rest: entries come meanwhile, and if the write-ahead log grew until
        that is done, a write would have to wait for a checkpoint of all of it.
        """
        while True:
            await self._untidy.wait()
            self._untidy = trio.Event()
            self._written_bytes = 0
            await self._disk.tidy()
            self.store_bytes = self._disk.store_bytes

    async def _drop_others(self) -> None:
        """What died while a peer sent it. Before the next snapshot, which may need less."""
        if self._others is not None:
            (generation, live), self._others = self._others, None
            await self._disk.drop_others(self.snapshot_index, live, generation)

    async def _save_snapshot(self) -> None:
        """And note what it needs no more."""
        async with self._taker.one:
            state, generation = self._state(), self._disk.generation
            self._unsnapped_bytes = 0
            self._is_urgent = self._is_urgent and self.is_held
            parts = {} if self.is_held else await self._dead_parts(state)
            if self._disk.generation != generation:
                return
            begun = self._taker.begin()
            index = begun.index
            dead = state.take_dead(index)
            snapshot = (await begun.finish()).snapshot

        await self._disk.save_snapshot(snapshot, generation)
        if self._disk.generation != generation:
            return
        self.snapshot_index = index
        if self._generation != generation:
            self._generation, self._dead, self._dead_ordinals = generation, [], {}
        self._dead += dead
        self._dead_ordinals |= parts
        log.debug("saved a snapshot index=%d dead=%d sparse=%d", index, len(dead), len(parts))

    async def _drop_dead(self) -> None:
        """Who begins to hold meanwhile has a state that is newer than all of them, and needs
        none."""
        dead, self._dead = self._dead, []
        await self._disk.drop(sorted(dead), self._generation)

    async def _rewrite(self) -> None:
        """The entries that are mostly dead, without their dead parts; what has gone meanwhile is
        passed over."""
        parts = self._dead_ordinals
        while parts:
            if self._disk.generation != self._generation:
                parts.clear()
                return
            indexes: list[int] = []
            thinned: dict[int, bytes] = {}
            size = 0
            for index in [*islice(parts, REWRITE_ENTRIES_MAX)]:
                indexes.append(index)
                for data in (await self._disk.read([index])).values():
                    thinned[index] = without_messages(data, parts[index])
                    size += len(data)
                if size >= REWRITE_BYTES:
                    break
            if self.is_held:
                return
            await self._disk.replace(thinned, self._generation)
            for index in indexes:
                del parts[index]

    async def _dead_parts(self, state: BrokerState) -> dict[int, set[int]]:
        """By entry, which of its messages nothing retains, of those entries that are mostly dead.

        From before the snapshot: the one that is on the disk when they go must need none of
        them. What dies later may still be retained there, and a crash goes back to it.
        """
        parts: dict[int, set[int]] = {}
        sparse = state.take_sparse(state.applied_index)
        for index in sparse:  # one by one, as each may be large
            for data in (await self._disk.read([index])).values():
                parts[index] = state.dead_ordinals(index, decode_entry(data)[1])
        return parts
