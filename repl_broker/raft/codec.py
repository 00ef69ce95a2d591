"""RPCs as bytes, and back: strict, so that garbage is refused and never half read. Pure.

An RPC is a msgpack array of its number and its fields, in the order in which
its class declares them. Numbers are never reused. What does not fit is a
``ValueError``: the connection that brought it is worth nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final

import msgpack
import msgspec

from repl_broker.raft.log import Entry, EntryKind, Membership, SnapshotMark
from repl_broker.raft.rpc import (
    Append,
    AppendReply,
    Commit,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    Rpc,
    SnapshotReceived,
    TimeoutNow,
    Vote,
    VoteReply,
)

__all__ = ["decode_rpc", "encode_rpc"]

_RPCS: Final[dict[int, type[Rpc]]] = {
    1: PreVote,
    2: PreVoteReply,
    3: Vote,
    4: VoteReply,
    5: Append,
    6: AppendReply,
    7: Heartbeat,
    8: HeartbeatReply,
    9: SnapshotReceived,
    10: TimeoutNow,
    11: Commit,
}
_NUMBERS: Final = {kind: number for number, kind in _RPCS.items()}
_NAMES: Final = {kind: tuple(f.name for f in fields(kind)) for kind in _NUMBERS}

NUMBER_MAX: Final = 2**62  # half of what the store holds: there is room to count on

_EntryFields = tuple[int, int, int, bytes]
_MarkFields = tuple[int, int, bytes]

# The shape of each field on the wire; all others are int, str or bool as declared.
_SHAPES: Final[dict[str, Any]] = {
    "sender": str,
    "receiver": str,
    "granted": bool,
    "transfer": bool,
    "accepted": bool,
    "entries": tuple[_EntryFields, ...],
    "mark": _MarkFields,
}
_TYPES: Final = {
    kind: tuple.__class_getitem__(tuple(_SHAPES.get(name, int) for name in names))
    for kind, names in _NAMES.items()
}


def encode_rpc(rpc: Rpc) -> bytes:
    """The RPC's bytes."""
    kind = type(rpc)
    values = [_PACK.get(name, _as_it_is)(getattr(rpc, name)) for name in _NAMES[kind]]
    packed: bytes = msgpack.packb((_NUMBERS[kind], *values))
    return packed


def decode_rpc(data: bytes) -> Rpc:
    """The RPC that ``data`` is. Raises ValueError for anything else."""
    try:
        number, *values = msgpack.unpackb(data, use_list=False, raw=False)
        kind = _RPCS[number]
        checked = msgspec.convert(tuple(values), _TYPES[kind])
        named = zip(_NAMES[kind], checked, strict=True)
        rpc = kind(**{name: _UNPACK.get(name, _as_it_is)(value) for name, value in named})
        _check(rpc)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise ValueError(f"not an RPC: {error}") from None
    return rpc


def _check(rpc: Rpc) -> None:
    """Raise ValueError for what no peer says, and the core and the store could not take."""
    numbers = [getattr(rpc, name) for name in _NAMES[type(rpc)]]
    if isinstance(rpc, Append):
        _check_entries(rpc)
        numbers.append(rpc.prev_index + len(rpc.entries))
    if isinstance(rpc, SnapshotReceived):
        numbers += [rpc.mark.index, rpc.mark.term]
    if any(isinstance(n, int) and not 0 <= n <= NUMBER_MAX for n in numbers):
        raise ValueError("a number out of range")


def _check_entries(rpc: Append) -> None:
    term = rpc.prev_term
    for index, entry in enumerate(rpc.entries, rpc.prev_index + 1):
        if entry.index != index:
            raise ValueError(f"entry {entry.index} where {index} was to come")
        if not term <= entry.term <= rpc.term:
            raise ValueError(f"entry {index} of term {entry.term} after term {term}")
        if entry.kind is EntryKind.MEMBERSHIP:
            Membership.decode(entry.data)
        term = entry.term


def _as_it_is(value: Any) -> Any:
    return value


def _pack_entries(entries: tuple[Entry, ...]) -> list[_EntryFields]:
    return [(e.index, e.term, int(e.kind), e.data) for e in entries]


def _unpack_entries(rows: tuple[_EntryFields, ...]) -> tuple[Entry, ...]:
    return tuple(Entry(index, term, EntryKind(kind), data) for index, term, kind, data in rows)


def _pack_mark(mark: SnapshotMark) -> _MarkFields:
    return (mark.index, mark.term, mark.membership.encode())


def _unpack_mark(row: _MarkFields) -> SnapshotMark:
    index, term, membership = row
    return SnapshotMark(index, term, Membership.decode(membership))


_PACK: Final[dict[str, Callable[[Any], Any]]] = {"entries": _pack_entries, "mark": _pack_mark}
_UNPACK: Final[dict[str, Callable[[Any], Any]]] = {
    "entries": _unpack_entries,
    "mark": _unpack_mark,
}
