"""Raft as one pure function: ``step(now, events)`` gives ``Effects``.

No I/O, no clock, no randomness but what is injected. The driver (replica.py)
feeds what has happened and carries out what comes back:

    events   RPCs received, proposals, reads, changes of membership, hand-over;
             a write became durable; the deadline passed
    effects  what to persist, what to send, what is committed and may be applied,
             which proposals were taken or refused, which reads may be served,
             who needs a snapshot, and when to call again

Durability is gated here. A vote, a request for votes and an acknowledgement of
an append rest on a write; they are *held* until the driver reports that write
with ``Persisted``, and are dropped if the term has moved on meanwhile. A node's
own vote and its own acknowledgement as leader are RPCs to itself and take the
same way. So nothing can be answered early, whatever the driver does.

Roles change as in figure 4 of the paper, with pre-vote (dissertation §9.6):

    follower ──deadline──▶ pre-candidate ──majority──▶ candidate ──majority──▶ leader
       ▲  ▲                      │                         │                      │
       │  └──────────────────────┴── a leader is heard ────┘                      │
       └───────────── a higher term is seen, or no majority answers ──────────────┘

There is one handler for each role and RPC; ``_HANDLERS`` at the end is the
table. What a table entry lacks, that role ignores.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from repl_broker.raft.log import (
    Entry,
    EntryKind,
    HardState,
    Log,
    Member,
    Membership,
    SnapshotMark,
    WriteBatch,
)
from repl_broker.raft.progress import Mode, Progress
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

__all__ = [
    "AddLearner",
    "ChangeMembership",
    "Compact",
    "Core",
    "CoreOptions",
    "Decline",
    "Effects",
    "Event",
    "Loss",
    "MembershipChange",
    "PartReceived",
    "Persisted",
    "Promote",
    "Propose",
    "Read",
    "Receive",
    "Refusal",
    "Remove",
    "Role",
    "SnapshotFailed",
    "SnapshotInstalled",
    "SnapshotSent",
    "StepAside",
    "TellCommit",
    "Transfer",
    "Unreachable",
    "UpdateMember",
]


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """Times in seconds, sizes in bytes. Every queue has its bound."""

    election_timeout_seconds: float = 1.0  # a wait is drawn from one to two times this
    heartbeat_interval_seconds: float = 0.1
    append_bytes_max: int = 1 << 20  # entries in one append, but at least one
    window_appends_max: int = 64  # unanswered appends a peer …
    window_bytes_max: int = 8 << 20  # … and their bytes
    uncommitted_bytes_max: int = 64 << 20  # beyond it proposals are refused
    commit_delay_seconds: float = 0.003  # for an append that tells of a commit, if many come


class Uniform(Protocol):
    """The one thing that is asked of randomness."""

    def uniform(self, a: float, b: float, /) -> float: ...


# --- events -------------------------------------------------------------------------------


class Receive(msgspec.Struct, frozen=True):
    """An RPC has arrived."""

    rpc: Rpc


class Propose(msgspec.Struct, frozen=True):
    """Append ``data`` to the log; ``token`` comes back in ``taken`` or ``refused``."""

    token: int
    data: bytes


class AddLearner(msgspec.Struct, frozen=True):
    member: Member


class Promote(msgspec.Struct, frozen=True):
    node_id: str


class Remove(msgspec.Struct, frozen=True):
    node_id: str


class UpdateMember(msgspec.Struct, frozen=True):
    """The member of this id has other addresses; its vote stays what it is."""

    member: Member


MembershipChange = AddLearner | Promote | Remove | UpdateMember


class ChangeMembership(msgspec.Struct, frozen=True):
    """One server comes, gets its vote, moves, or goes (dissertation §4.1)."""

    token: int
    change: MembershipChange
    forced: bool = False  # even if the voters that answer are no majority then


class Read(msgspec.Struct, frozen=True):
    """Which index must be applied before a read is as new as this call? (§6.4)"""

    token: int


class Transfer(msgspec.Struct, frozen=True):
    """Hand leadership over to ``target`` (dissertation §3.10)."""

    token: int
    target: str


class Decline(msgspec.Struct, frozen=True):
    """Whether another had better lead: then it stands only after the others had their time."""

    declines: bool


class StepAside(msgspec.Struct, frozen=True):
    """Lead no more, and let others stand first: what the log ends with cannot be committed."""


class TellCommit(msgspec.Struct, frozen=True):
    """Somebody at ``peer`` waits for what was just committed: tell it now."""

    peer: str


class Persisted(msgspec.Struct, frozen=True):
    """The write numbered ``number``, and all before it, are on disk."""

    number: int


class Compact(msgspec.Struct, frozen=True):
    """A snapshot at ``index`` is on disk; entries up to ``keep_after`` may be forgotten."""

    keep_after: int


class SnapshotInstalled(msgspec.Struct, frozen=True):
    """What ``Effects.restore`` asked for is done and on disk."""

    mark: SnapshotMark


class SnapshotSent(msgspec.Struct, frozen=True):
    """All of the snapshot that ``Effects.snapshots`` asked for has gone to ``peer``, or a newer
    one, at ``index``."""

    peer: str
    index: int = 0


class SnapshotFailed(msgspec.Struct, frozen=True):
    """The snapshot could not be sent to ``peer``. One of the two always follows."""

    peer: str


class PartReceived(msgspec.Struct, frozen=True):
    """More of an RPC of ``peer`` has come, and not all of it: on a slow link that takes longer
    than an election timeout, and nothing else comes meanwhile."""

    peer: str


class Unreachable(msgspec.Struct, frozen=True):
    """The connection to ``peer`` broke: what was last sent was probably lost, and if it leads,
    it may be gone."""

    peer: str


Event = (
    Receive
    | Propose
    | ChangeMembership
    | Read
    | Transfer
    | Decline
    | StepAside
    | TellCommit
    | Persisted
    | Compact
    | SnapshotInstalled
    | SnapshotSent
    | SnapshotFailed
    | PartReceived
    | Unreachable
)


# --- effects ------------------------------------------------------------------------------


class Refusal(Enum):
    """Why something was not done. Nothing was appended for it."""

    NOT_LEADER = "not leader"
    BUSY = "too much is uncommitted, or leadership is being handed over"
    CHANGE_IN_PROGRESS = "another membership change is under way"
    NOT_READY = "nothing of this term is committed yet"
    NOT_A_MEMBER = "no such member"
    ALREADY_A_MEMBER = "the member is there already"
    LAST_VOTER = "the last voter cannot be removed"
    NO_MAJORITY = "the voters that answer would be no majority"
    NOT_ANSWERING = "the voter does not answer, or has to get a snapshot first"
    NOT_A_VOTER = "only a voter can lead"


class Loss(msgspec.Struct, frozen=True):
    """What this node has acknowledged, as its leader knows, is beyond its log."""

    acknowledged: int  # at least up to this index
    last_index: int


class Effects(msgspec.Struct):
    """What a step asks for. Order matters within each list, not between them,
    except: nothing in ``send`` rests on ``persist`` of this same value; and
    ``restore`` comes after every ``persist`` so far, and after it no snapshot
    of an older state may be saved."""

    persist: WriteBatch | None = None
    persist_number: int = 0  # to be reported with Persisted, in order
    send: list[Rpc] = []
    committed: list[Entry] = []  # apply them, in order
    taken: list[tuple[int, int, int]] = []  # token, index, term
    refused: list[tuple[int, Refusal]] = []
    readable: list[tuple[int, int]] = msgspec.field(
        default_factory=list
    )  # token, index to be applied
    snapshots: list[str] = []  # peers that need one sent
    restore: SnapshotMark | None = None  # install the snapshot that was received
    loss: Loss | None = None  # the disk has lost what it said it had: this node must end
    deadline: float = math.inf  # call again then, at the latest


COURTESY_ELECTIONS: Final = 3  # timeouts that a node waits for others which declines to lead
NEW_NODE: Final = HardState()
NO_SNAPSHOT: Final = SnapshotMark()
NO_ROUND: Final = 0  # of heartbeats: an answer to none


# --- the core -----------------------------------------------------------------------------


class Core:
    """One node's Raft. Feed it with ``step``; read its properties; change nothing.

    Invariants: ``compacted <= committed_index <= log.last_index``; the term, the
    commit index and what was handed out for applying only grow; at most one
    vote a term, on disk before anyone hears of it.
    """

    def __init__(
        self,
        node_id: str,
        options: CoreOptions,
        random: Uniform,
        now: float,
        *,
        hard_state: HardState = NEW_NODE,
        mark: SnapshotMark = NO_SNAPSHOT,
        entries: Sequence[Entry] = (),
    ) -> None:
        self.node_id = node_id
        self.options = options
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.leader: str | None = None
        self.log = Log(mark, entries)
        self.committed_index = mark.index
        self.transfer_target: str | None = None
        self.progress: dict[str, Progress] = {}
        self.unanswering: tuple[str, ...] = ()  # voters, when this one last ceased to lead for that
        self._random = random
        self._now = now
        self._handed_index = mark.index  # what was handed out for applying
        # Memberships by the index from which they are in force; the newest counts,
        # committed or not (dissertation §4.1). Truncation takes them back.
        self._memberships: list[tuple[int, Membership]] = [(mark.index, mark.membership)]
        for entry in entries:
            if entry.kind is EntryKind.MEMBERSHIP:
                self._memberships.append((entry.index, Membership.decode(entry.data)))
        self._votes: dict[str, bool] = {}
        self._leader_heard_at = -math.inf
        self._campaigned_at = -math.inf  # when it last asked whether it may stand
        self._declines = False  # another had better lead
        self._leader_suspected = False  # the connection to it broke, and it was not heard since
        self._election_at = math.inf
        self._heartbeat_at = math.inf
        self._quorum_check_at = math.inf
        self._transfer_until = math.inf
        self._installing: SnapshotMark | None = None
        self._round = 0
        self._round_is_new = False  # begun in this step
        self._reads: deque[tuple[int, int, int]] = deque()  # token, round, index
        self._early_reads: list[int] = []  # asked before this term's first commit
        self._uncommitted_bytes = 0
        # Durability: what is not yet handed to the driver, and what waits for it.
        self._hard_state = hard_state
        self._unwritten: list[Entry] = []
        self._truncate_from: int | None = None
        self._write_number = 0
        self._writes: deque[tuple[int, float]] = deque()  # handed out: number, since when
        self._held: deque[tuple[int, Rpc]] = deque()  # number of the write it rests on
        self._fresh: list[Rpc] = []  # rest on the write of this very step
        self._effects = Effects()
        self._wants_append: set[str] = set()  # peers to whom entries or a commit may go
        self._appended_at = -math.inf  # as leader, the last time …
        self._append_gap = math.inf  # … and how long that was after the time before
        self._untold: set[str] = set()  # peers who may not know of a commit …
        self._tell_at = math.inf  # … and when they are told, if no append does
        self._restart_election_timer()
        if self.membership.voters == {node_id}:
            self._election_at = now  # there is nobody to wait for

    @property
    def membership(self) -> Membership:
        """The newest in the log, committed or not."""
        return self._memberships[-1][1]

    @property
    def is_writing(self) -> bool:
        """Whether a write that was asked for is not reported durable yet."""
        return bool(self._writes)

    @property
    def takes_proposals(self) -> bool:
        """Whether a proposal would be taken now, if it is of a usual size."""
        return (
            self.role is Role.LEADER
            and self.transfer_target is None
            and self._uncommitted_bytes < self.options.uncommitted_bytes_max
        )

    @property
    def committed_membership(self) -> Membership:
        return next(m for index, m in reversed(self._memberships) if index <= self.committed_index)

    @property
    def _certain_membership(self) -> Membership:
        """The newest that is committed, known or not: a leader appends a change only when the
        one before is committed. After a restart ``committed_membership`` may be far behind."""
        newest_at, newest = self._memberships[-1]
        return newest if newest_at <= self.committed_index else self._memberships[-2][1]

    def membership_at(self, index: int) -> Membership:
        """The one in force at ``index``, for a snapshot there."""
        return next(m for at, m in reversed(self._memberships) if at <= index)

    def step(self, now: float, events: Sequence[Event] = ()) -> Effects:
        """Take in what has happened until ``now`` (seconds, never running back)."""
        self._now = max(self._now, now)
        self._round_is_new = False
        effects = self._effects = Effects()
        for event in events:
            _EVENTS[type(event)](self, event)
        self._pass_deadlines()
        self._send_appends()
        self._hand_out_write()
        if self._handed_index < self.committed_index:
            start = self._handed_index + 1
            effects.committed = self.log.slice(start, self.committed_index)
            self._handed_index = self.committed_index
        effects.deadline = self._next_deadline()
        return effects

    # --- durability ---

    def _hold(self, rpc: Rpc) -> None:
        """Send ``rpc`` once all that is written up to the end of this step is on disk."""
        self._fresh.append(rpc)

    def _hand_out_write(self) -> None:
        before = self._hard_state
        changed = self.term != before.term or self.vote != before.vote
        if self.role is Role.LEADER and self._unwritten:
            self._accept(self.node_id, self._unwritten[-1].index)
        if changed or self._unwritten or self._truncate_from is not None:
            self._write_number += 1
            self._writes.append((self._write_number, self._now))
            self._effects.persist_number = self._write_number
            if changed:
                self._hard_state = HardState(self.term, self.vote)
            self._effects.persist = WriteBatch(
                tuple(self._unwritten), self._hard_state if changed else None, self._truncate_from
            )
            self._unwritten = []
            self._truncate_from = None
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        for rpc in fresh:
            if self._writes:
                self._held.append((self._writes[-1][0], rpc))
            else:  # never one to this node itself: it rests on a write of this step
                self._release(rpc)

    def _persisted(self, event: Persisted) -> None:
        while self._writes and self._writes[0][0] <= event.number:
            self._writes.popleft()
        while self._held and self._held[0][0] <= event.number:
            self._release(self._held.popleft()[1])

    def _release(self, rpc: Rpc) -> None:
        # Revalidate: in another term than it was meant for it means something else.
        if rpc.term != self.term:
            return
        if rpc.receiver == self.node_id:
            self._receive(Receive(rpc))
        else:
            self._effects.send.append(rpc)

    def _append_to_log(self, entry: Entry) -> None:
        self.log.append(entry)
        self._unwritten.append(entry)
        if entry.kind is EntryKind.MEMBERSHIP:
            self._memberships.append((entry.index, Membership.decode(entry.data)))

    def _truncate_log(self, index: int) -> None:
        assert index > self.committed_index, "what is committed is never taken back"
        self.log.truncate_from(index)
        self._unwritten = [entry for entry in self._unwritten if entry.index < index]
        self._truncate_from = min(index, self._truncate_from or index)
        while self._memberships[-1][0] >= index:
            self._memberships.pop()

    # --- time ---

    def _next_deadline(self) -> float:
        if self.role is Role.LEADER and len(self.progress) == 1:
            return math.inf  # alone: nobody waits for heartbeats, nobody can be lost
        if self.role is Role.LEADER:
            return min(
                self._heartbeat_at, self._quorum_check_at, self._transfer_until, self._tell_at
            )
        return self._election_at

    def _pass_deadlines(self) -> None:
        if self.role is Role.LEADER:
            if self._now >= self._quorum_check_at:
                self._check_quorum()
        elif self._now >= self._election_at:
            self._campaign()
        if self.role is Role.LEADER:
            if self._now >= self._transfer_until:
                self._end_transfer()
            if self._now >= self._tell_at:
                self._tell_commits()
            if self._now >= self._heartbeat_at:
                if self._disk_hangs():
                    self._become_follower(self.term, None)
                else:
                    self._send_heartbeats()

    def _restart_election_timer(self) -> None:
        timeout = self.options.election_timeout_seconds
        self._election_at = self._now + self._random.uniform(timeout, 2 * timeout) + self._courtesy

    @property
    def _courtesy(self) -> float:
        """How much longer than others it waits before it stands, in seconds."""
        if not self._declines or self.membership.voters == {self.node_id}:
            return 0.0
        return COURTESY_ELECTIONS * self.options.election_timeout_seconds

    # --- roles ---

    def _become_follower(self, term: int, leader: str | None) -> None:
        if term > self.term:
            self.term, self.vote = term, None
        self.leader = leader
        if self.role is Role.LEADER:
            self._leave_leadership()
        if self.role is not Role.FOLLOWER:
            self.role = Role.FOLLOWER
            self._restart_election_timer()

    def _leave_leadership(self) -> None:
        for token in (*self._early_reads, *(token for token, _, _ in self._reads)):
            self._effects.refused.append((token, Refusal.NOT_LEADER))
        self._early_reads.clear()
        self._reads.clear()
        self.progress = {}
        self._wants_append.clear()
        self._untold.clear()
        self._tell_at = math.inf
        self._end_transfer()

    def _campaign(self) -> None:
        """Ask whether there would be a majority; only then raise the term."""
        self._restart_election_timer()
        self.leader = None
        if not self._may_stand():
            return
        self.role = Role.PRE_CANDIDATE
        self._campaigned_at = self._now
        self._votes = {self.node_id: True}
        for peer in sorted(self.membership.voters - {self.node_id}):
            # It binds nobody, so it rests on no write.
            self._effects.send.append(
                PreVote(
                    sender=self.node_id,
                    receiver=peer,
                    term=self.term + 1,
                    last_index=self.log.last_index,
                    last_term=self.log.last_term,
                )
            )
        self._count_pre_votes()

    def _may_stand(self) -> bool:
        """Whether it is a voter, or one until its removal is committed: its log may be the
        only one to which the others can give their votes (dissertation §4.2.2)."""
        if self._installing is not None or self._disk_hangs():
            return False
        if self.node_id in self.membership.ids:
            return self.node_id in self.membership.voters
        return self.node_id in self._certain_membership.voters

    def _stand(self, *, transfer: bool = False) -> None:
        """Become candidate of the next term, and vote for oneself."""
        self.role = Role.CANDIDATE
        self.leader = None
        self.term += 1
        self.vote = self.node_id
        self._votes = {}
        self._restart_election_timer()
        me = VoteReply(sender=self.node_id, receiver=self.node_id, term=self.term, granted=True)
        self._hold(me)
        for peer in sorted(self.membership.voters - {self.node_id}):
            self._hold(
                Vote(
                    sender=self.node_id,
                    receiver=peer,
                    term=self.term,
                    last_index=self.log.last_index,
                    last_term=self.log.last_term,
                    transfer=transfer,
                )
            )

    def _lead(self) -> None:
        """Won: make what is there known, and commit it by an entry of this term (§8)."""
        self.role = Role.LEADER
        self.leader = self.node_id
        self._uncommitted_bytes = sum(
            len(e.data) for e in self.log.slice(self.committed_index + 1, self.log.last_index)
        )
        self.progress = {}
        self._follow_membership()
        self._heartbeat_at = self._now
        self._quorum_check_at = self._now + self.options.election_timeout_seconds
        self._append_as_leader(EntryKind.NO_OP, b"")

    def _follow_membership(self) -> None:
        """Keep a Progress for each peer; for one that is being removed until it is told."""
        peers = (self.membership.ids | self._certain_membership.ids) - {self.node_id}
        for gone in self.progress.keys() - peers - {self.node_id}:
            del self.progress[gone]
        for peer in sorted(peers - self.progress.keys()):
            self.progress[peer] = Progress(next=self.log.last_index + 1, heard_at=self._now)
            self._wants_append.add(peer)
        if self.node_id not in self.progress:
            # Its own disk is a peer, too: it acknowledges by an RPC to itself.
            self.progress[self.node_id] = Progress(
                next=self.log.last_index + 1, mode=Mode.REPLICATE, heard_at=self._now
            )

    def _check_quorum(self) -> None:
        """A leader that no majority answers steps down (dissertation §6.2)."""
        since = self._now - self.options.election_timeout_seconds
        self._quorum_check_at = self._now + self.options.election_timeout_seconds
        answering = {
            peer
            for peer, progress in self.progress.items()
            if peer == self.node_id or progress.heard_at >= since
        }
        if not self._is_majority(answering):
            self.unanswering = tuple(sorted(self.membership.voters - answering))
            self._become_follower(self.term, None)

    def _is_majority(self, ids: set[str]) -> bool:
        voters = self.membership.voters
        return len(ids & voters) * 2 > len(voters)

    def _is_stable(self) -> bool:
        """Whether a leader is known to live: then nobody may depose it (dissertation §4.2.3)."""
        if self.role is Role.LEADER:
            return True  # it checks its quorum itself
        heard = self._now - self._leader_heard_at
        lives = self.leader is not None and not self._leader_suspected
        return lives and heard < self.options.election_timeout_seconds

    # --- receiving ---

    def _receive(self, event: Receive) -> None:
        rpc = event.rpc
        if rpc.term > self.term:
            if isinstance(rpc, Vote) and not rpc.transfer and self._is_stable():
                return
            if not isinstance(rpc, PreVote) and not (isinstance(rpc, PreVoteReply) and rpc.granted):
                self._become_follower(rpc.term, None)
        elif rpc.term < self.term and rpc.sender != self.node_id:
            self._answer_stale(rpc)
            return
        handler = _HANDLERS.get((self.role, type(rpc)))
        if handler is not None:
            handler(self, rpc)

    def _answer_stale(self, rpc: Rpc) -> None:
        """Let a leader or a pre-candidate of an older term know of the newer one."""
        if isinstance(rpc, Append | Heartbeat | SnapshotReceived):
            self._hold(
                AppendReply(
                    sender=self.node_id,
                    receiver=rpc.sender,
                    term=self.term,
                    accepted=False,
                    index=0,
                    hint_index=0,
                    hint_term=0,
                )
            )
        elif isinstance(rpc, PreVote):
            self._reply_pre_vote(rpc, granted=False)

    # --- votes ---

    def _on_pre_vote(self, rpc: PreVote) -> None:
        granted = (
            rpc.term > self.term
            and not self._is_stable()
            and self.log.is_up_to_date(rpc.last_index, rpc.last_term)
            and not self._goes_first(rpc)
        )
        self._reply_pre_vote(rpc, granted=granted)

    def _goes_first(self, rpc: PreVote) -> bool:
        """Whether this node asks for the same at the same moment, and by its id goes first.

        Two whose time is over together would each let the other stand, which splits
        the vote and costs an election timeout. It holds for a moment only: who asks
        in vain must not keep another from it.
        """
        since = self._now - self._campaigned_at
        is_rival = self.role is Role.PRE_CANDIDATE and rpc.term == self.term + 1
        is_equal = (rpc.last_term, rpc.last_index) == (self.log.last_term, self.log.last_index)
        is_fresh = since < self.options.heartbeat_interval_seconds
        return is_rival and is_equal and is_fresh and self.node_id < rpc.sender

    def _reply_pre_vote(self, rpc: PreVote, *, granted: bool) -> None:
        self._effects.send.append(
            PreVoteReply(
                sender=self.node_id,
                receiver=rpc.sender,
                term=rpc.term if granted else self.term,
                granted=granted,
            )
        )

    def _on_pre_vote_reply(self, rpc: PreVoteReply) -> None:
        if rpc.granted and rpc.term != self.term + 1:
            return  # to an older question
        self._votes[rpc.sender] = rpc.granted
        self._count_pre_votes()

    def _count_pre_votes(self) -> None:
        if self._is_majority({peer for peer, granted in self._votes.items() if granted}):
            self._stand()

    def _on_vote(self, rpc: Vote) -> None:
        granted = self.vote in (None, rpc.sender) and self.log.is_up_to_date(
            rpc.last_index, rpc.last_term
        )
        if granted:
            self._become_follower(self.term, None)
            self.vote = rpc.sender
            self._restart_election_timer()
        self._hold(
            VoteReply(sender=self.node_id, receiver=rpc.sender, term=self.term, granted=granted)
        )

    def _on_vote_reply(self, rpc: VoteReply) -> None:
        self._votes[rpc.sender] = rpc.granted
        granted = {peer for peer, vote in self._votes.items() if vote}
        if self._is_majority(granted):
            self._lead()
        elif self._is_majority({peer for peer, vote in self._votes.items() if not vote}):
            self._become_follower(self.term, None)

    def _on_timeout_now(self, rpc: TimeoutNow) -> None:
        if self._may_stand():
            self._stand(transfer=True)

    # --- following ---

    def _hear_leader(self, rpc: Rpc) -> None:
        assert self.role is not Role.LEADER, "two leaders in one term"
        self._become_follower(rpc.term, rpc.sender)
        self._leader_heard_at = self._now
        self._leader_suspected = False
        self._restart_election_timer()

    def _on_append(self, rpc: Append) -> None:
        self._hear_leader(rpc)
        if self._installing is not None:
            return  # the log is being replaced
        if rpc.prev_index < self.committed_index:
            # Old news: what is committed is equal by itself. Answer with how far that is.
            self._accept(rpc.sender, self.committed_index)
        elif self.log.term(rpc.prev_index) == rpc.prev_term:
            self._take_entries(rpc.entries)
            last = rpc.prev_index + len(rpc.entries)
            self._commit_to(min(rpc.commit, last))
            self._accept(rpc.sender, last)
        else:
            hint = self.log.last_index_of_term_at_most(rpc.prev_term, rpc.prev_index)
            self._hold(
                AppendReply(
                    sender=self.node_id,
                    receiver=rpc.sender,
                    term=self.term,
                    accepted=False,
                    index=rpc.prev_index,
                    hint_index=hint,
                    hint_term=self.log.term(hint) or 0,
                )
            )

    def _take_entries(self, entries: Sequence[Entry]) -> None:
        """Add what is not there; only a real conflict truncates (Raft §5.3)."""
        for entry in entries:
            known = self.log.term(entry.index)
            if known == entry.term:
                continue
            if known is not None:
                self._truncate_log(entry.index)
            self._append_to_log(entry)

    def _accept(self, leader: str, index: int) -> None:
        self._hold(
            AppendReply(
                sender=self.node_id,
                receiver=leader,
                term=self.term,
                accepted=True,
                index=index,
                hint_index=0,
                hint_term=0,
            )
        )

    def _on_heartbeat(self, rpc: Heartbeat) -> None:
        self._hear_leader(rpc)
        self._commit_acknowledged(rpc.commit)
        # It says that this node lives, and its disk: behind the writes before it.
        self._hold(
            HeartbeatReply(
                sender=self.node_id, receiver=rpc.sender, term=self.term, round=rpc.round
            )
        )

    def _on_commit(self, rpc: Commit) -> None:
        self._hear_leader(rpc)
        self._commit_acknowledged(rpc.index)

    def _on_snapshot_received(self, rpc: SnapshotReceived) -> None:
        self._hear_leader(rpc)
        mark = rpc.mark
        if mark.index <= self.committed_index:
            self._accept(rpc.sender, self.committed_index)
        elif self.log.term(mark.index) == mark.term:
            self._commit_to(mark.index)  # the suffix is kept (Raft §7)
            self._accept(rpc.sender, mark.index)
        elif self._installing is None:
            self._installing = mark
            self._effects.restore = mark

    def _snapshot_installed(self, event: SnapshotInstalled) -> None:
        mark = event.mark
        assert self._installing == mark, "only what was asked for is installed"
        self._installing = None
        self.log.reset(mark)
        self._unwritten = []
        self._truncate_from = None
        self._memberships = [(mark.index, mark.membership)]
        self.committed_index = self._handed_index = mark.index
        if self.leader is not None:
            self._accept(self.leader, mark.index)

    def _commit_acknowledged(self, index: int) -> None:
        """``index`` is no further than what this node has acknowledged to this leader. A log
        that ends before it was longer, on a disk that has lost its end since."""
        if index > self.log.last_index and self._installing is None:
            self._effects.loss = Loss(index, self.log.last_index)
        self._commit_to(min(index, self.log.last_index))

    def _commit_to(self, index: int) -> None:
        if index <= self.committed_index or self._installing is not None:
            return
        self.committed_index = index

    # --- leading ---

    def _append_as_leader(self, kind: EntryKind, data: bytes) -> Entry:
        entry = Entry(self.log.last_index + 1, self.term, kind, data)
        self._append_to_log(entry)
        self._uncommitted_bytes += len(data)
        self._append_gap = self._now - self._appended_at
        self._appended_at = self._now
        if kind is EntryKind.MEMBERSHIP:
            self._follow_membership()
            self._serve_reads()  # fewer may be a majority now
        self._wants_append.update(self.progress)
        return entry

    def _propose(self, event: Propose) -> None:
        if self.role is not Role.LEADER:
            self._effects.refused.append((event.token, Refusal.NOT_LEADER))
            return
        room = self._uncommitted_bytes + len(event.data) <= self.options.uncommitted_bytes_max
        # A single proposal that is larger than the bound goes alone.
        if self.transfer_target is not None or not (room or self._uncommitted_bytes == 0):
            self._effects.refused.append((event.token, Refusal.BUSY))
            return
        entry = self._append_as_leader(EntryKind.DATA, event.data)
        self._effects.taken.append((event.token, entry.index, entry.term))

    def _send_appends(self) -> None:
        if self.role is not Role.LEADER:
            return
        if self._wants_append:
            for peer in sorted(self._wants_append):
                if peer != self.node_id and peer in self.progress:
                    self._send_append(peer)
            self._wants_append.clear()
        if self._now >= self._tell_at:
            self._tell_commits()

    def _send_append(self, peer: str) -> None:
        """All that the window has room for; or the news of a commit, if nothing carries it."""
        progress, options = self.progress[peer], self.options
        # Most often it has all there is, and need not be asked about its window.
        is_level = progress.mode is Mode.REPLICATE and progress.next > self.log.last_index
        while not is_level and progress.may_send(
            options.window_appends_max, options.window_bytes_max
        ):
            if progress.next <= self.log.compacted_index:
                self._send_snapshot(peer, progress)
                return
            entries = self.log.up_to_bytes(progress.next, options.append_bytes_max)
            if not entries and progress.mode is Mode.REPLICATE:
                break
            self._append(peer, progress, entries)
            if entries or progress.mode is Mode.PROBE:
                progress.sent(progress.next - 1 + len(entries), sum(len(e.data) for e in entries))
        if progress.mode is Mode.REPLICATE and progress.told_commit < self.committed_index:
            self._untold.add(peer)
            # Where entries come one after the other, the next will tell.
            delay = options.commit_delay_seconds
            wait = delay if self._append_gap <= delay else 0.0
            self._tell_at = min(self._tell_at, self._now + wait)

    def _tell_commits(self) -> None:
        """Tell those whom no append has told."""
        for peer in sorted(self._untold & self.progress.keys()):
            self._tell_commit(peer)
        self._untold.clear()
        self._tell_at = math.inf

    def _tell_commit_now(self, event: TellCommit) -> None:
        if self.role is Role.LEADER and event.peer in self.progress:
            self._tell_commit(event.peer)

    def _tell_commit(self, peer: str) -> None:
        progress = self.progress[peer]
        index = min(progress.match, self.committed_index)
        if progress.mode is Mode.REPLICATE and index > progress.told_commit:
            progress.told_commit = index
            self._effects.send.append(
                Commit(sender=self.node_id, receiver=peer, term=self.term, index=index)
            )

    def _append(self, peer: str, progress: Progress, entries: Sequence[Entry]) -> None:
        prev_index = progress.next - 1
        prev_term = self.log.term(prev_index)
        assert prev_term is not None, "entries that are gone come as a snapshot"
        self._effects.send.append(
            Append(
                sender=self.node_id,
                receiver=peer,
                term=self.term,
                prev_index=prev_index,
                prev_term=prev_term,
                entries=tuple(entries),
                commit=self.committed_index,
            )
        )
        progress.told_commit = min(self.committed_index, prev_index + len(entries))
        if progress.told_commit == self.committed_index:
            self._untold.discard(peer)
            if not self._untold:
                self._tell_at = math.inf

    def _send_snapshot(self, peer: str, progress: Progress) -> None:
        progress.snapshot(self.log.compacted_index)
        self._effects.snapshots.append(peer)

    def _ask(self, peer: str, progress: Progress) -> None:
        """What was sent is unanswered and may be lost: does the peer have it? No entries
        go along, so asking is cheap; a refusal leads back to probing."""
        if progress.next <= self.log.compacted_index:
            self._send_snapshot(peer, progress)
        else:
            self._append(peer, progress, ())

    def _send_heartbeats(self) -> None:
        self._heartbeat_at = self._now + self.options.heartbeat_interval_seconds
        for peer, progress in sorted(self.progress.items()):
            if peer != self.node_id:
                self._effects.send.append(
                    Heartbeat(
                        sender=self.node_id,
                        receiver=peer,
                        term=self.term,
                        commit=min(progress.match, self.committed_index),
                        round=self._round,
                    )
                )

    def _disk_hangs(self) -> bool:
        """Then another shall lead, or nobody would notice (hashicorp/raft#503)."""
        if self.membership.voters == {self.node_id}:
            return False  # there is no other
        waiting_since = self._writes[0][1] if self._writes else self._now
        return self._now - waiting_since > self.options.election_timeout_seconds

    def _on_append_reply(self, rpc: AppendReply) -> None:
        progress = self.progress.get(rpc.sender)
        if progress is None or rpc.index > self.log.last_index:
            return  # no member, or it acknowledges what was never sent
        progress.heard_at, progress.silent = self._now, False
        if rpc.accepted:
            if progress.accepted(rpc.index):
                self._advance_commit()
                self._watch_learner(rpc.sender, progress)
                if rpc.sender == self.transfer_target:
                    self._maybe_hand_over(rpc.sender)
            self._wants_append.add(rpc.sender)
        else:
            probe_at = self.log.last_index_of_term_at_most(rpc.hint_term, rpc.hint_index)
            if progress.refused(rpc.index, probe_at):
                self._wants_append.add(rpc.sender)

    def _on_heartbeat_reply(self, rpc: HeartbeatReply) -> None:
        progress = self.progress.get(rpc.sender)
        if progress is None:
            return
        progress.heard_at, progress.silent = self._now, False
        progress.round = max(progress.round, rpc.round)
        self._watch_learner(rpc.sender, progress)
        if progress.is_waiting:
            self._ask(rpc.sender, progress)
        self._serve_reads()

    def _advance_commit(self) -> None:
        """What a majority has on disk is committed, if it is of this term (§5.4.2)."""
        index = self._majority_match()
        if index > self.committed_index and self.log.term(index) == self.term:
            self._commit_as_leader(index)

    def _majority_match(self) -> int:
        """The highest index up to which a majority has the log on disk."""
        voters = self.membership.voters
        matches = sorted((self.progress[peer].match for peer in voters), reverse=True)
        return matches[len(voters) // 2]

    def _commit_as_leader(self, index: int) -> None:
        for entry in self.log.slice(self.committed_index + 1, index):
            self._uncommitted_bytes -= len(entry.data)
        self.committed_index = index
        self._wants_append.update(self.progress)
        for token in self._early_reads:
            self._begin_read(token)
        self._early_reads.clear()
        self._part_with_removed()

    def _part_with_removed(self) -> None:
        removed = self.progress.keys() - self.membership.ids
        if not removed or self._memberships[-1][0] > self.committed_index:
            return
        for peer in sorted(
            removed - {self.node_id}
        ):  # they, too, learn of it (dissertation §4.2.2)
            if self.progress[peer].next > self.log.compacted_index:
                self._append(peer, self.progress[peer], ())
        self._follow_membership()
        if self.node_id in removed:
            best = max(sorted(self.membership.voters), key=lambda peer: self.progress[peer].match)
            self._send_timeout_now(best)
            self._become_follower(self.term, None)

    @property
    def has_committed_in_term(self) -> bool:
        """Whether a leader knows what is committed (§8)."""
        return self.log.term(self.committed_index) == self.term

    # --- reads ---

    def _read(self, event: Read) -> None:
        if self.role is not Role.LEADER:
            self._effects.refused.append((event.token, Refusal.NOT_LEADER))
        elif not self.has_committed_in_term:
            self._early_reads.append(event.token)  # what is committed is not known yet (§8)
        else:
            self._begin_read(event.token)

    def _begin_read(self, token: int) -> None:
        """A round of heartbeats, begun after the read came, proves leadership (§6.4)."""
        if not self._round_is_new:
            self._round_is_new = True  # one round for all reads of this step
            self._round += 1
            self._heartbeat_at = self._now
        self._reads.append((token, self._round, self.committed_index))
        self.progress[self.node_id].round = self._round
        self._serve_reads()

    def _serve_reads(self) -> None:
        while self._reads:
            token, number, index = self._reads[0]
            proved = {peer for peer, p in self.progress.items() if p.round >= number}
            if not self._is_majority(proved):
                return
            self._reads.popleft()
            self._effects.readable.append((token, index))

    # --- handing over ---

    def _transfer(self, event: Transfer) -> None:
        if self.role is not Role.LEADER:
            self._effects.refused.append((event.token, Refusal.NOT_LEADER))
        elif event.target not in self.membership.voters:
            self._effects.refused.append((event.token, Refusal.NOT_A_VOTER))
        elif self.transfer_target not in (None, event.target):
            self._effects.refused.append((event.token, Refusal.BUSY))
        elif event.target not in self.answering:
            self._effects.refused.append((event.token, Refusal.NOT_ANSWERING))
        else:
            self._effects.taken.append((event.token, self.log.last_index, self.term))
            if event.target != self.node_id and self.transfer_target is None:
                self.transfer_target = event.target
                self._transfer_until = self._now + self.options.election_timeout_seconds
                self._wants_append.add(event.target)
                self._maybe_hand_over(event.target)

    def _maybe_hand_over(self, target: str) -> None:
        if self.progress[target].match == self.log.last_index:
            self._send_timeout_now(target)

    def _send_timeout_now(self, target: str) -> None:
        self._effects.send.append(TimeoutNow(sender=self.node_id, receiver=target, term=self.term))

    def _end_transfer(self) -> None:
        self.transfer_target = None
        self._transfer_until = math.inf

    def _decline(self, event: Decline) -> None:
        if event.declines != self._declines:
            self._declines = event.declines
            if self.role is Role.FOLLOWER:
                self._restart_election_timer()

    def _step_aside(self, event: StepAside) -> None:
        """Whoever leads next has not what only this log has, and takes it back."""
        if self.role is Role.LEADER:
            self._become_follower(self.term, None)
            self._election_at += COURTESY_ELECTIONS * self.options.election_timeout_seconds

    # --- membership ---

    def _change_membership(self, event: ChangeMembership) -> None:
        refusal = self._objection(event.change, forced=event.forced)
        if refusal is not None:
            self._effects.refused.append((event.token, refusal))
            return
        entry = self._append_as_leader(EntryKind.MEMBERSHIP, self._changed(event.change).encode())
        self._effects.taken.append((event.token, entry.index, entry.term))

    def _objection(self, change: MembershipChange, *, forced: bool = False) -> Refusal | None:
        if self.role is not Role.LEADER:
            return Refusal.NOT_LEADER
        if not self.has_committed_in_term:
            return Refusal.NOT_READY  # the single-server bug of 2015
        if self._memberships[-1][0] > self.committed_index:
            return Refusal.CHANGE_IN_PROGRESS
        if self.transfer_target is not None:
            return Refusal.BUSY
        match change:
            case AddLearner(member) if member.id in self.membership.ids:
                return Refusal.ALREADY_A_MEMBER
            case UpdateMember(member) if member.id not in self.membership.ids:
                return Refusal.NOT_A_MEMBER
            case Promote(node_id) if node_id not in self.membership.ids:
                return Refusal.NOT_A_MEMBER
            case Promote(node_id) if node_id in self.membership.voters:
                return Refusal.ALREADY_A_MEMBER
            case Remove(node_id) if node_id not in self.membership.ids:
                return Refusal.NOT_A_MEMBER
            case Remove(node_id) if self.membership.voters == {node_id}:
                return Refusal.LAST_VOTER
        if not forced and isinstance(change, Remove | Promote) and not self._may_commit(change):
            return Refusal.NO_MAJORITY
        return None

    def _may_commit(self, change: MembershipChange) -> bool:
        """Whether those who would vote then, and answer now, are a majority. The change is in
        force from the moment it is appended, so that without one it could never be committed,
        nor taken back."""
        voters = self.voters_after(change)
        return 2 * len(self.answering & voters) > len(voters)

    def voters_after(self, change: MembershipChange) -> frozenset[str]:
        """Who would vote; for a change to which nothing else objects."""
        return self._changed(change).voters

    @property
    def answering(self) -> set[str]:
        """As leader: who has answered within an election timeout, and can be sent entries. Not
        whose connection broke since, nor who has to get a snapshot first."""
        since = self._now - self.options.election_timeout_seconds
        return {
            peer
            for peer, progress in self.progress.items()
            if peer == self.node_id or progress.is_answering(since)
        }

    def _changed(self, change: MembershipChange) -> Membership:
        membership = self.membership
        match change:
            case AddLearner(member):
                return membership.with_member(replace(member, voter=False))
            case UpdateMember(member):
                voter = member.id in membership.voters
                return membership.with_member(replace(member, voter=voter))
            case Promote(node_id):
                (member,) = (m for m in membership.members if m.id == node_id)
                return membership.with_member(replace(member, voter=True))
            case Remove(node_id):
                return membership.without(node_id)

    def _watch_learner(self, peer: str, progress: Progress) -> None:
        """Promote a learner that keeps up: a round is shorter than an election (§4.2.1)."""
        if peer not in self.membership.learners:
            return
        if progress.match < progress.catch_up_target:
            return
        took = self._now - progress.catch_up_began
        caught_up = progress.catch_up_target and took < self.options.election_timeout_seconds
        if caught_up and self._objection(Promote(peer)) is None:
            self._append_as_leader(EntryKind.MEMBERSHIP, self._changed(Promote(peer)).encode())
            return
        progress.catch_up_target = self.log.last_index
        progress.catch_up_began = self._now

    # --- what the driver reports ---

    def _compact(self, event: Compact) -> None:
        index = min(event.keep_after, self._handed_index)
        if index <= self.log.compacted_index:
            return
        in_force = self.membership_at(index)
        later = [(at, m) for at, m in self._memberships if at > index]
        self._memberships = [(index, in_force), *later]
        self.log.compact(index)

    def _snapshot_sent(self, event: SnapshotSent) -> None:
        # Whether it was installed, the next answers tell; the one to it may be lost.
        self._end_snapshot(event.peer, event.index)

    def _snapshot_failed(self, event: SnapshotFailed) -> None:
        self._end_snapshot(event.peer, None)

    def _end_snapshot(self, peer: str, arrived: int | None) -> None:
        progress = self.progress.get(peer)
        if progress is not None and progress.mode is Mode.SNAPSHOT:
            found = progress.match if arrived is None else max(progress.snapshot_index, arrived)
            progress.probe(found + 1)
            progress.paused = True  # until it answers a heartbeat

    def _part_received(self, event: PartReceived) -> None:
        """Who sends lives: nobody is deposed in the middle of what it says, if it goes on.

        Nothing is known of it but its sender. So it keeps the leader of this term, whom
        this node follows, and nobody else; and it proves no leadership for reads. The
        leader is told that this node lives, since its heartbeats wait behind the rest.
        """
        if self.role is Role.LEADER:
            if (progress := self.progress.get(event.peer)) is not None:
                progress.heard_at, progress.silent = self._now, False
        elif event.peer == self.leader and not self._leader_suspected:
            self._leader_heard_at = self._now
            self._restart_election_timer()
            self._hold(
                HeartbeatReply(
                    sender=self.node_id, receiver=event.peer, term=self.term, round=NO_ROUND
                )
            )

    def _unreachable(self, event: Unreachable) -> None:
        progress = self.progress.get(event.peer)
        if progress is not None:
            progress.silent = True
        if progress is not None and progress.mode is Mode.REPLICATE:
            progress.probe(progress.match + 1)
            progress.paused = True
        if self.role is Role.FOLLOWER and event.peer == self.leader:
            self._suspect_leader()
        if event.peer == self.transfer_target:
            self._end_transfer()

    def _suspect_leader(self) -> None:
        """A process that ends closes its connections: do not wait a whole election timeout.

        Only the wait is shorter. One that lives sends a heartbeat before it ends, and
        those who still hear it refuse the pre-vote.
        """
        self._leader_suspected = True
        options = self.options
        wait = self._random.uniform(1, 3) * options.heartbeat_interval_seconds
        wait = min(wait, options.election_timeout_seconds) + self._courtesy
        self._election_at = min(self._election_at, self._now + wait)


Handler = Callable[[Core, Any], None]

_EVENTS: Final[dict[type, Handler]] = {
    Receive: Core._receive,
    Propose: Core._propose,
    ChangeMembership: Core._change_membership,
    Read: Core._read,
    Transfer: Core._transfer,
    Decline: Core._decline,
    StepAside: Core._step_aside,
    TellCommit: Core._tell_commit_now,
    Persisted: Core._persisted,
    Compact: Core._compact,
    SnapshotInstalled: Core._snapshot_installed,
    SnapshotSent: Core._snapshot_sent,
    SnapshotFailed: Core._snapshot_failed,
    PartReceived: Core._part_received,
    Unreachable: Core._unreachable,
}

_FOLLOWING: Final[dict[type, Handler]] = {
    PreVote: Core._on_pre_vote,
    Vote: Core._on_vote,
    Append: Core._on_append,
    Heartbeat: Core._on_heartbeat,
    Commit: Core._on_commit,
    SnapshotReceived: Core._on_snapshot_received,
    TimeoutNow: Core._on_timeout_now,
}

_HANDLERS: Final[dict[tuple[Role, type], Handler]] = {
    **{(Role.FOLLOWER, rpc): handler for rpc, handler in _FOLLOWING.items()},
    **{(Role.PRE_CANDIDATE, rpc): handler for rpc, handler in _FOLLOWING.items()},
    (Role.PRE_CANDIDATE, PreVoteReply): Core._on_pre_vote_reply,
    **{(Role.CANDIDATE, rpc): handler for rpc, handler in _FOLLOWING.items()},
    (Role.CANDIDATE, VoteReply): Core._on_vote_reply,
    (Role.LEADER, PreVote): Core._on_pre_vote,
    (Role.LEADER, Vote): Core._on_vote,
    (Role.LEADER, AppendReply): Core._on_append_reply,
    (Role.LEADER, HeartbeatReply): Core._on_heartbeat_reply,
}
