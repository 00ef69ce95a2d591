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

__all__ = ["decode_rpc", "encode_rpc"]

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


def encode_rpc(rpc: Rpc) -> bytes:
    """The RPC's bytes."""
    return _ENCODER.encode(rpc)


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
