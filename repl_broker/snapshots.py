"""A snapshot on its way from the leader to a peer: the state, then the retained history.

    sender                                        receiver
      begin    mark, size and checksum      ──▶   stages it
      state    a piece, its checksum        ──▶   …
      entries  history that it covers       ──▶   …
      renew    a newer one takes its place:
               its state, and the entries
               since the one before         ──▶   …
      end      how many there were          ──▶   all there and sound? then the core decides

Each step is a request that is answered before the next is sent, so a slow
receiver slows its sender, and heartbeats pass between the pieces. Nothing is
seen of a snapshot before its end: it is staged in the store, and takes the
place of log and state at once or not at all (disk.py).

While gigabytes are on their way, more is published than a leader keeps in memory for
who has just begun. So what is sent is *renewed* until little is missing; what has died
since it was sent is dropped by the receiver's upkeep.

What is staged has an owner, the receiver, which clears it: what was there at the
start, of a snapshot that does not fit, that nobody needs any more, that another
leader puts an end to, or of which nothing has come for long.
"""

from __future__ import annotations

import math
import secrets
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn
from zlib import crc32

import msgspec
import trio

from repl_broker.disk import Disk, InThread
from repl_broker.errors import ReplBrokerError
from repl_broker.raft.log import Entry, EntryKind, Membership, Snapshot, SnapshotMark
from repl_broker.soundness import restored
from repl_broker.state import BrokerState
from repl_broker.taking import Mark

__all__ = [
    "INSTALLING",
    "PIECE_SECONDS_MAX",
    "Outgoing",
    "SnapshotReceiver",
    "SnapshotRefusedError",
    "ask_for_room",
]

PIECE_BYTES: Final = 256 << 10  # a heartbeat waits for no more than this, and one large entry
PIECE_SECONDS_MAX: Final = 30  # for one piece to be taken in
INSTALLING: Final = "another snapshot is being installed"  # as earlier versions say, too

Call = Callable[[str, Any], Awaitable[Any]]


class SnapshotRefusedError(ReplBrokerError):
    """A piece that does not fit: the sender has to begin again."""


async def ask_for_room(call: Call, mark: Mark, term: int) -> None:
    """Have the peer say whether it takes a snapshot now: making one is a lot of work.

    It is a beginning of nothing, which each version knows how to refuse. Raises what
    ``call`` raises.
    """
    await call(
        "snapshot-begin", (secrets.token_hex(8), term, mark.index, mark.term, mark.membership, 0, 0)
    )


class Outgoing:
    """One snapshot on its way. ``call`` asks the peer, ``term`` is the leader's.

    ``begin``, then ``renew`` any number of times, then ``end``. All raise what ``call``
    raises, and SnapshotRefusedError.
    """

    def __init__(self, call: Call, disk: Disk, term: int, in_thread: InThread) -> None:
        self.index = 0  # of what was sent
        self.bytes = 0  # of entries, by the last step
        self._call = call
        self._disk = disk
        self._term = term
        self._in_thread = in_thread
        self._transfer = secrets.token_hex(8)
        self._sent = 0  # entries

    async def begin(self, snapshot: Snapshot, live: array[int]) -> None:
        """Send ``snapshot`` and the entries in ``live`` (ascending), which it covers."""
        size, checksum = len(snapshot.data), await self._in_thread(crc32, snapshot.data)
        mark = (snapshot.index, snapshot.term, snapshot.membership)
        await self._call("snapshot-begin", (self._transfer, self._term, *mark, size, checksum))
        await self._send(snapshot, live)

    async def renew(self, snapshot: Snapshot, live: array[int]) -> None:
        """Send a newer one in its place: what the peer has of entries belongs to it, too."""
        size, checksum = len(snapshot.data), await self._in_thread(crc32, snapshot.data)
        mark = (snapshot.index, snapshot.term, snapshot.membership)
        await self._call("snapshot-renew", (self._transfer, *mark, size, checksum))
        await self._send(snapshot, live)

    async def end(self) -> None:
        await self._call("snapshot-end", (self._transfer, self._sent))

    async def _send(self, snapshot: Snapshot, live: array[int]) -> None:
        data, after = snapshot.data, self.index
        for offset in range(0, len(data), PIECE_BYTES):
            piece = data[offset : offset + PIECE_BYTES]
            await self._call("snapshot-state", (self._transfer, offset, piece, crc32(piece)))
        wanted = len(live) - bisect_right(live, after)
        sent = self.bytes = 0
        while entries := await self._disk.history(after, snapshot.index, PIECE_BYTES):
            after = entries[-1].index
            rows = [_row(entry) for entry in entries if _has(live, entry.index)]
            if rows:
                sent += len(rows)
                self.bytes += sum(len(row[3]) for row in rows)
                await self._call("snapshot-entries", (self._transfer, rows))
        if sent != wanted:
            raise SnapshotRefusedError(f"{wanted - sent} of its entries are not on this disk")
        self._sent += sent
        self.index = snapshot.index


