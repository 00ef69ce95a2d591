"""The loop that drives the log: propose, replicate, make durable, apply, answer.

Callers know three things: ``propose`` a command and get its outcome, ``read``
what is applied, and that ``run`` is the task behind both. What is committed,
and when it may be answered, is Raft's to say (raft/core.py); here it is given
a disk, a clock, peers and a state machine.

    propose ─▶ proposals ─┬─ leads ──▶ core.step ──┬─▶ peers: RPCs
                ▲         └─ follows ─▶ the leader ├─▶ disk: one transaction, one fsync
                │                                  └─▶ apply ─▶ outcomes, events to the hub
                └──────────────────────────────────────────────┘

One task owns the core: RPCs, writes that are done, proposals and deadlines
come to it as events, and all that waits goes into one step. Everything that
waits when the writer is free goes into the next entry, so the batch grows with
the load, and the cost of an fsync is shared. Nothing is answered before the
writes that it rests on are reported durable.

A node that follows sends what its clients propose to the leader, which never
sends it on; the outcome is what this node itself applies (proposals.py). All that
goes to the disk goes by one queue (disk.py). What costs time there is done in
pieces: snapshots, removing entries of which nothing is retained (upkeep.py).
"""

from __future__ import annotations

import logging
import math
import random
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import trio

from repl_broker.changes import PendingChange, arithmetic, pending
from repl_broker.chronicle import Chronicle
from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    Expire,
    KeepTopics,
    Numbered,
    Publish,
    RaiseLevel,
    Settings,
)
from repl_broker.disk import Disk, InThread
from repl_broker.errors import NOTHING_CHANGED, ReplBrokerError, RequestError, StorageError
from repl_broker.founding import DISOWNED, FOUNDED, LOST
from repl_broker.histogram import Durations
from repl_broker.history import History
from repl_broker.levels import NEWEST, NUMBERED, PUBLISHERS
from repl_broker.message import Message
from repl_broker.pace import Pace
from repl_broker.proposals import (
    LARGE_BYTES,
    LEADERS_OWN,
    Forwarded,
    Offer,
    Proposal,
    Proposals,
    Watch,
)
from repl_broker.raft.core import (
    AddLearner,
    ChangeMembership,
    Compact,
    Core,
    CoreOptions,
    Decline,
    Effects,
    Event,
    Loss,
    MembershipChange,
    PartReceived,
    Persisted,
    Propose,
    Read,
    Receive,
    Refusal,
    Role,
    SnapshotInstalled,
    StepAside,
    TellCommit,
    Transfer,
    Unreachable,
)
from repl_broker.raft.log import (
    Entry,
    EntryKind,
    Member,
    Membership,
    SnapshotMark,
)
from repl_broker.raft.rpc import Append, Rpc, SnapshotReceived, TimeoutNow, Vote
from repl_broker.sending import UNKNOWN_REQUEST, SnapshotSender
from repl_broker.snapshots import PIECE_SECONDS_MAX, SnapshotReceiver
from repl_broker.soundness import load_sound
from repl_broker.state import Applied, BrokerState, Location, Outcome
from repl_broker.storage import PAGE_BYTES, Storage
from repl_broker.taking import Mark, Taker
from repl_broker.trace import apart
from repl_broker.transport import PeerRefusedError, PeerUnreachableError
from repl_broker.turnstile import Turnstile
from repl_broker.upkeep import Upkeep
from repl_broker.wire import (
    decode_command,
    decode_entry,
    encode_command,
    encode_entry,
)
from repl_broker.writer import ThreadWriter, Writer

__all__ = ["MemberProgress", "NotLeaderError", "Peers", "Replica", "ReplicaStatistics"]
__all__ += ["disowned_error", "older_copy_error"]

log = logging.getLogger(__name__)

ENTRY_BYTES_MAX: Final = 1 << 20  # what is joined into one entry; a larger command goes alone
ENTRY_BYTES: Final = PAGE_BYTES  # what an entry counts for beside its data
PENDING_BYTES_MAX: Final = 64 << 20  # of proposals that wait; beyond it, publishes are refused
RUNS: Final = "runs"  # the note: how often this node was started
RUN_BITS: Final = 32  # of chance, behind that number
COPY_REMEDY: Final = "stop it, and run 'repl-broker cluster rejoin' on its machine"
FULL: Final = "storage_full: "  # what the leader's refusal begins with if its store is full
TURNS_MAX: Final = 4  # one after the other, without letting others run
APPLY_SECONDS_MAX: Final = 0.02  # without letting others run
EXPIRY_STEPS_MAX: Final = 10_000  # messages that one entry trims, some 15 ms
EXPIRY_ENTRIES_MAX: Final = 1000  # one after the other, in …
EXPIRY_INTERVAL_SECONDS: Final = 5
RELEASE_BYTES: Final = 4 << 20  # applied since entries were last let go from memory
CLOCK_JUMP_MS: Final = 60_000  # ahead of what has passed by a steady clock: worth a warning
FORWARDS_MAX: Final = 2  # on their way to the leader at a time; each takes all that waits
GATHER_SECONDS_MAX: Final = 0.0005  # for those who were served together to come again together
ALARM_NEAR_SECONDS: Final = 0.02  # some publishes long: else the alarm may go off for nothing
PATIENCE_ELECTIONS: Final = 5  # a request waits so many election timeouts for a leader
WAIT_SECONDS_MAX: Final = 30  # … and so long for one that is there
TOO_LONG: Final = "it was not committed here in time"
LOOK_SECONDS_MIN: Final = 0.05  # between two looks for those that have waited for so long
PARTING_SECONDS: Final = 1.0  # for the leader to hear why this node ends

T = TypeVar("T")


class NotLeaderError(ReplBrokerError):
    """This node does not lead (any more); nothing was appended."""

    def __init__(self) -> None:
        super().__init__("this node does not lead")


def disowned_error(reason: str) -> RequestError:
    return RequestError("no_leader", f"This node takes no part: {reason}.{NOTHING_CHANGED}")


def older_copy_error(node_id: str) -> RequestError:
    return RequestError(
        "older_copy",
        f"The data directory of node {node_id!r} is an older copy: the cluster has what a later "
        "start of this node sent. It takes no writes, because it may have lost what it had "
        f"acknowledged. {COPY_REMEDY.capitalize()}; use another node meanwhile.{NOTHING_CHANGED}",
    )


class Peers(Protocol):
    """What the replica asks of the network (transport.py)."""

    def send(self, rpc: Rpc) -> None:
        """Have it go out with the next ``flush``."""
        ...

    def flush(self) -> None: ...

    async def call(self, peer: str, name: str, argument: Any, *, seconds: float) -> Any:
        """Raises PeerUnreachableError, PeerRefusedError."""
        ...

    def is_connected(self, peer: str) -> bool: ...

    @property
    def had_twin(self) -> bool:
        """Whether a peer has said that another process runs as this node."""
        ...


class Alone:
    """The network of a single node."""

    had_twin = False

    def send(self, rpc: Rpc) -> None:
        pass

    def flush(self) -> None:
        pass

    async def call(self, peer: str, name: str, argument: Any, *, seconds: float) -> Any:
        raise PeerUnreachableError("a single node has no peers", sent=False)

    def is_connected(self, peer: str) -> bool:
        return False


class ReplicaStatistics(NamedTuple):
    """Counters since the start, and where the log stands."""

    term: int
    leads: bool
    last_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    writes: int  # transactions, each with one fsync
    commands: int
    pending: int  # proposals that are not answered yet
    store_bytes: int
    elections: int  # changes of leader that this node saw
    snapshots_sent: int
    snapshots_received: int
    commit_seconds: float  # sum, from propose to applied
    commit_buckets: tuple[int, ...]  # one a bucket of COMMIT_BUCKETS_SECONDS, and one above
    store_writes: Durations  # of the transactions, fsync included


class MemberProgress(NamedTuple):
    """What the leader knows of a member's log."""

    match_index: int
    reachable: bool


@dataclass(slots=True)
class _Batch:
    """What goes into one entry."""

    offers: list[Offer]
    commands: list[Command]
    ordinals: list[int]  # of the first command of each offer
    time_ms: int
    term: int = 0  # once it is appended


class _Question:
    """Something that the core was asked, until it says."""

    __slots__ = ("answered", "index", "refusal")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.index = 0
        self.refusal: Refusal | None = None

    def answer(self, index: int) -> None:
        self.index = index
        self.answered.set()

    def refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.answered.set()


