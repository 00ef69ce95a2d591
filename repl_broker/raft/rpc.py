"""What peers say to each other. Each RPC names its sender, its receiver and a term.

The names are Raft's (figure 2); pre-vote is the dissertation's §9.6, the
conflict hint §5.3's "the follower can include the term of the conflicting
entry", heartbeats with a round serve ReadIndex (§6.4).
"""

from __future__ import annotations

import msgspec

from repl_broker.raft.log import Entry, Number, SnapshotMark

__all__ = [
    "Append",
    "AppendReply",
    "Commit",
    "Heartbeat",
    "HeartbeatReply",
    "PreVote",
    "PreVoteReply",
    "Rpc",
    "SnapshotReceived",
    "TimeoutNow",
    "Vote",
    "VoteReply",
]


class Rpc(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """Base of all RPCs. Each has a number, its ``tag``, that is never another's (codec.py)."""

    sender: str
    receiver: str
    term: Number


class PreVote(Rpc, frozen=True, kw_only=True, tag=1):
    """Would you vote for me in ``term``? Asking changes nobody's state."""

    last_index: Number
    last_term: Number


class PreVoteReply(Rpc, frozen=True, kw_only=True, tag=2):
    """``term`` is the one asked for if granted, and else the sender's own."""

    granted: bool


class Vote(Rpc, frozen=True, kw_only=True, tag=3):
    """Vote for me in ``term``. ``transfer``: the leader itself asked me to stand."""

    last_index: Number
    last_term: Number
    transfer: bool


class VoteReply(Rpc, frozen=True, kw_only=True, tag=4):
    granted: bool


class Append(Rpc, frozen=True, kw_only=True, tag=5):
    """Entries to follow the one at ``prev_index``; the leader's commit index."""

    prev_index: Number
    prev_term: Number
    entries: tuple[Entry, ...]
    commit: Number


class AppendReply(Rpc, frozen=True, kw_only=True, tag=6):
    """Accepted: the log is on disk and equal to the leader's up to ``index``.

    Refused: the entry at ``index`` (the append's ``prev_index``) did not match;
    the highest place where it might is ``hint_index``, an entry of ``hint_term``.
    """

    accepted: bool
    index: Number
    hint_index: Number
    hint_term: Number


class Commit(Rpc, frozen=True, kw_only=True, tag=11):
    """What the receiver acknowledged is committed up to ``index``.

    Not answered: if it is lost, the next append or heartbeat says the same.
    """

    index: Number


class Heartbeat(Rpc, frozen=True, kw_only=True, tag=7):
    """The leader lives. ``commit`` is no further than what the receiver acknowledged."""

    commit: Number
    round: Number  # grows; a reply proves that the sender was leader when it began


class HeartbeatReply(Rpc, frozen=True, kw_only=True, tag=8):
    round: Number


class SnapshotReceived(Rpc, frozen=True, kw_only=True, tag=9):
    """A whole snapshot from the leader has arrived and its checksums hold.

    The chunks are the driver's business; the core sees the last one only.
    """

    mark: SnapshotMark


class TimeoutNow(Rpc, frozen=True, kw_only=True, tag=10):
    """Stand for election at once: the leader hands over (dissertation §3.10)."""
