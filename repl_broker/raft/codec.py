"""RPCs as bytes, and back: strict, so that garbage is refused and never half read. Pure.

An RPC is a msgpack array of its number and all its fields, in the order in which
its class declares them. Numbers are never reused. What does not fit is a
``ValueError``: the connection that brought it is worth nothing more. A
SnapshotReceived is none that a peer may send: the snapshot itself tells of it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from repl_broker.raft.log import NUMBER_MAX, EntryKind, Membership
from repl_broker.raft.rpc import (
    Append,
    AppendReply,
    Commit,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    Rpc,
    TimeoutNow,
    Vote,
    VoteReply,
)

__all__ = ["PARTS_BYTES", "bin_head", "decode_rpc", "encode_parts", "encode_rpc"]

PARTS_BYTES: Final = 64 << 10  # of an entry that is worth not to be copied

_Sent = (
    PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | TimeoutNow
    | Commit
)
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Sent)
_NO_ENTRIES: Final = b"\x90"  # in msgpack, as are …
_ONE_ENTRY: Final = b"\x91"
_EMPTY: Final = b"\xc4\x00"  # … no bytes


def encode_rpc(rpc: Rpc) -> bytes:
    """The RPC's bytes."""
    return _ENCODER.encode(rpc)


def encode_parts(append: Append) -> list[bytes]:
    """The bytes of an append of one large entry in parts, of which one is the entry's data itself:
    it is not copied for each peer."""
    (entry,) = append.entries
    encode = _ENCODER.encode
    head = encode(msgspec.structs.replace(append, entries=()))
    behind = encode(append.commit)
    head = head.removesuffix(_NO_ENTRIES + behind) + _ONE_ENTRY
    place = encode((entry.index, entry.term, entry.kind, b"")).removesuffix(_EMPTY)
    return [head + place + bin_head(len(entry.data)), entry.data, behind]


def bin_head(size: int) -> bytes:
    """What msgpack has before ``size`` bytes, where they are more than 64 KiB."""
    assert size > PARTS_BYTES
    return b"\xc6" + size.to_bytes(4, "big")


def decode_rpc(data: bytes) -> Rpc:
    """The RPC that ``data`` is. Raises ValueError for anything else."""
    try:
        rpc: Rpc = _DECODER.decode(data)
        if isinstance(rpc, Append):
            _check_entries(rpc)
    except ValueError as error:
        raise ValueError(f"not an RPC: {error}") from None
    return rpc


def _check_entries(rpc: Append) -> None:
    """Raise ValueError for what no peer says, and the core and the store could not take."""
    term = rpc.prev_term
    if rpc.prev_index + len(rpc.entries) > NUMBER_MAX:
        raise ValueError("a number out of range")
    for index, entry in enumerate(rpc.entries, rpc.prev_index + 1):
        if entry.index != index:
            raise ValueError(f"entry {entry.index} where {index} was to come")
        if not term <= entry.term <= rpc.term:
            raise ValueError(f"entry {index} of term {entry.term} after term {term}")
        if entry.kind is EntryKind.MEMBERSHIP:
            Membership.decode(entry.data)
        term = entry.term
