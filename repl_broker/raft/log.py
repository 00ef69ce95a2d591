"""What a replicated log is made of (Raft §5.3), and the part of it that is in memory.

    compacted ──────────────── entries ──────────────── last
    index and term of          what a peer may
    the newest dropped         still be sent

Indexes ascend by one; the entry at ``compacted`` itself is gone, its term is
known. The log may hold entries that are not committed, or not on disk, yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Annotated, Final

import msgpack
import msgspec

__all__ = [
    "NUMBER_MAX",
    "REMOVED_MAX",
    "Entry",
    "EntryKind",
    "HardState",
    "Log",
    "Member",
    "Membership",
    "Number",
    "Snapshot",
    "SnapshotMark",
    "WriteBatch",
]


REMOVED_MAX: Final = 100  # incarnations that were removed and are remembered
NUMBER_MAX: Final = 2**62  # half of what the store holds: there is room to count on

# Of an index or a term, as peers may name it.
Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


class EntryKind(IntEnum):
    """What an entry is for."""

    DATA = 0  # commands of the state machine (wire.py)
    NO_OP = 1  # the first entry of a leader's term (Raft §8)
    MEMBERSHIP = 2  # who belongs to the cluster from this entry on (dissertation §4.1)


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One place of the log."""

    index: Number  # from 1, without holes where it is appended
    term: Number
    kind: EntryKind
    data: bytes


class HardState(msgspec.Struct, frozen=True):
    """What a node must not forget (Raft figure 2, "persistent state")."""

    term: int = 0
    vote: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state machine's state after the entry ``index`` of ``term``."""

    index: int
    term: int
    data: bytes
    membership: bytes = b""  # of the cluster as of then, encoded; empty in single-node mode


class WriteBatch(msgspec.Struct, frozen=True):
    """What becomes durable together: all of it, or after a crash none of it.

    Entries from ``truncate_from`` on are removed before ``entries`` are added.
    """

    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    truncate_from: int | None = None

    @property
    def only_adds(self) -> bool:
        """Whether all that it does is to add entries."""
        return self.hard_state is None and self.truncate_from is None


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A node of the cluster. A learner gets the log and has no vote."""

    id: str
    raft_address: str
    http_url: str
    voter: bool
    incarnation: str = ""  # of its data: one that lost it is another node, whatever its id


@dataclass(frozen=True, slots=True)
class Membership:
    """Who belongs to the cluster, by id; equal memberships are equal bytes."""

    members: tuple[Member, ...] = ()
    removed: tuple[str, ...] = ()  # incarnations, the newest last: they may not come back
    # What follows from the members, kept: every commit asks who votes.
    voters: frozenset[str] = field(init=False, repr=False, compare=False)
    learners: frozenset[str] = field(init=False, repr=False, compare=False)
    ids: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        voters = frozenset(m.id for m in self.members if m.voter)
        ids = frozenset(m.id for m in self.members)
        for name, found in (("voters", voters), ("learners", ids - voters), ("ids", ids)):
            object.__setattr__(self, name, found)  # the class is frozen

    def find(self, node_id: str) -> Member | None:
        return next((m for m in self.members if m.id == node_id), None)

    def with_member(self, member: Member) -> Membership:
        """This membership, with ``member`` in the place of the one of its id."""
        others = (m for m in self.members if m.id != member.id)
        return replace(self, members=tuple(sorted((*others, member))))

    def without(self, node_id: str) -> Membership:
        gone = self.find(node_id)
        if gone is None:
            return self
        removed = (*self.removed, gone.incarnation) if gone.incarnation else self.removed
        return Membership(tuple(m for m in self.members if m is not gone), removed[-REMOVED_MAX:])

    def encode(self) -> bytes:
        fields = [(m.id, m.raft_address, m.http_url, m.voter, m.incarnation) for m in self.members]
        packed: bytes = msgpack.packb((fields, self.removed))
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Membership:
        """Raises ValueError for what is not a membership."""
        try:
            found = msgpack.unpackb(data, use_list=False, raw=False)
            members, removed = msgspec.convert(found, _MembershipFields)
        except (ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"not a membership: {error}") from None
        return cls(tuple(Member(*fields) for fields in members), removed)


_MembershipFields = tuple[tuple[tuple[str, str, str, bool, str], ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class SnapshotMark:
    """Where a snapshot stands in the log, and the membership as of then."""

    index: int = 0
    term: int = 0
    membership: Membership = Membership()


class Log:
    """The entries above the compacted ones, in memory."""

    __slots__ = ("_entries", "compacted_index", "compacted_term")

    def __init__(self, mark: SnapshotMark, entries: Sequence[Entry]) -> None:
        self.compacted_index = mark.index
        self.compacted_term = mark.term
        self._entries = list(entries)

    @property
    def first_index(self) -> int:
        """The index of the first entry that is still here, or would be."""
        return self.compacted_index + 1

    @property
    def last_index(self) -> int:
        return self.compacted_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.compacted_term

    def term(self, index: int) -> int | None:
        """The term of the entry at ``index``; None where it is compacted or not there yet."""
        if index == self.compacted_index:
            return self.compacted_term
        if self.compacted_index < index <= self.last_index:
            return self._entries[index - self.compacted_index - 1].term
        return None

    def slice(self, start: int, end: int) -> list[Entry]:
        """The entries from ``start`` to ``end``, both included."""
        assert start > self.compacted_index, "compacted entries cannot be had"
        offset = self.compacted_index + 1
        return self._entries[start - offset : end - offset + 1]

    def up_to_bytes(self, start: int, bytes_max: int) -> list[Entry]:
        """Entries from ``start`` on, at least one if there is one, of at most so much data."""
        taken: list[Entry] = []
        size = 0
        for row in range(start - self.first_index, len(self._entries)):
            entry = self._entries[row]
            size += len(entry.data)
            if taken and size > bytes_max:
                break
            taken.append(entry)
        return taken

    def index_before(self, bytes_max: int) -> int:
        """The index after which the entries make up at most ``bytes_max`` of data."""
        size = 0
        for row in range(len(self._entries) - 1, -1, -1):
            size += len(self._entries[row].data)
            if size > bytes_max:
                return self.first_index + row
        return self.compacted_index

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as up to date as this one (Raft §5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def append(self, entry: Entry) -> None:
        assert entry.index == self.last_index + 1
        self._entries.append(entry)

    def truncate_from(self, index: int) -> None:
        assert index > self.compacted_index
        del self._entries[index - self.first_index :]

    def last_index_of_term_at_most(self, term: int, index: int) -> int:
        """The highest index, not above ``index``, whose entry's term is at most ``term``.

        Where that is compacted, the compacted index: a conflict hint (Raft §5.3)
        skips whole terms, so that one exchange suffices for each.
        """
        index = min(index, self.last_index)
        while index > self.compacted_index and (self.term(index) or 0) > term:
            index -= 1
        return index

    def compact(self, index: int) -> None:
        """Forget the entries up to ``index``."""
        term = self.term(index)
        assert term is not None
        del self._entries[: index - self.compacted_index]
        self.compacted_index, self.compacted_term = index, term

    def reset(self, mark: SnapshotMark) -> None:
        """Start anew behind an installed snapshot."""
        self._entries.clear()
        self.compacted_index, self.compacted_term = mark.index, mark.term