class _SharedRead:
    """One question for the safe index, of all reads that wait."""

    __slots__ = ("answered", "failure", "index")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.index = 0
        self.failure: ReplBrokerError | None = None


class Seen(NamedTuple):
    """What a change of is news to who waits for a leader."""

    role: Role
    term: int
    leader: str | None
    has_committed: bool


class Replica:
    """This node's copy of the log and the state that follows from it.

    ``now_ms`` gives milliseconds since 1970 for new entries. ``on_applied`` is
    called for each entry, in order and synchronously with the change of
    ``state``; ``on_restored`` after a snapshot from the leader took its place;
    ``on_members`` with the members that there are from now on, and with those
    that are about to go. ``in_thread`` runs a blocking call, ``writer`` what the disk
    is asked for in its turn; tests may run both in place. ``level_max`` is the feature
    level that it tells peers (levels.py).
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        now_ms: Callable[[], int],
        on_applied: Callable[[Applied], None] = lambda applied: None,
        on_restored: Callable[[], None] = lambda: None,
        on_members: Callable[[Membership], None] = lambda members: None,
        snapshot_entries: int = 10_000,
        core_options: CoreOptions | None = None,
        in_thread: InThread = trio.to_thread.run_sync,
        writer: Writer | None = None,
        randomness: random.Random | None = None,
        level_max: int = NEWEST,
    ) -> None:
        self.state = BrokerState()
        self.peers: Peers = Alone()
        self.handlers: dict[str, Callable[[str, Any], Awaitable[Any]]] = {
            "propose": self._on_propose,
            "read": self._on_read,
            "progress": self._on_progress,
            "loss": self._on_loss,
            "snapshot-begin": self._on_snapshot_begin,
            "snapshot-renew": self._on_snapshot_renew,
            "snapshot-state": self._on_snapshot_state,
            "snapshot-entries": self._on_snapshot_entries,
            "snapshot-end": self._on_snapshot_end,
        }
        self.removed = trio.Event()  # this node is no member any more
        self.disowned: str | None = None  # why nothing is written here: another cluster has it
        self._founded_ms: int | None = None  # when it founded its cluster, with an empty store
        # By room.py: why the leader takes no publishes among these of a peer; what to
        # tell a client when the leader said that; whether no entries are taken from it.
        self.admits: Callable[[Sequence[Command]], str | None] = lambda commands: None
        self.on_full: Callable[[str], RequestError] = _storage_full
        # Why what is committed does not come to this node, which follows; None if it does.
        self.why_behind: Callable[[], RequestError | None] = lambda: None
        self.parting = trio.Event()  # its last requests are answered now
        self._left_out = 0  # the last entry that it did not take from this leader, for lack of room
        self.holds_back = False
        self.has_reserve = True  # for what makes room, all the same
        self.tail_bytes = 0  # of all else, let through since it holds back
        self.tail_bytes_max = 0
        self.snapshot_bytes_max = math.inf  # of one that comes, and takes the place of all
        # By clocks.py: the time of day, None while none is certain; whether to wait for it.
        self.certain_ms: Callable[[], int | None] = now_ms
        self.holds_entries = False
        self.level_max: Final = level_max  # the highest feature level that this version has
        self.options = core_options or CoreOptions()
        self._patience = PATIENCE_ELECTIONS * self.options.election_timeout_seconds
        self._random = randomness or random.Random()  # noqa: S311  # nosec B311  # of timeouts
        self._settings = settings
        self._now_ms = now_ms
        self._on_applied = on_applied
        self._on_restored = on_restored
        self._on_members = on_members
        self._in_thread = in_thread
        self._disk = Disk(
            storage,
            writer or ThreadWriter(),
            in_thread,
            on_durable=self._wrote,
            on_idle=self.turn,
            on_failed=self._fail,
        )
        self._chronicle = Chronicle()
        self._history = History(self._disk, lambda: self.state)
        self.turnstile: Final = Turnstile()  # for all long work of requests and streams
        self._core = Core(self.node_id, self.options, self._random, 0.0)  # until the store is read
        self._loaded = False
        self._nursery: trio.Nursery | None = None
        self._events: list[Event] = []  # for the core's next step
        self._turning = False
        self._pace = Pace()
        self._deadline = 0.0  # when the next turn is due at the latest
        self._alarm = trio.CancelScope()  # of the driving task's wait for that
        self._awake = trio.Event()
        self._rounds = trio.lowlevel.ParkingLot()  # woken by each round of the driving task
        self._failure: Exception | None = None  # of a turn, or of the disk
        self._loss: Loss | None = None  # … that is the failure
        self.seen = Seen(Role.FOLLOWER, 0, None, has_committed=False)
        self._news = trio.lowlevel.ParkingLot()  # woken when that changes
        self._members: Membership | None = None  # as ``on_members`` was told
        self._configured = trio.Event()  # has led, with the settings that it was given, once
        self._caught_up = False
        self._heard_commit = 0  # the highest that a leader told of
        self._committed: deque[Entry] = deque()  # to be applied
        self._progressed = trio.lowlevel.ParkingLot()  # woken when something was applied
        self._token = 0
        self._asked: dict[int, _Batch | _Question] = {}  # by token: given to the core
        self._is_copy = False  # … that has been overtaken, as was logged
        self._own: dict[int, _Batch] = {}  # by index: appended here, not applied yet
        self._barriers: set[trio.CancelScope] = set()  # of the reads that wait
        self._next_read: _SharedRead | None = None  # to be asked when the one before is answered
        self._reading = trio.Lock()
        self._proposals = Proposals()
        self._run = 0  # which of this node's starts this is, and chance; set with the store
        self._forwards = 0
        self._together = 0  # how many offers went together the last time
        self._full_at = -1  # the commit index when there was no room for a proposal
        self._leader_calls: dict[trio.CancelScope, int] = {}  # under way, and in which term
        self._stamped_ms = 0  # the newest entry's time …
        self._stamped_at = 0.0  # … and when it got it, by the steady clock
        self._has_stamped = False  # this node has, since it was started
        self._is_ahead = False  # the log's time, of this node's clock, as was logged
        self._receiver = SnapshotReceiver(self._disk, in_thread)
        self._snapshots_received = 0
        self._taker = Taker(lambda: self.state, self._mark, in_thread)
        self._upkeep = Upkeep(
            self._disk,
            state=lambda: self.state,
            taker=self._taker,
            snapshot_entries=snapshot_entries,
        )
        self._sender = SnapshotSender(
            core=lambda: self._core,
            call=self._call_for_snapshot,
            post=self._post,
            news=self._news_within,
            mark=self._mark,
            disk=self._disk,
            taker=self._taker,
            upkeep=self._upkeep,
            in_thread=in_thread,
        )
        self._log_bytes = 0  # applied since entries were last let go from memory
        self._closing = False
        self._elections = 0
        self._handed_over_in = 0  # the term that a leader had another begin, for the log

    # --- who and what ---

    @property
    def node_id(self) -> str:
        return self._disk.identity.node_id

    @property
    def cluster_id(self) -> str:
        return self._disk.identity.cluster_id

    @property
    def epoch(self) -> str:
        return self._disk.identity.epoch

    @property
    def incarnation(self) -> str:
        return self._disk.identity.incarnation

    @property
    def adopted(self) -> bool:
        """Whether a cluster took this node in."""
        return self._disk.identity.adopted

    @property
    def is_empty(self) -> bool:
        """Whether the log is, and was never more."""
        core = self._core
        return core.log.last_index == 0 and core.term == 0

    @property
    def role(self) -> Role:
        return self._core.role

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def leader(self) -> str | None:
        """The node that leads, as far as this one knows."""
        return self._core.leader

    @property
    def leads(self) -> bool:
        return self._core.role is Role.LEADER

    @property
    def membership(self) -> Membership:
        """The newest in the log; a change of it may not be committed yet."""
        return self._core.membership

    @property
    def committed_membership(self) -> Membership:
        return self._core.committed_membership

    @property
    def change_pending(self) -> bool:
        """Whether ``membership`` is not known to be committed: it may be dropped again."""
        return self.membership != self.committed_membership

    def pending_change(self, answering: Container[str]) -> PendingChange | None:
        """What ``change_pending`` is about; ``answering`` has the members that can be reached."""
        return pending(self.committed_membership, self.membership, answering)

    @property
    def commit_index(self) -> int:
        return self._core.committed_index

    @property
    def patience(self) -> float:
        """For so many seconds a request waits for a leader."""
        return self._patience

    @property
    def newest_commit(self) -> int:
        """The highest commit index that this node has heard of, its own included."""
        return max(self._core.committed_index, self._heard_commit)

    @property
    def lacks_room(self) -> bool:
        """Whether it has not taken what is committed by now, because there is no room."""
        lacking = min(self._left_out, self.newest_commit)
        return self.holds_back and self.state.applied_index < lacking

    @property
    def unanswering(self) -> tuple[str, ...]:
        """The voters that did not answer when this node ceased to lead for lack of a majority."""
        return self._core.unanswering

    @property
    def caught_up(self) -> bool:
        """Whether all that was committed when the leader was found is applied."""
        return self._caught_up

    @property
    def log_readers(self) -> trio.CapacityLimiter:
        return self._history.readers

    @property
    def ready(self) -> bool:
        """Whether a leader is known, and all that was committed when it was found is applied."""
        is_sound = self.disowned is None and not self._is_copy
        return self._caught_up and self._core.leader is not None and is_sound

    def disown(self, reason: str) -> None:
        """Take no writes any more, now and after any start: this should be no cluster."""
        self.disowned = reason
        self._disk.note(DISOWNED, reason)

    def has_taken_since(self, index: int) -> bool:
        """Whether anything that clients asked for stands behind ``index`` in the log, or is on
        its way there; also where that cannot be told any more."""
        log, own = self._core.log, (*LEADERS_OWN, KeepTopics)
        if index < log.compacted_index or any(
            not all(isinstance(each, own) for each in proposal.commands)
            for proposal in self._proposals.unsettled
        ):
            return True
        return any(
            entry.kind is EntryKind.DATA
            and not all(isinstance(each, own) for each in decode_entry(entry.data)[1])
            for entry in log.slice(index + 1, log.last_index)
        )

    @property
    def has_founded(self) -> bool:
        """Whether it is noted when this node founded its cluster, or first served as one that
        was rebuilt."""
        return self._founded_ms is not None

    def founds(self) -> None:
        """Note that this node founds its cluster now."""
        self._founded_ms = self._now_ms()
        self._disk.note(FOUNDED, self._founded_ms)

    @property
    def founded_seconds_ago(self) -> float:
        """For how long there has been the cluster that this node founded; for ever, if that
        cannot be told."""
        if self._founded_ms is None or (past := self._now_ms() - self._founded_ms) < 0:
            return math.inf
        return past / 1000

    def statistics(self) -> ReplicaStatistics:
        core, proposals = self._core, self._proposals
        return ReplicaStatistics(
            core.term,
            self.leads,
            core.log.last_index,
            core.committed_index,
            self.state.applied_index,
            self._upkeep.snapshot_index,
            self._disk.writes,
            proposals.commands,
            len(proposals.unsettled),
            self._upkeep.store_bytes,
            self._elections,
            self._sender.sent,
            self._snapshots_received,
            proposals.commit_seconds,
            tuple(proposals.commit_buckets),
            self._disk.write_seconds,
        )

    @property
    def store_bytes(self) -> int:
        """The size of the store on the disk, as it was measured last."""
        return self._upkeep.store_bytes

    @property
    def writing_seconds(self) -> float:
        """For how long the disk has been at its present job; 0 if it has none that should end."""
        return self._disk.busy_seconds

    async def prove_alive(self) -> None:
        """Return once the task that drives the core has come round; for ever never, if it hangs."""
        self._awake.set()
        await self._rounds.park()

    # --- what callers use ---

    async def propose(self, command: Command, watch: Watch | None = None) -> Outcome:
        """Put ``command`` into the log; its outcome once it is durable and applied here.

        Durable means: on the disks of a majority. Raises ``shutting_down``,
        ``no_leader``, ``overloaded`` or ``storage_full`` when it was not taken,
        OutcomeUnknownError when that is not known. Cancelling stops the wait, not
        the command. ``watch`` is told how far it has come.
        """
        proposals = self._proposals
        if self._closing:
            raise _shutting_down()
        if self.disowned is not None:
            raise disowned_error(self.disowned)
        if self._is_copy:
            raise older_copy_error(self.node_id)
        if not self.leads and (why := self.why_behind()) is not None:
            raise why  # its outcome would not come here
        proposal = Proposal(command, watch, self._patience)
        before = proposals.bytes_before(proposal)
        if before > PENDING_BYTES_MAX and isinstance(command, Publish | CreateTopic):
            raise RequestError(
                "overloaded",
                f"{before} bytes wait to be written, and no more are taken beyond "
                f"{PENDING_BYTES_MAX}. Nothing was done; try again later.",
            )
        proposals.add(proposal)
        if self.leads and self._disk.is_quick:
            # The write is done in place: others that are about to propose go with it.
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._offered_more()
        if proposal.settled.is_set():
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await proposal.settled.wait()
        if proposal.failure is not None:
            raise proposal.failure
        assert proposal.outcome is not None
        return proposal.outcome

    async def _lose_patience(self) -> None:
        """Give up what has waited for long, unless there is hope: a leader, or soon one.

        A proposal that comes later than this looks is not due before ``patience`` is over.
        """
        proposals, patience = self._proposals, self._patience
        while True:
            now = trio.current_time()
            nearest = now + patience
            for proposal in [*proposals.unsettled]:
                if proposal.due <= now:
                    proposal.due = now + patience
                    waited = now - proposal.started
                    if (why := self.why_behind()) is not None:
                        proposals.give_up(proposal, why)
                    elif self._core.leader is None:
                        proposals.give_up(proposal, self._no_leader())
                    elif waited >= max(WAIT_SECONDS_MAX, patience):
                        proposals.give_up(proposal, self._no_leader(), TOO_LONG)
                nearest = min(nearest, proposal.due)
            await trio.sleep_until(max(nearest, now + LOOK_SECONDS_MIN))

    def _no_leader(self) -> RequestError:
        if self._core.leader is None:
            return RequestError(
                "no_leader",
                "The node knows no leader: a majority of the cluster's voters must run and "
                f"reach each other.{NOTHING_CHANGED}",
            )
        return RequestError(
            "no_leader", f"The leader takes no writes at the moment.{NOTHING_CHANGED}"
        )

    async def read_barrier(self) -> None:
        """After it, ``state`` holds all that was acknowledged anywhere before the call (§6.4).

        Raises ``no_leader``, ``shutting_down``, and as ``why_behind`` says.
        """
        if self._is_alone and self._caught_up:
            await trio.lowlevel.checkpoint()
            return
        if self.parting.is_set():
            await trio.lowlevel.checkpoint()  # whoever asks again and again takes turns
            raise _shutting_down()
        with trio.move_on_after(self.patience) as scope:
            self._barriers.add(scope)
            try:
                while True:
                    seen = self.seen
                    try:
                        await self._wait_readable(await self._safe_index())
                    except (NotLeaderError, PeerRefusedError, PeerUnreachableError):
                        await self.pause(seen)
                    else:
                        return
            finally:
                self._barriers.discard(scope)
        raise _shutting_down() if self.parting.is_set() else self._not_readable()

    async def _wait_readable(self, index: int) -> None:
        """As ``wait_applied``, unless that does not come; most often it comes in a moment."""
        while self.state.applied_index < index:
            with trio.move_on_after(self.options.heartbeat_interval_seconds):
                await self.wait_applied(index)
                return
            if not self.leads and (why := self.why_behind()) is not None:
                raise why

    def _not_readable(self) -> RequestError:
        if self._core.leader is None:
            return self._no_leader()
        if not self.leads and (why := self.why_behind()) is not None:
            return why
        return RequestError(
            "no_leader",
            "The leader did not say in time up to where is to be read, or this node did not come "
            "that far; try again, or ask another node.",
        )

    async def _safe_index(self) -> int:
        """Up to where a read that begins now must have applied.

        All reads that wait share one question: whoever comes after it was asked
        waits for the next (dissertation §6.4).
        """
        if self._nursery is None:
            raise NotLeaderError  # it has ended; requests are answered for a moment more
        shared = self._next_read
        if shared is None:
            shared = self._next_read = _SharedRead()
            self._start(self._ask_for_all, shared)
        await shared.answered.wait()
        if shared.failure is not None:
            raise shared.failure
        return shared.index

    async def _ask_for_all(self, shared: _SharedRead) -> None:
        async with self._reading:
            self._next_read = None
            try:
                shared.index = await self._ask_safe_index()
            except (NotLeaderError, PeerRefusedError, PeerUnreachableError) as error:
                shared.failure = error
            shared.answered.set()

    async def _ask_safe_index(self) -> int:
        if self.leads:
            return await self._ask(Read)
        return _said(await self.call_leader("read", self._core.term), int)

    async def call_leader(self, name: str, argument: Any, *, seconds: float | None = None) -> Any:
        """Ask the leader, and wait for its answer as long as no other leads.

        Raises NotLeaderError if none is known, PeerUnreachableError, PeerRefusedError.
        """
        leader, term = self._core.leader, self._core.term
        if leader in (None, self.node_id):
            raise NotLeaderError
        assert leader is not None
        if not self.peers.is_connected(leader):
            raise PeerUnreachableError(f"there is no connection to {leader!r}", sent=False)
        patience = seconds or self.patience
        with trio.CancelScope() as scope:
            self._leader_calls[scope] = term
            try:
                return await self.peers.call(leader, name, argument, seconds=patience)
            finally:
                del self._leader_calls[scope]
        raise PeerUnreachableError(f"{leader!r} does not lead any more")

    async def pause(self, seen: Seen) -> None:
        """Until there is other news of the leader than ``seen``, or for about a heartbeat.

        ``seen`` is from before the leader was asked: its refusal may come later than
        the news of the next one, and nobody is woken by the same news twice.
        """
        with trio.move_on_after(self.options.heartbeat_interval_seconds):
            await self.news(seen)

    async def _news_within(self, seconds: float) -> None:
        """Until another leads, or another term has begun, at most for so long."""
        with trio.move_on_after(seconds):
            await self.news(self.seen)

    async def news(self, seen: Seen) -> None:
        """Until there is other news of the leader than ``seen``."""
        if seen == self.seen:
            await self._news.park()

    async def wait_applied(self, index: int) -> None:
        while self.state.applied_index < index:
            await self._progressed.park()

    async def fetch(self, locations: Sequence[Location]) -> list[Message]:
        """The messages at ``locations``, in that order, up to the first that is gone by now.

        Raises StorageError for one that should be there and is not.
        """
        return await self._history.fetch(locations)

    async def drain(self, seconds: float = math.inf) -> None:
        """Take no more proposals, and wait until those taken are answered.

        After ``seconds`` all that still waits, reads too, is told that the node stops.
        """
        self._closing = True
        with trio.move_on_after(seconds):
            while self._proposals.unsettled:
                await self._proposals.idle.park()
        self.parting.set()
        stopped = RequestError(
            "shutting_down", f"The node stops, and could not do it in time.{NOTHING_CHANGED}"
        )
        self._proposals.give_up_all(stopped, "the node stopped before it was known")
        for scope in self._barriers:
            scope.cancel()

    # --- what the cluster's managers use (members.py) ---

    async def add_learner(self, member: Member, level: int) -> int:
        """Append that a node joins; the index at which it is. ``level`` is the highest feature
        level that its version knows. Raises RequestError, and NotLeaderError.

        In front of it no command is in the log that it does not know; and the level rises by
        what all members know (members.py), of whom it is one from then on.
        """
        with trio.move_on_after(self.options.election_timeout_seconds):
            while self.leads:
                seen = self.seen
                if seen.has_committed:  # then this holds all that earlier leaders appended
                    await self.wait_applied(self._core.committed_index)
                if seen != self.seen or not seen.has_committed or self._proposals.has(RaiseLevel):
                    await self.pause(seen)
                elif level < self.state.level:
                    raise RequestError(
                        "member_unreachable",
                        f"The version of node {member.id!r} knows feature level {level} at most, "
                        f"and the cluster has {self.state.level}; install a newer one there."
                        f"{NOTHING_CHANGED}",
                    )
                else:  # with no pause in between
                    return await self.change_membership(AddLearner(member))
            raise NotLeaderError
        raise RequestError(
            "membership_change_in_progress",
            f"The cluster's feature level is about to rise; ask again when it has."
            f"{NOTHING_CHANGED}",
        )

    async def change_membership(self, change: MembershipChange, *, forced: bool = False) -> int:
        """Append a change as leader; the index at which it is. Raises RequestError, and
        NotLeaderError.

        Unless ``forced``, it is refused if those who vote then, and answer, are no majority.
        """
        ask = partial(ChangeMembership, forced=forced)
        refused = _refused(Refusal.NOT_READY)
        with trio.move_on_after(self.options.election_timeout_seconds):
            while True:
                seen = self.seen
                question = await self._question(ask, change)
                match question.refusal:
                    case None:
                        return question.index
                    case Refusal.NOT_READY:  # its first entry is about to be committed
                        await self.pause(seen)
                    case Refusal.NO_MAJORITY:  # perhaps who has just come back answers now
                        refused = self._no_majority(change)
                        await self.pause(seen)
                    case refusal:
                        raise _refused(refusal)
        raise refused

    def _no_majority(self, change: MembershipChange) -> RequestError:
        """Asked in the moment of the refusal: of the same voters and the same answers."""
        voters, answering = self._core.voters_after(change), self._core.answering
        away = ", ".join(sorted(voters - answering))
        return RequestError(
            "no_majority",
            f"Then {arithmetic(voters, answering)}: the change could not be committed, nor "
            f"anything after it, nor could it be taken back. Start {away} first, or remove it "
            f"first if it is gone for good; 'cluster remove --force' (?force=true) does it all the "
            f"same.{NOTHING_CHANGED}",
        )

    async def transfer(self, target: str) -> None:
        """Begin to hand leadership over to ``target``. Raises RequestError, NotLeaderError."""
        question = await self._question(Transfer, target)
        if question.refusal is not None:
            refused = _refused(question.refusal)
            detail = f"Leadership is not handed to {target!r}. {refused.detail}"
            raise RequestError(refused.code, detail)

    async def hand_over(self, avoid: Container[str] = ()) -> None:
        """If this node leads and another can, let it, within an election timeout.

        Nobody in ``avoid`` is chosen.
        """
        if self._best_successor(avoid) is None:
            return
        with trio.move_on_after(self.options.election_timeout_seconds):
            while (target := self._best_successor(avoid)) is not None:
                seen = self.seen
                with suppress(RequestError, NotLeaderError):
                    await self.transfer(target)
                await self.pause(seen)
                while self._core.transfer_target == target:
                    await self.pause(self.seen)
            while self._core.leader is None:
                await self._news.park()
            log.info("handed over leader=%s term=%d", self.leader, self.term)

    def step_aside(self) -> None:
        """If this node leads, let another lead that has not all of its log."""
        self._post(StepAside())

    def decline(self, *, declines: bool) -> None:
        """Leave it to others to stand for leader, as long as one of them can."""
        self._post(Decline(declines))

    async def allow(self, level: int) -> None:
        """Have a feature level in force, if no other node has to know what is of it."""
        if self._is_alone and self.state.level < level <= self.level_max:
            await self.propose(RaiseLevel(level))

    def _best_successor(self, avoid: Container[str] = ()) -> str | None:
        """The voter that answers and has most of the log; None if this node does not lead."""
        progress = self.progress()
        candidates = [
            (progress[peer].match_index, peer)
            for peer in self.membership.voters - {self.node_id}
            if peer in progress and progress[peer].reachable and peer not in avoid
        ]
        return max(candidates)[1] if candidates else None

    def progress(self) -> dict[str, MemberProgress]:
        """By member, what this node knows as leader; nothing if it does not lead."""
        since = trio.current_time() - self.options.election_timeout_seconds
        return {
            peer: MemberProgress(
                p.match,
                peer == self.node_id or (p.heard_at >= since and self.peers.is_connected(peer)),
            )
            for peer, p in self._core.progress.items()
        }

    @property
    def answering(self) -> set[str]:
        """As leader: the members that answer, and can be sent entries."""
        return self._core.answering

    def make_room(self) -> None:
        """Drop from the disk what is not retained, even if it is little: the store is full."""
        self._upkeep.urge()

    async def adopt(self, cluster_id: str, epoch: str, switch: Callable[[], None]) -> None:
        """Belong to that cluster from now on; only while the log is empty. ``switch`` is called
        in the moment from which on this node does, even if the caller has been cancelled."""
        await self._disk.adopt(cluster_id, epoch, switch)

    # --- what comes from peers ---

    def receive(self, rpc: Rpc) -> None:
        """Take an RPC of a peer; ``turn`` when there are no more for now."""
        if not self._loaded:
            return
        if isinstance(rpc, Append) and rpc.commit > self._heard_commit:
            self._heard_commit = rpc.commit
        if self.holds_back and isinstance(rpc, Append) and not self._has_room_for(rpc):
            self._left_out = max(self._left_out, rpc.prev_index + len(rpc.entries))
            return  # as if it were lost: there is no disk for it
        if isinstance(rpc, TimeoutNow):
            self._handed_over_in = rpc.term + 1
        elif isinstance(rpc, Vote) and rpc.transfer:
            self._handed_over_in = rpc.term
        self._events.append(Receive(rpc))

    def receive_part(self, peer: str) -> None:
        """More of an RPC has come from there, and not all of it; ``turn`` as after ``receive``."""
        if self._loaded:
            self._events.append(PartReceived(peer))

    def _has_room_for(self, append: Append) -> bool:
        """Though the disk is nearly full: what makes room may take the reserve.

        So may some of all else. What was under way when the leader heard of it is in the log
        in front of what makes room, which could not be committed without it.
        """
        entries = self._new_among(append)
        if not entries or (self.has_reserve and all(map(_makes_room, entries))):
            return True
        size = self.tail_bytes + sum(len(entry.data) + ENTRY_BYTES for entry in entries)
        if size > self.tail_bytes_max:
            return False
        self.tail_bytes = size
        return True

    def _new_among(self, append: Append) -> Sequence[Entry]:
        """What may have to be written of it: not what is here, nor what does not follow on."""
        if self._events:  # which may change the log first
            return append.entries
        term = self._core.log.term
        if term(append.prev_index) != append.prev_term:
            return ()
        return [entry for entry in append.entries if term(entry.index) != entry.term]

    def lost(self, peer: str) -> None:
        """The connection to ``peer`` broke."""
        self._post(Unreachable(peer))

    async def answer(self, peer: str, name: str, argument: Any) -> Any:
        """A peer asks. Raises ReplBrokerError to refuse, ValueError for nonsense."""
        handler = self.handlers.get(name)
        if handler is None:
            raise NoSuchRequestError(f"{UNKNOWN_REQUEST} {name[:64]!r}")
        return await handler(peer, argument)

    async def _on_propose(self, peer: str, argument: Any) -> tuple[int, int, int]:
        """Append a peer's commands; where they are. Never sent on (RAFT.md scenario 47)."""
        term, encoded = msgspec.convert(argument, tuple[int, tuple[bytes, ...]])
        self._require_leader(term)
        if self.disowned is not None:  # the other has yet to hear of it
            raise NotLeaderError
        commands = [decode_command(each) for each in encoded]
        self._check_sent_on(peer, commands)
        if (why := self.admits(commands)) is not None:
            raise StoreFullError(f"{FULL}{why}")
        offer = Forwarded(peer, commands, encoded)
        self._proposals.add(offer)
        self._offered_more()
        await offer.decided.wait()
        if offer.place is None:
            raise NotLeaderError
        return offer.place

    def _check_sent_on(self, peer: str, commands: Sequence[Command]) -> None:
        """That a peer may have them appended: its own numbers, nothing that a leader decides."""
        member = self._core.membership.find(peer)
        for command in commands:
            if isinstance(command, LEADERS_OWN):
                raise NotLeadersError(f"{type(command).__name__} is for the leader to propose")
            if isinstance(command, Numbered) and (
                member is None or member.incarnation not in ("", command.sender)
            ):
                raise NotLeadersError(f"the numbers are not those of the member {peer!r}")

    async def _on_read(self, peer: str, argument: Any) -> int:
        self._require_leader(msgspec.convert(argument, int))
        return await self._ask(Read)

    async def _on_progress(self, peer: str, argument: Any) -> dict[str, MemberProgress]:
        self._require_leader(self._core.term)
        return self.progress()

    def _require_leader(self, term: int) -> None:
        # Of another term it may have been meant for another leader.
        if not self.leads or self._core.term != term or self._closing:
            raise NotLeaderError

    async def _on_loss(self, peer: str, argument: Any) -> None:
        """Its last words."""
        acknowledged, last_index = msgspec.convert(argument, tuple[int, int])
        log.error(
            "a node has lost what it had acknowledged, and ends; look at its disk, then run "
            "'repl-broker cluster rejoin' there node=%s acknowledged=%d last_index=%d",
            peer,
            acknowledged,
            last_index,
        )

    async def _on_snapshot_begin(self, peer: str, argument: Any) -> None:
        if self.holds_back:
            self._receiver.forget()  # what another left staged may be what takes the room
        if self.snapshot_bytes_max <= 0:
            raise StoreFullError("the disk has no room for a snapshot")
        await self._receiver.begin(peer, argument, self._core.term, self.snapshot_bytes_max)

    async def _on_snapshot_renew(self, peer: str, argument: Any) -> None:
        await self._receiver.renew(peer, argument)

    async def _on_snapshot_state(self, peer: str, argument: Any) -> None:
        await self._receiver.state(peer, argument)

    async def _on_snapshot_entries(self, peer: str, argument: Any) -> None:
        await self._receiver.entries(peer, argument)

    async def _on_snapshot_end(self, peer: str, argument: Any) -> None:
        term, mark = await self._receiver.end(peer, argument)
        self._post(
            Receive(SnapshotReceived(sender=peer, receiver=self.node_id, term=term, mark=mark))
        )

    # --- the task ---

    async def load(self, *, joins: bool = False) -> None:
        """Read the store; ``run`` does it if nobody has. Raises StorageError.

        A node that ``joins`` a cluster is not its own first member.
        """
        disk = self._disk
        if lost := await disk.load(lambda storage: storage.note(LOST)):
            raise self._lost(Loss(*lost))
        self.disowned = await disk.load(lambda storage: storage.note(DISOWNED))
        self._founded_ms = await disk.load(lambda storage: storage.note(FOUNDED))
        runs = (await disk.load(lambda storage: storage.note(RUNS)) or 0) + 1
        # An older copy of the data directory counts as the one did that went on: what that
        # one sent is not taken for its own.
        self._run = (runs << RUN_BITS) | self._random.getrandbits(RUN_BITS)
        loaded, self.state = await disk.load(load_sound)
        await disk.noted(RUNS, runs)
        mark = SnapshotMark(0, 0, Membership() if joins or self.adopted else self._alone())
        if loaded.snapshot is not None:
            snapshot = loaded.snapshot
            mark = SnapshotMark(snapshot.index, snapshot.term, _membership(snapshot.membership))
        disk.loaded(mark.index + len(loaded.entries))
        self._upkeep.loaded(mark.index, sum(len(entry.data) for entry in loaded.entries))
        self._note_time(self.state.time_ms)
        try:
            self._core = Core(
                self.node_id,
                self.options,
                self._random,
                trio.current_time(),
                hard_state=loaded.hard_state,
                mark=mark,
                entries=loaded.entries,
            )
        except ValueError as error:
            raise StorageError(
                f"the log's members cannot be read ({error}); restore the store from a backup"
            ) from None
        self._loaded = True
        self._chronicle.begin(self._core.log.last_index, mark.membership, self.state.settings)
        self._notice_removal(mark.membership)

    def _alone(self) -> Membership:
        """Of a single node: it is the one voter."""
        return Membership((Member(self.node_id, "", "", voter=True),))

    @property
    def _is_alone(self) -> bool:
        return self._core.membership.ids == {self.node_id} and self.leads

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover, then write and apply until cancelled. Raises StorageError if the disk fails.

        The last write may still be under way when this ends: ``close`` waits for it.

        Started once requests may come: a node that is its cluster's only voter
        has then applied all that was there before.
        """
        if not self._loaded:
            await self.load()
        self._receiver.forget()  # what a crash kept from being installed
        await self._upkeep.sweep()
        log.info(
            "recovered term=%d snapshot_index=%d last_index=%d",
            self._core.term,
            self._upkeep.snapshot_index,
            self._core.log.last_index,
        )
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._upkeep.run)
                nursery.start_soon(self._upkeep.tidy)
                nursery.start_soon(self._expire)
                nursery.start_soon(self._history.end_if_damaged)
                nursery.start_soon(self._configure)
                nursery.start_soon(self._catch_up)
                nursery.start_soon(self._drive)
                nursery.start_soon(self._lose_patience)
                if self.membership.voters == {self.node_id}:
                    await self._configured.wait()
                task_status.started()
        finally:
            self._closing = True
            self._nursery = None
            self._disk.end()
            self._proposals.give_up_all(_shutting_down())

    async def close(self) -> None:
        """Wait for the last write, however ``run`` ended or if it never ran; the store can be
        closed then."""
        await self._disk.close()

    async def _drive(self) -> None:
        """Have the core take its turns in time, and end the node if one fails."""
        while True:
            self._awake = trio.Event()
            self._rounds.unpark_all()
            self.turn()
            if self._failure is not None:
                if self._loss is not None:
                    await self._note_loss(self._loss)
                raise self._failure
            with trio.CancelScope(deadline=self._deadline) as self._alarm:
                await self._awake.wait()  # which lets others run, even if there is more to do

    async def _note_loss(self, loss: Loss) -> None:
        """On this disk, such as it is, and in the leader's log."""
        said = msgspec.structs.astuple(loss)
        with suppress(StorageError):
            await self._disk.noted(LOST, said)
        with trio.move_on_after(PARTING_SECONDS), suppress(NotLeaderError, PeerRefusedError):
            while True:  # it may have started just now, and have no connection of its own yet
                with suppress(PeerUnreachableError):
                    await self.call_leader("loss", said, seconds=PARTING_SECONDS)
                    return
                await trio.sleep(self.options.heartbeat_interval_seconds)

    def _lost(self, loss: Loss) -> StorageError:
        ends = (
            f"the store of node {self.node_id!r} lost what it had acknowledged: up to entry "
            f"{loss.acknowledged} at least, and its log ended at {loss.last_index}. "
        )
        if self.peers.had_twin:
            return StorageError(
                f"{ends}Another process runs as this node, with a copy of the same data "
                "directory: that one acknowledged it. Leave that one as it is; let this one join "
                "with an id of its own and an empty data directory"
            )
        return StorageError(
            f"{ends}If another process runs as node {self.node_id!r}, with a copy of its data, it "
            "is that one's: leave it as it is. If not, look whether "
            "the disk keeps what is synced; then run 'repl-broker cluster rejoin' here, or "
            f"'repl-broker cluster remove {self.node_id}' on another node, and let this one join "
            "with an empty data directory"
        )

    def turn(self) -> None:
        """Own the core: give it what has happened, carry out what it asks for.

        Called by whoever brings news, so that no commit waits for a task to be
        scheduled. What is left to do, the driving task goes on with.
        """
        if self._turning or self._nursery is None or self._failure is not None:
            return
        self._turning = True
        apart(self._take_turns)  # what happens now is no matter of the request that woke us

    def _take_turns(self) -> None:
        try:
            for _ in range(TURNS_MAX):  # more than one: for what was written in place
                deadline = self._step()
                if not self._events:  # else acknowledge what was written, and apply then
                    self._apply_committed()
                if not self._events or self._failure is not None:
                    break
        except Exception as error:  # noqa: BLE001  the driving task raises it
            self._failure = error
            self._awake.set()
        else:
            # In this order: a wait that ends in between is over by what is asked last.
            if self._proposals.is_waiting and self._gathers():
                deadline = min(deadline, self._gathered_at())
            if trio.current_time() < self._pace.next_at:
                deadline = min(deadline, self._pace.next_at)
            more = self._events or self._committed or self._may_send_off()
            if more:
                self._awake.set()
            self._deadline = deadline
            # To be woken too early does no harm, but costs as much as a publish: an alarm
            # that is far away is left alone, and one that is near is moved.
            alarm = self._alarm.deadline
            if deadline < alarm or alarm < trio.current_time() + ALARM_NEAR_SECONDS:
                self._alarm.deadline = deadline
        finally:
            self._turning = False

    def _step(self) -> float:
        self._send_off()
        events, self._events = self._events, []
        effects = self._core.step(trio.current_time(), events)
        self._carry_out(effects)
        self._notice_changes()
        return effects.deadline

    def _post(self, event: Event) -> None:
        self._events.append(event)
        if not self._turning:
            self._awake.set()

    def _carry_out(self, effects: Effects) -> None:
        if effects.loss is not None:  # nothing that it says is worth anything
            self._loss = effects.loss
            self._fail(self._lost(effects.loss))
            return
        for rpc in effects.send:
            self.peers.send(rpc)
        if effects.send:
            self.peers.flush()
        if effects.persist is not None:
            self._disk.append(effects.persist_number, effects.persist)
        if effects.restore is not None:
            self._install(effects.restore)
        elif self._receiver.complete is not None:
            self._receiver.forget()  # the core has no use for it
        for token, index, term in effects.taken:
            self._taken(self._asked.pop(token), index, term)
        for token, refusal in effects.refused:
            asked = self._asked.pop(token)
            if isinstance(asked, _Question):
                asked.refuse(refusal)
            else:
                self._proposals.put_back(asked.offers)
                if refusal is Refusal.BUSY and self._core.transfer_target is None:
                    self._full_at = self._core.committed_index  # asking again before is vain
        for token, index in effects.readable:
            question = self._asked.pop(token)
            assert isinstance(question, _Question)
            question.answer(index)
        for peer in effects.snapshots:
            self._start(self._sender.send, peer)
        self._committed.extend(effects.committed)

    def _start(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, *arguments)

    def _taken(self, asked: _Batch | _Question, index: int, term: int) -> None:
        if isinstance(asked, _Question):
            asked.answer(index)
        else:
            asked.term = term
            self._own[index] = asked
            if asked.offers[0].size > LARGE_BYTES:
                self._pace.began(index, term, trio.current_time())
            placed = zip(asked.offers, asked.ordinals, strict=True)
            self._proposals.place(placed, index, term)

    def _notice_changes(self) -> None:
        core = self._core
        if core.membership is not self._members:
            self._members = core.membership
            self._on_members(core.membership)
        before = self.seen
        if (
            core.role is before.role
            and core.term == before.term
            and core.leader == before.leader
            and (before.has_committed or not core.has_committed_in_term)  # which stays so in a term
        ):
            return
        seen = Seen(core.role, core.term, core.leader, core.has_committed_in_term)
        self.seen = seen
        self._news.unpark_all()
        if core.role is not Role.LEADER:
            self._proposals.lose_leadership()
        if seen.leader != before.leader or seen.term != before.term:
            self._caught_up = False
            self._left_out = 0  # by the next they may be others
            self._receiver.forget()  # the next leader begins its own
            if seen.leader is not None:
                self._elections += 1
                self._end_calls(seen.term)
            self._tell_leader(before, seen)

    def _tell_leader(self, before: Seen, seen: Seen) -> None:
        if seen.role is Role.LEADER:
            voters = "+".join(sorted(self.membership.voters))
            log.info("leads term=%d voters=%s was=%s", seen.term, voters, before.leader or "none")
        elif seen.leader is not None:
            was = before.leader or "none"
            log.info("follows leader=%s term=%d was=%s", seen.leader, seen.term, was)
        elif before.leader is not None and before.term < seen.term == self._handed_over_in:
            log.info("the leader hands over leader=%s term=%d", before.leader, before.term)
        elif before.role is Role.LEADER:
            reason, remedy = self._why_stepped_down(before, seen)
            text = "does not lead any more term=%d reason=%r remedy=%r"
            log.warning(text, before.term, reason, remedy)
        elif before.leader is not None:
            reason = f"it has sent nothing for {self.options.election_timeout_seconds:g} s or more"
            if seen.term > before.term:
                reason = f"term {seen.term} has begun"
            elif not self.peers.is_connected(before.leader):
                reason = "the connection to it is gone"
            log.warning(
                "lost its leader=%s term=%d reason=%r remedy=%r",
                before.leader,
                before.term,
                reason,
                "another is elected if a majority of the voters run; see the log of that node",
            )

    def _why_stepped_down(self, before: Seen, seen: Seen) -> tuple[str, str]:
        if seen.term > before.term:
            return f"term {seen.term} has begun", "none: another node is elected, or was"
        voters, silent = self.membership.voters, self._core.unanswering
        return (
            f"no majority answers: nothing was heard of {', '.join(silent)}, and "
            f"{len(voters) // 2 + 1} of {len(voters)} voters have to",
            "start them, or see that this node and they reach each other at [raft] advertise",
        )

    def _end_calls(self, term: int) -> None:
        """Another leads: an answer of the one before may be on its way, but not for long."""
        end = trio.current_time() + self.options.heartbeat_interval_seconds
        for scope, asked_in in self._leader_calls.items():
            if asked_in != term:
                scope.deadline = min(scope.deadline, end)

    # --- asking the core ---

    async def _ask(self, event: Callable[[int], Event]) -> int:
        """What the core says to a Read. Raises NotLeaderError."""
        token, question = self._new_question()
        self._events.append(event(token))
        self.turn()
        await question.answered.wait()
        if question.refusal is not None:
            raise NotLeaderError
        return question.index

    async def _question(self, event: Callable[[int, Any], Event], argument: Any) -> _Question:
        token, question = self._new_question()
        self._events.append(event(token, argument))
        self.turn()
        await question.answered.wait()
        if question.refusal is Refusal.NOT_LEADER:
            raise NotLeaderError
        return question

    def _new_question(self) -> tuple[int, _Question]:
        self._token += 1
        question = self._asked[self._token] = _Question()
        return self._token, question

    # --- proposals on their way ---

    def _may_send_off(self) -> bool:
        if not self._proposals.is_waiting or self._gathers():
            return False
        if self.leads:
            core = self._core
            if self.holds_entries or core.committed_index == self._full_at:
                return False
            if not core.takes_proposals or core.is_writing:
                return False
            return self._takes_large() or not self._proposals.has_only_large
        return self._core.leader is not None and self._forwards < FORWARDS_MAX

    def _takes_large(self) -> bool:
        """Whether what is larger than an entry of several may be appended now."""
        return self._pace.allows(self._core.term, trio.current_time())

    def _offered_more(self) -> None:
        """Send off what waits, if that may be now; else whoever ends the wait does."""
        if self._gathers():
            if self._gathered_at() < self._deadline:
                self._deadline = self._alarm.deadline = self._gathered_at()
        elif self._may_send_off():
            self.turn()

    def _gathers(self) -> bool:
        """Whether to wait a moment, so that more go together.

        Clients that publish one after the other and were answered together come
        again nearly together: an entry for the first of them alone costs as much
        as one for all.
        """
        few = self._proposals.waiting < self._together
        return few and trio.current_time() < self._gathered_at()

    def _gathered_at(self) -> float:
        return self._proposals.waiting_since + GATHER_SECONDS_MAX

    def _send_off(self) -> None:
        """Make an entry of what waits, when the writer is free; or let the leader do it."""
        if not self._may_send_off():
            return
        large = not self.leads or self._takes_large()
        offers = self._proposals.take(ENTRY_BYTES_MAX, large=large)
        if not self.leads:
            offers = self._proposals.keep_back(offers, LEADERS_OWN, self._no_leader())
        if not offers:
            return
        self._together = len(offers)
        if self.leads:
            self._offer(offers)
        else:
            self._forwards += 1
            self._start(self._forward, offers)

    def _offer(self, offers: list[Offer]) -> None:
        commands: list[Command] = []
        encoded: list[bytes] = []
        ordinals: list[int] = []
        for offer in offers:
            if isinstance(offer, Proposal) and offer.number is not None:
                numbered = self._numbers_of([offer])  # an earlier leader may have appended it
                commands.append(numbered)
                encoded.append(encode_command(numbered))
            ordinals.append(len(commands))
            commands += offer.commands
            encoded += offer.encoded
        batch = _Batch(offers, commands, ordinals, self._stamp_ms())
        self._token += 1
        self._asked[self._token] = batch
        self._events.append(Propose(self._token, encode_entry(batch.time_ms, encoded)))

    def _numbers_of(self, offers: Sequence[Offer]) -> Numbered:
        return Numbered(self.incarnation, self._run, *self._proposals.number(offers))

    async def _forward(self, offers: list[Offer]) -> None:
        """Have the leader append them; only a refusal means that it has not."""
        encoded = [data for offer in offers for data in offer.encoded]
        ordinals = range(len(offers))  # a proposal is one command
        if self.state.level >= NUMBERED:
            encoded.insert(0, encode_command(self._numbers_of(offers)))
            ordinals = range(1, len(offers) + 1)
        seen = self.seen
        try:
            found = await self.call_leader("propose", (self._core.term, encoded))
            index, term, first = _said(found, tuple[int, int, int])
        except (NotLeaderError, PeerRefusedError) as error:
            if str(error).startswith(FULL):
                self._refuse_publishes(offers, str(error).removeprefix(FULL))
            else:
                await self._put_back(offers, seen)
        except PeerUnreachableError as error:
            if error.sent:
                await self.pause(seen)
                self._proposals.lose(offers)
            else:
                await self._put_back(offers, seen)
        else:
            placed = [(o, first + ordinal) for o, ordinal in zip(offers, ordinals, strict=True)]
            self._proposals.place_late(placed, index, term, self.state.applied_index)
        finally:
            self._forwards -= 1
            self.turn()

    async def _put_back(self, offers: Sequence[Offer], seen: Seen) -> None:
        """They are in no log. The next leader may not be known yet."""
        self._proposals.recall(offers)
        await self.pause(seen)
        self._proposals.put_back(offers)

    def _refuse_publishes(self, offers: Sequence[Offer], why: str) -> None:
        """The leader has no room for them; what else was with them goes again by itself."""
        self._proposals.put_back(self._proposals.keep_back(offers, (Publish,), self.on_full(why)))

    # --- the disk ---

    def _wrote(self, number: int, size: int) -> None:
        self._upkeep.wrote(size)
        self._events.append(Persisted(number))

    def _fail(self, error: Exception) -> None:
        """Nothing may follow: the driving task raises it, and the node ends."""
        self._failure = self._failure or error
        self._awake.set()

    def _install(self, mark: SnapshotMark) -> None:
        """Put the received snapshot in the place of log and state."""
        found, state = self._receiver.take()
        assert found == mark, "only what the core asked for is installed"
        live = self._receiver.live
        self._disk.install(mark.index, partial(self._switch, state, mark, live))

    def _switch(self, state: BrokerState, mark: SnapshotMark, live: array[int] | None) -> None:
        """The store has it: so has everybody, from now on."""
        state.generation = self.state.generation + 1
        self.state = state
        self._note_time(state.time_ms)
        if (run := state.senders.run_of(self.incarnation)) > self._run:
            self._notice_copy(run)
        self._committed.clear()
        self._own.clear()
        self._upkeep.installed(mark.index, live)
        self._log_bytes = 0
        self._snapshots_received += 1
        self._proposals.skipped(mark.index, mark.term)
        self._on_restored()
        self._progressed.unpark_all()
        self._notice_removal(mark.membership)
        self._chronicle.members(mark.index, mark.membership)
        log.info("installed a snapshot index=%d term=%d", mark.index, mark.term)
        self._post(SnapshotInstalled(mark))

    # --- time ---

    def time_ms(self) -> int:
        """The time for an entry now: the clock's, but never running back.

        If the clock was ahead and was put right, time goes on at a steady pace
        from where it stood, so that history and keys keep ageing. So it does while
        no clock is known to be right.
        """
        steady_ms, certain_ms = self._steady_ms(), self.certain_ms()
        return steady_ms if certain_ms is None else max(certain_ms, steady_ms)

    def _steady_ms(self) -> int:
        """What the time should be, by what has passed since the newest entry."""
        return self._stamped_ms + int((trio.current_time() - self._stamped_at) * 1000)

    def _stamp_ms(self) -> int:
        """The time for the entry that is made now."""
        time_ms, before_ms = self.time_ms(), self._stamped_ms
        if before_ms and time_ms - before_ms > CLOCK_JUMP_MS:
            self._tell_jump(time_ms - self._steady_ms())
        self._note_time(time_ms)
        self._has_stamped = True
        return time_ms

    def _tell_jump(self, jump_ms: int) -> None:
        seconds = jump_ms // 1000
        if jump_ms > CLOCK_JUMP_MS:
            if self._has_stamped:
                log.warning("the clock has jumped ahead seconds=%d", seconds)
            else:
                log.info("the newest entry is old; history ages by the clock seconds=%d", seconds)

    def _note_time(self, time_ms: int) -> None:
        """An entry of that time is the newest."""
        self._stamped_ms, self._stamped_at = max(time_ms, self.state.time_ms), trio.current_time()
        ahead_ms = time_ms - self._now_ms()
        if (ahead_ms > CLOCK_JUMP_MS) is self._is_ahead:
            return
        self._is_ahead = not self._is_ahead
        if self._is_ahead:
            log.warning(
                "the log's time is ahead of this node's clock seconds=%d leader=%s remedy=%r",
                ahead_ms // 1000,
                self._core.leader,
                "let all nodes follow NTP; time goes on at a steady pace until clocks reach it",
            )
        else:
            log.info("the log's time is not ahead of this node's clock any more")

    # --- applying ---

    def _apply_committed(self) -> None:
        if self._committed:
            end = trio.current_time() + APPLY_SECONDS_MAX
            while self._committed:
                self._apply(self._committed.popleft())
                if trio.current_time() > end:
                    break
            self._progressed.unpark_all()
            self._upkeep.applied()
        if not self._caught_up and not self._committed:
            self._caught_up = self.leads and self._core.has_committed_in_term
        if self._log_bytes > RELEASE_BYTES:
            self._release_log()

    def _apply(self, entry: Entry) -> None:
        self._log_bytes += len(entry.data)
        if entry.index == self._pace.index:
            self._pace.ended(trio.current_time(), pauses=self._proposals.has_others)
        batch = self._own.pop(entry.index, None)
        time_ms: int = 0
        commands: Sequence[Command] = ()
        if batch is not None and batch.term == entry.term:
            time_ms, commands = batch.time_ms, batch.commands
            waiting = {offer.peer for offer in batch.offers if isinstance(offer, Forwarded)}
            self._events.extend(TellCommit(peer) for peer in sorted(waiting))
        elif entry.kind is EntryKind.DATA:
            time_ms, commands = _readable(entry)
            self._note_time(time_ms)
        elif entry.kind is EntryKind.MEMBERSHIP:
            committed = Membership.decode(entry.data)
            self._notice_removal(committed)
            self._chronicle.members(entry.index, committed)
        applied = self.state.apply(entry.index, time_ms, commands)
        if self.state.changes:
            self._chronicle.changes(entry.index, self.state.settings, self.state.changes)
        self._history.remember(entry.index, commands)
        self._on_applied(applied)
        for numbered, ordinal in applied.numbered:
            if numbered.sender != self.incarnation:
                continue
            if (newest := self.state.senders.run_of(self.incarnation)) > self._run:
                self._notice_copy(newest)
            if numbered.run == self._run:
                self._proposals.delivered(numbered, ordinal, applied.outcomes)
            else:
                self._notice_copy(numbered.run)
        if self.state.level < NUMBERED and not self.leads:
            self._proposals.keep(entry.index, entry.term, applied.outcomes)
        self._proposals.applied(entry.index, entry.term, applied.outcomes)

    def _notice_copy(self, run: int) -> None:
        """Of this node's own incarnation. A later start than this one, or another with its count,
        can only be that of a node with the same data."""
        if not self._is_copy and run >> RUN_BITS >= self._run >> RUN_BITS:
            self._is_copy = True
            log.error(
                "the data directory is an older copy: this node sent more than it knows of, and "
                "may have lost what it had acknowledged starts=%d starts_known=%d remedy=%r",
                run >> RUN_BITS,
                self._run >> RUN_BITS,
                COPY_REMEDY,
            )
            if run > self._run:
                self._refuse_sent()

    def _refuse_sent(self) -> None:
        """What this run has sent is carried out by nobody, as a later one is known."""
        for proposal in [*self._proposals.unsettled]:
            if proposal.number is not None:
                self._proposals.fail(proposal, older_copy_error(self.node_id))

    @property
    def is_older_copy(self) -> bool:
        """Whether the cluster's log has proved that this node's data was set back."""
        return self._is_copy

    def _notice_removal(self, committed: Membership) -> None:
        if self.incarnation in committed.removed:
            self.removed.set()

    def _release_log(self) -> None:
        """Let go from memory what followers will hardly ask for; the disk has it."""
        self._log_bytes = 0
        keep_after = self.state.applied_index
        if not self._is_alone:
            kept = self._core.log.index_before(self._sender.log_bytes_kept)
            keep_after = min(keep_after, kept)
        self._post(Compact(keep_after))

    def reconfigure(self, settings: Settings) -> None:
        """Have the cluster use other settings, as soon as this node leads."""
        self._settings = settings
        self._news.unpark_all()

    def level_raised(self) -> None:
        """The settings may be such now as older nodes did not know."""
        self._news.unpark_all()

    async def _configure(self) -> None:
        """As leader, have all nodes use what this node's file says."""
        while True:
            seen = self.seen
            if seen.role is Role.LEADER and seen.has_committed:
                await self.wait_applied(self._core.committed_index)
                is_new = self._core.log.last_index <= 1
                before = self.state.settings
                settings = self._settings.after(before)
                if not self._is_alone and self.state.level < PUBLISHERS:  # an older node may follow
                    shares = replace(settings.shares, of_publishers=False)
                    settings = replace(settings, shares=shares)
                if (is_new or before != settings) and not self._closing:
                    with suppress(RequestError):  # another leader's business, then
                        await self.propose(Configure(settings))
                self._configured.set()
                if seen != self.seen:
                    continue
            await self._news.park()

    async def _catch_up(self) -> None:
        """Find out whether all that was committed when the leader was found is here."""
        while not self.parting.is_set():
            if self._core.leader not in (None, self.node_id) and not self._caught_up:
                seen = self.seen
                with suppress(RequestError):
                    await self.read_barrier()
                    if seen == self.seen:
                        self._caught_up = True
                if seen != self.seen or not self._caught_up:
                    continue
            await self._news.park()

    # --- snapshots ---

    async def _call_for_snapshot(self, peer: str, name: str, argument: Any) -> Any:
        return await self.peers.call(peer, name, argument, seconds=PIECE_SECONDS_MAX)

    def _mark(self) -> Mark:
        index = self.state.applied_index
        term = self._core.log.term(index)
        assert term is not None, "the term of what was applied last is in memory"
        return Mark(index, term, self._core.membership_at(index).encode())

    async def _expire(self) -> None:
        while True:
            await trio.sleep(EXPIRY_INTERVAL_SECONDS)
            self._receiver.look()
            with suppress(RequestError):  # it may have waited into the shutdown
                for _ in range(EXPIRY_ENTRIES_MAX):
                    if not self.leads or self._closing or self.certain_ms() is None:
                        break
                    if not self.state.expiry_due(self.time_ms()):
                        break
                    await self.propose(Expire(EXPIRY_STEPS_MAX))