@dataclass(slots=True)
class _Incoming:
    """What of one snapshot has arrived."""

    transfer: str
    sender: str
    term: int
    mark: SnapshotMark
    size: int
    checksum: int
    state: bytearray | bytes = field(default_factory=bytearray)
    entries: int = 0
    staged: bool = False
    renewed: bool = False  # another was staged before, with entries
    bytes: int = 0  # that have come
    bytes_max: float = math.inf  # that there is room for
    heard_at: float = 0.0  # the last piece


class SnapshotReceiver:
    """Takes the pieces; ``complete`` then holds the mark and the state, sound as far as it goes.

    One snapshot at a time: a new beginning puts an end to the one before, but
    not while that is being installed.
    """

    def __init__(
        self,
        disk: Disk,
        in_thread: InThread,
        restore: Callable[[Snapshot], BrokerState] = restored,
    ) -> None:
        self.complete: tuple[SnapshotMark, BrokerState] | None = None
        self.live: array[int] | None = None  # of it: all other entries are to be dropped
        self._disk = disk
        self._in_thread = in_thread
        self._restore = restore
        self._incoming: _Incoming | None = None
        self._may_be_staged = True  # what was left there before the start

    def forget(self) -> None:
        """Whatever there is of a snapshot is needed no more."""
        self._incoming = self.complete = None
        if self._may_be_staged:
            self._may_be_staged = False
            self._disk.unstage()

    def look(self) -> None:
        """Called now and then: forget one whose sender is gone."""
        incoming = self._incoming
        late = 2 * PIECE_SECONDS_MAX
        if incoming is not None and trio.current_time() > incoming.heard_at + late:
            self.forget()

    def take(self) -> tuple[SnapshotMark, BrokerState]:
        """What is complete, to be installed."""
        assert self.complete is not None
        taken, self.complete = self.complete, None
        self._may_be_staged = False  # it is not left there
        return taken

    async def begin(
        self, sender: str, argument: Any, own_term: int, bytes_max: float = math.inf
    ) -> None:
        """``bytes_max`` is what the disk has room for, beside what there is."""
        transfer, term, index, snapshot_term, membership, size, checksum = msgspec.convert(
            argument, tuple[str, int, int, int, bytes, int, int]
        )
        if term < own_term:
            raise SnapshotRefusedError(f"the term is {own_term} here, and not {term}")
        if self._disk.is_installing or self.complete:
            raise SnapshotRefusedError(INSTALLING)
        mark = SnapshotMark(index, snapshot_term, Membership.decode(membership))
        self.forget()
        self._incoming = _Incoming(transfer, sender, term, mark, size, checksum)
        self._incoming.bytes_max = bytes_max
        self._incoming.heard_at = trio.current_time()

    async def renew(self, sender: str, argument: Any) -> None:
        """Another mark and state, of the same leader, for what has arrived."""
        transfer, index, snapshot_term, membership, size, checksum = msgspec.convert(
            argument, tuple[str, int, int, bytes, int, int]
        )
        incoming = self._expect(sender, transfer)
        mark = SnapshotMark(index, snapshot_term, Membership.decode(membership))
        if index < incoming.mark.index or len(incoming.state) != incoming.size:
            self._refuse("a newer one came before the whole of the older")
        await self._stage(incoming)
        self._expect(sender, transfer)
        incoming.mark, incoming.size, incoming.checksum = mark, size, checksum
        incoming.state, incoming.staged, incoming.renewed = bytearray(), False, True

    async def state(self, sender: str, argument: Any) -> None:
        transfer, offset, piece, checksum = msgspec.convert(argument, tuple[str, int, bytes, int])
        incoming = self._expect(sender, transfer)
        if incoming.staged:
            self._refuse("a piece of state came behind entries")
        room = incoming.size - len(incoming.state)
        if offset != len(incoming.state) or len(piece) > room or crc32(piece) != checksum:
            self._refuse(f"the piece at {offset} is damaged or out of place")
        self._count(incoming, len(piece))
        incoming.state += piece

    async def entries(self, sender: str, argument: Any) -> None:
        transfer, rows = msgspec.convert(
            argument, tuple[str, tuple[tuple[int, int, int, bytes, int], ...]]
        )
        incoming = self._expect(sender, transfer)
        entries = [entry for row in rows if (entry := _entry(row)) is not None]
        if len(entries) < len(rows) or any(row[0] > incoming.mark.index for row in rows):
            self._refuse("an entry is damaged or not covered by the snapshot")
        self._count(incoming, sum(len(entry.data) for entry in entries))
        await self._stage(incoming)
        self._expect(sender, transfer)  # staging has waited; another may have begun
        incoming.entries += len(entries)
        await self._disk.stage(entries)

    def _count(self, incoming: _Incoming, size: int) -> None:
        """What is staged stands beside the store whose place it takes."""
        incoming.bytes += size
        if incoming.bytes > incoming.bytes_max:
            self.forget()
            raise SnapshotRefusedError(
                f"the disk has no room for the snapshot: more than {incoming.bytes_max:.0f} bytes"
            )

    async def end(self, sender: str, argument: Any) -> tuple[int, SnapshotMark]:
        """The leader's term and the mark of what is complete now."""
        transfer, count = msgspec.convert(argument, tuple[str, int])
        incoming = self._expect(sender, transfer)
        state = await self._state_of(incoming)
        checksum = await self._in_thread(crc32, state)
        self._expect(sender, transfer)  # another may have begun meanwhile
        if len(state) != incoming.size or checksum != incoming.checksum:
            self._refuse("its state is cut short or damaged")
        if count != incoming.entries:
            self._refuse(f"{incoming.entries} of its {count} entries have arrived")
        mark = incoming.mark
        snapshot = Snapshot(mark.index, mark.term, state, mark.membership.encode())
        try:
            found = await self._in_thread(self._restore, snapshot)
        except ValueError as error:
            self._refuse(str(error))
        live = await self._in_thread(found.live_entries) if incoming.renewed else None
        await self._stage(incoming)
        self._expect(sender, transfer)
        self._incoming = None
        self.complete, self.live = (mark, found), live
        return incoming.term, mark

    async def _stage(self, incoming: _Incoming) -> None:
        if incoming.staged:
            return
        incoming.staged = True
        mark, state = incoming.mark, await self._state_of(incoming)
        self._expect(incoming.sender, incoming.transfer)  # what is staged last is the newest
        snapshot = Snapshot(mark.index, mark.term, state, mark.membership.encode())
        self._may_be_staged = True
        if incoming.renewed:
            await self._disk.renew_install(snapshot)
        else:
            await self._disk.begin_install(snapshot)

    async def _state_of(self, incoming: _Incoming) -> bytes:
        """All of it, once: it may be large."""
        state = incoming.state
        if not isinstance(state, bytes):
            state = incoming.state = await self._in_thread(bytes, state)
        return state

    def _expect(self, sender: str, transfer: str) -> _Incoming:
        incoming = self._incoming
        if incoming is None or (incoming.sender, incoming.transfer) != (sender, transfer):
            raise SnapshotRefusedError("it is of no snapshot that was begun")
        incoming.heard_at = trio.current_time()
        return incoming

    def _refuse(self, why: str) -> NoReturn:
        self.forget()
        raise SnapshotRefusedError(f"the snapshot is not sound: {why}")


def _has(ascending: array[int], value: int) -> bool:
    at = bisect_left(ascending, value)
    return at < len(ascending) and ascending[at] == value


def _row(entry: Entry) -> tuple[int, int, int, bytes, int]:
    return entry.index, entry.term, int(entry.kind), entry.data, _checksum(entry.index, entry.data)


def _entry(row: tuple[int, int, int, bytes, int]) -> Entry | None:
    index, term, kind, data, checksum = row
    return Entry(index, term, EntryKind(kind), data) if _checksum(index, data) == checksum else None


def _checksum(index: int, data: bytes) -> int:
    return crc32(data, index & 0xFFFFFFFF)
