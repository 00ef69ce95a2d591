"""What peers say to each other. Each RPC names its sender, its receiver and a term.

The names are Raft's (figure 2); pre-vote is the dissertation's §9.6, the
conflict hint §5.3's "the follower can include the term of the conflicting
entry", heartbeats with a round serve ReadIndex (§6.4).
"""

from __future__ import annotations

from dataclasses import dataclass

from repl_broker.raft.log import Entry, SnapshotMark

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """Base of all RPCs."""

    sender: str
    receiver: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreVote(Rpc):
    """Would you vote for me in ``term``? Asking changes nobody's state."""

    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreVoteReply(Rpc):
    """``term`` is the one asked for if granted, and else the sender's own."""

    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote(Rpc):
    """Vote for me in ``term``. ``transfer``: the leader itself asked me to stand."""

    last_index: int
    last_term: int
    transfer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteReply(Rpc):
    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Append(Rpc):
    """Entries to follow the one at ``prev_index``; the leader's commit index."""

    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendReply(Rpc):
    """Accepted: the log is on disk and equal to the leader's up to ``index``.

    Refused: the entry at ``index`` (the append's ``prev_index``) did not match;
    the highest place where it might is ``hint_index``, an entry of ``hint_term``.
    """

    accepted: bool
    index: int
    hint_index: int = 0
    hint_term: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(Rpc):
    """What the receiver acknowledged is committed up to ``index``.

    Not answered: if it is lost, the next append or heartbeat says the same.
    """

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Rpc):
    """The leader lives. ``commit`` is no further than what the receiver acknowledged."""

    commit: int
    round: int  # grows; a reply proves that the sender was leader when it began


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply(Rpc):
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotReceived(Rpc):
    """A whole snapshot from the leader has arrived and its checksums hold.

    The chunks are the driver's business; the core sees the last one only.
    """

    mark: SnapshotMark


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow(Rpc):
    """Stand for election at once: the leader hands over (dissertation §3.10)."""