def _shutting_down() -> RequestError:
    return RequestError(
        "shutting_down", "The node is shutting down; use another, or try again later."
    )


class StoreFullError(ReplBrokerError):
    """The leader takes no publishes: its store is full, or too many others are."""


class NotLeadersError(ReplBrokerError):
    """A peer sends on what it may not have appended."""


class NoSuchRequestError(ReplBrokerError):
    """A peer asks for what this version does not know."""


_REFUSALS: Final[dict[Refusal, tuple[str, str]]] = {
    Refusal.BUSY: (
        "membership_change_in_progress",
        "Leadership is being handed over; ask again when that is done.",
    ),
    Refusal.CHANGE_IN_PROGRESS: (
        "membership_change_in_progress",
        "Another change of the members is not committed yet; ask again when it is.",
    ),
    Refusal.NOT_READY: ("no_leader", "The leader was just elected and takes no changes yet."),
    Refusal.NOT_A_MEMBER: ("member_not_found", "The cluster has no such member."),
    Refusal.ALREADY_A_MEMBER: ("member_exists", "The cluster has a member of this id already."),
    Refusal.LAST_VOTER: (
        "last_voter",
        "The last voter cannot be removed: nobody would have the data. Add another node first.",
    ),
    Refusal.NOT_ANSWERING: (
        "member_unreachable",
        "The voter does not answer the leader, or has to get a snapshot first: writes would wait "
        "for it in vain. Start it, or choose another one.",
    ),
    Refusal.NOT_A_VOTER: (
        "not_a_voter",
        "Only a voter of the cluster can lead; see its members with GET /v1/cluster.",
    ),
}


def _storage_full(why: str) -> RequestError:
    return RequestError("storage_full", why)


def _refused(refusal: Refusal) -> RequestError:
    return RequestError(*_REFUSALS[refusal])


def _said(found: Any, kind: type[T]) -> T:
    """A peer's answer, if it is of that kind; what it did is not known otherwise."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise PeerUnreachableError(f"it answered something else: {error}") from None


def _makes_room(entry: Entry) -> bool:
    """Whether it adds no messages: what gets a full cluster out of that is small."""
    if entry.kind is not EntryKind.DATA:
        return True
    try:
        commands = decode_entry(entry.data)[1]
    except ValueError:
        return False
    return not any(isinstance(command, Publish | CreateTopic) for command in commands)


def _readable(entry: Entry) -> tuple[int, list[Command]]:
    try:
        return decode_entry(entry.data)
    except ValueError as error:
        raise StorageError(
            f"entry {entry.index} of the log cannot be read: {error}; if a newer version wrote it, "
            "start that one"
        ) from None


def _membership(data: bytes) -> Membership:
    try:
        return Membership.decode(data)
    except ValueError as error:
        raise StorageError(
            f"the snapshot's members cannot be read ({error}); restore the store from a backup"
        ) from None
