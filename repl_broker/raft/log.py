"""What a replicated log is made of (Raft §5.3), and what must be on disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Entry", "EntryKind", "HardState", "Snapshot", "WriteBatch"]


class EntryKind(IntEnum):
    """What an entry is for."""

    DATA = 0  # commands of the state machine (wire.py)
    NO_OP = 1  # the first entry of a leader's term (Raft §8)


@dataclass(frozen=True, slots=True)
class Entry:
    """One place of the log."""

    index: int  # from 1, without holes where it is appended
    term: int
    kind: EntryKind
    data: bytes


@dataclass(frozen=True, slots=True)
class HardState:
    """What a node must not forget (Raft figure 2, "persistent state")."""

    term: int = 0
    vote: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state machine's state after the entry ``index`` of ``term``."""

    index: int
    term: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """What becomes durable together: all of it, or after a crash none of it.

    Entries from ``truncate_from`` on are removed before ``entries`` are added.
    """

    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    truncate_from: int | None = None
