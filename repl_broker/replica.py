"""The loop that drives the log: propose, make durable, apply, answer.

Callers know three things: ``propose`` a command and get its outcome, ``read``
what is applied, and that ``run`` is the task behind both. What is committed,
and when it may be answered, is Raft's to say (raft/core.py); here it is given
a disk, a clock and a state machine. With a single voter an entry is committed
once this node's disk has it.

    propose ── waiting proposals ─┐               ┌─▶ writer: one transaction, one fsync
                                  ├─▶ core.step ──┤
    Persisted, deadlines ─────────┘               └─▶ apply ─▶ outcomes, events to the hub

Everything that waits when the writer is free goes into the next entry, so the
batch grows with the load, and the cost of an fsync is shared. Nothing is
answered before the write that it rests on is reported durable.

What costs time on the disk happens beside that, in pieces: snapshots, removing
entries of which nothing is retained, checkpoints of the store.
"""

from __future__ import annotations

import logging
import random
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import trio

from repl_broker.command import Command, Configure, Expire, Publish, Settings
from repl_broker.errors import OutcomeUnknownError, RequestError, StorageError
from repl_broker.message import Message
from repl_broker.raft.core import (
    Compact,
    Core,
    CoreOptions,
    Effects,
    Event,
    Persisted,
    Propose,
    Refusal,
    Role,
)
from repl_broker.raft.log import (
    Entry,
    EntryKind,
    Member,
    Membership,
    Snapshot,
    SnapshotMark,
    WriteBatch,
)
from repl_broker.state import Applied, BrokerState, Location, Outcome
from repl_broker.storage import Storage
from repl_broker.wire import (
    decode_entry,
    decode_messages,
    encode_command,
    encode_entry,
    without_messages,
)

__all__ = ["Replica", "ReplicaStatistics"]

log = logging.getLogger(__name__)

ENTRY_BYTES_MAX: Final = 1 << 20  # what is joined into one entry; a larger command goes alone
PENDING_BYTES_MAX: Final = 64 << 20  # of proposals that wait; more waits in its callers
CACHE_BYTES_MAX: Final = 32 << 20  # of the entries that were written or read last, for readers
CACHE_OVERHEAD_BYTES: Final = 64  # of a message in the cache, beside its data
APPLY_ENTRIES_MAX: Final = 500  # without letting others run
EXPIRY_INTERVAL_SECONDS: Final = 5
SNAPSHOT_BYTES: Final = 64 << 20  # written since the last snapshot: large messages are few entries
TIDY_BYTES: Final = 4 << 20  # written since the last checkpoint
MEMORY_LOG_BYTES: Final = 4 << 20  # of applied entries, which a single node needs no more
LOG_READERS_MAX: Final = 4
CLOCK_JUMP_MS: Final = 60_000  # ahead of what has passed by a steady clock: worth a warning
DROP_ENTRIES_MAX: Final = 2000  # removed in one transaction
REWRITE_ENTRIES_MAX: Final = 16
COMMIT_BUCKETS_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip

T = TypeVar("T")
InThread = Callable[..., Awaitable[Any]]


class ReplicaStatistics(NamedTuple):
    """Counters since the start, and where the log stands."""

    term: int
    last_index: int
    applied_index: int
    snapshot_index: int
    writes: int  # transactions, each with one fsync
    commands: int
    pending: int  # proposals that are not answered yet
    store_bytes: int
    commit_seconds: float  # sum, from propose to applied
    commit_buckets: tuple[int, ...]  # one a bucket of COMMIT_BUCKETS_SECONDS, and one above


@dataclass(slots=True)
class _Proposal:
    command: Command
    encoded: bytes
    started: float
    done: trio.Event
    outcome: Outcome | None = None
    failure: RequestError | None = None


@dataclass(slots=True)
class _Batch:
    """The proposals that went into one entry."""

    proposals: list[_Proposal]
    time_ms: int


class Replica:
    """This node's copy of the log and the state that follows from it.

    ``now_ms`` gives milliseconds since 1970 for new entries. ``on_applied`` is
    called for each entry, in order and synchronously with the change of
    ``state``. ``in_thread`` runs a blocking call; tests may run it in place.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        now_ms: Callable[[], int],
        on_applied: Callable[[Applied], None] = lambda applied: None,
        snapshot_entries: int = 10_000,
        in_thread: InThread = trio.to_thread.run_sync,
    ) -> None:
        # Few at a time: a herd of streams that catch up must not hold up publishing.
        self.log_readers = trio.CapacityLimiter(LOG_READERS_MAX)
        self._writer_thread = trio.CapacityLimiter(1)  # not in one queue with readers
        self.state = BrokerState()
        self._storage = storage
        self._settings = settings
        self._now_ms = now_ms
        self._on_applied = on_applied
        self._snapshot_entries = snapshot_entries
        self._in_thread = in_thread
        self._writer = trio.Lock()  # one write at a time
        self._core = Core(
            storage.identity.node_id, CoreOptions(), random.SystemRandom(), 0.0
        )  # until the store is read
        self._events: list[Event] = []  # for the core's next step
        self._awake = trio.Event()
        self._serving = trio.Event()  # leads, and has applied all that was there before
        self._writes_due: list[tuple[int, WriteBatch]] = []
        self._write_due = trio.Event()
        self._committed: deque[Entry] = deque()  # to be applied
        self._token = 0
        self._offered: dict[int, _Batch] = {}  # by token: given to the core in this step
        self._taken: dict[int, _Batch] = {}  # by index: in the log, not applied yet
        self._stamped_at = 0.0  # by the steady clock: when the newest entry got its time
        self._snapshot_index = 0
        self._written_bytes = 0  # since the last checkpoint
        self._unsnapped_bytes = 0  # since the last snapshot
        self._log_bytes = 0  # of applied entries that the core still holds
        self._store_bytes = 0
        self._waiting: deque[_Proposal] = deque()
        self._pending_bytes = 0
        self._room = trio.Event()
        self._idle = trio.Event()
        self._upkeep = trio.Event()
        self._closing = False
        self._damaged = trio.Event()
        self._damage: StorageError | None = None
        self._cache: OrderedDict[int, list[bytes]] = OrderedDict()
        self._cache_bytes = 0
        self._writes = 0
        self._commands = 0
        self._commit_seconds = 0.0
        self._commit_buckets = [0] * (len(COMMIT_BUCKETS_SECONDS) + 1)

    @property
    def node_id(self) -> str:
        return self._storage.identity.node_id

    @property
    def cluster_id(self) -> str:
        return self._storage.identity.cluster_id

    @property
    def epoch(self) -> str:
        return self._storage.identity.epoch

    # --- what callers use ---

    async def propose(self, command: Command) -> Outcome:
        """Put ``command`` into the log; its outcome once it is durable and applied.

        Raises ``shutting_down`` when it was not taken, OutcomeUnknownError when
        it was and the disk failed. Cancelling stops the wait, not the command.
        """
        while self._pending_bytes > PENDING_BYTES_MAX and not self._closing:
            await self._room.wait()
        if self._closing:
            raise RequestError(
                "shutting_down", "The node is shutting down; use another, or try again later."
            )
        proposal = _Proposal(command, encode_command(command), trio.current_time(), trio.Event())
        self._waiting.append(proposal)
        self._pending_bytes += len(proposal.encoded)
        self._awake.set()
        await proposal.done.wait()
        if proposal.failure is not None:
            raise proposal.failure
        assert proposal.outcome is not None
        return proposal.outcome

    async def read_barrier(self) -> None:
        """After it, ``state`` holds all that was acknowledged anywhere before the call.

        With a single voter it always does.
        """
        await trio.lowlevel.checkpoint()

    async def fetch(self, locations: Sequence[Location]) -> list[Message]:
        """The messages at ``locations``, in that order, up to the first that is gone by now.

        A message goes when retention trims it, so ``state`` knows of it then.
        Raises StorageError for one that should be there and is not.
        """
        await trio.lowlevel.checkpoint()
        wanted = {at.entry for at in locations}
        found = {entry: self._cache[entry] for entry in wanted & self._cache.keys()}
        for entry in found:
            self._cache.move_to_end(entry)
        if missing := sorted(wanted - found.keys()):
            entries = await self._read(missing)
            for entry, data in entries.items():
                # Kept, since a reader takes a large entry in many small pieces.
                found[entry] = decode_messages(data)
                self._keep(entry, found[entry])
        messages = []
        for at in locations:
            data = found[at.entry][at.ordinal] if at.entry in found else b""
            if not data:
                self._check_gone(at)
                break
            messages.append(Message(at.seq, at.topic, at.time_ms, data))
        return messages

    async def _read(self, indexes: list[int]) -> dict[int, bytes]:
        try:
            found: dict[int, bytes] = await self._in_thread(self._storage.read, indexes)
        except StorageError as error:
            self._damage_found(error)
            raise
        return found

    def _damage_found(self, error: StorageError) -> None:
        """A disk that gives back something else than was written is not trusted any more."""
        self._damage = error
        self._damaged.set()

    async def _end_if_damaged(self) -> None:
        await self._damaged.wait()
        assert self._damage is not None
        raise self._damage

    def _check_gone(self, at: Location) -> None:
        # Looking again would find the same for ever.
        topic = self.state.topics.get(at.topic)
        if topic is not None and topic.retains(at.seq):
            error = StorageError(
                f"the store is damaged: message {at.seq} of {at.topic!r} should be in entry "
                f"{at.entry}, and is not; restore it from a backup"
            )
            self._damage_found(error)
            raise error

    async def drain(self) -> None:
        """Take no more proposals, and wait until those taken are answered."""
        self._closing = True
        self._room.set()
        while self._waiting or self._offered or self._taken:
            self._idle = trio.Event()
            await self._idle.wait()

    def statistics(self) -> ReplicaStatistics:
        return ReplicaStatistics(
            self._core.term,
            self._core.log.last_index,
            self.state.applied_index,
            self._snapshot_index,
            self._writes,
            self._commands,
            len(self._waiting) + sum(len(b.proposals) for b in self._under_way()),
            self._store_bytes,
            self._commit_seconds,
            tuple(self._commit_buckets),
        )

    # --- the task ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover, then write and apply until cancelled. Raises StorageError if the disk fails."""
        await self._recover()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._maintain)
                nursery.start_soon(self._expire)
                nursery.start_soon(self._write)
                nursery.start_soon(self._drive)
                nursery.start_soon(self._end_if_damaged)
                await self._serving.wait()
                await self._sweep()
                if self.state.settings != self._settings or self._core.log.last_index <= 1:
                    await self.propose(Configure(self._settings))
                task_status.started()
        finally:
            self._closing = True
            self._room.set()
            under_way = [p for batch in self._under_way() for p in batch.proposals]
            for proposal in (*under_way, *self._waiting):
                proposal.failure = OutcomeUnknownError(
                    "The node stopped before it knew whether the write is kept; "
                    "ask again with the same Idempotency-Key."
                )
                proposal.done.set()

    def _under_way(self) -> list[_Batch]:
        return [*self._offered.values(), *self._taken.values()]

    async def _recover(self) -> None:
        loaded = await self._in_thread(self._storage.load)
        mark = SnapshotMark(0, 0, self._alone())
        if loaded.snapshot is not None:
            self.state = BrokerState.restore(loaded.snapshot.data)
            encoded = loaded.snapshot.membership
            membership = Membership.decode(encoded) if encoded else mark.membership
            mark = SnapshotMark(loaded.snapshot.index, loaded.snapshot.term, membership)
            self._snapshot_index = mark.index
        self._unsnapped_bytes = sum(len(entry.data) for entry in loaded.entries)
        self._stamped_at = trio.current_time()
        self._core = Core(
            self.node_id,
            CoreOptions(),
            random.SystemRandom(),
            trio.current_time(),
            hard_state=loaded.hard_state,
            mark=mark,
            entries=loaded.entries,
        )

    def _alone(self) -> Membership:
        """Of a single node: it is the one voter."""
        return Membership((Member(self.node_id, "", "", voter=True),))

    async def _sweep(self) -> None:
        """Drop what a crash kept from being dropped; all that was there before is applied."""
        live = self.state.live_entries()
        await self._locked(lambda upto: self._storage.drop_others(upto, live), self._snapshot_index)
        self._store_bytes = self._storage.bytes
        log.info(
            "recovered term=%d last_index=%d seq=%d topics=%d",
            self._core.term,
            self._core.log.last_index,
            self.state.seq,
            len(self.state.topics),
        )

    async def _drive(self) -> None:
        """Own the core: give it what has happened, carry out what it asks for."""
        while True:
            self._offer_waiting()
            events, self._events = self._events, []
            effects = self._core.step(trio.current_time(), events)
            self._carry_out(effects)
            self._apply_committed()
            if self._events or self._committed or self._may_offer():
                await trio.lowlevel.checkpoint()
                continue
            self._awake = trio.Event()
            with trio.move_on_at(effects.deadline):
                await self._awake.wait()

    def _post(self, event: Event) -> None:
        self._events.append(event)
        self._awake.set()

    def _offer_waiting(self) -> None:
        """Make an entry of what waits, when the writer is free."""
        if not self._may_offer():
            return
        batch = _Batch(self._take_waiting(), self._stamp_ms())
        self._token += 1
        self._offered[self._token] = batch
        data = encode_entry(batch.time_ms, [p.encoded for p in batch.proposals])
        self._events.append(Propose(self._token, data))

    def _may_offer(self) -> bool:
        core = self._core
        return bool(self._waiting) and core.role is Role.LEADER and not core.is_writing

    def _carry_out(self, effects: Effects) -> None:
        if effects.persist is not None:
            self._writes_due.append((effects.persist_number, effects.persist))
            self._write_due.set()
        for token, index, _ in effects.taken:
            self._taken[index] = self._offered.pop(token)
        for token, refusal in effects.refused:
            assert refusal in (Refusal.NOT_LEADER, Refusal.BUSY)
            self._put_back(self._offered.pop(token))
        self._committed.extend(effects.committed)

    def _put_back(self, batch: _Batch) -> None:
        self._waiting.extendleft(reversed(batch.proposals))
        self._pending_bytes += sum(len(p.encoded) for p in batch.proposals)

    async def _write(self) -> None:
        """Make durable what the core asks for; what has come meanwhile goes together."""
        while True:
            if not self._writes_due:
                self._write_due = trio.Event()
                await self._write_due.wait()
            due, self._writes_due = self._writes_due, []
            batches = [batch for _, batch in due]
            await self._locked(lambda b: self._storage.write(*b), batches)
            self._writes += 1
            size = sum(len(entry.data) for batch in batches for entry in batch.entries)
            self._written_bytes += size
            self._unsnapped_bytes += size
            self._post(Persisted(due[-1][0]))

    def _time_ms(self) -> int:
        """The time for an entry now: the clock's, but never running back.

        If the clock was ahead and was put right, time goes on at a steady pace
        from where it stood, so that history and keys keep ageing.
        """
        return max(self._now_ms(), self._steady_ms())

    def _steady_ms(self) -> int:
        """What the time should be, by what has passed since the newest entry."""
        return self.state.time_ms + int((trio.current_time() - self._stamped_at) * 1000)

    def _stamp_ms(self) -> int:
        """The time for the entry that is made now."""
        time_ms = self._time_ms()
        jump_ms = time_ms - self._steady_ms()
        if self._commands and jump_ms > CLOCK_JUMP_MS:
            log.warning("the clock has jumped ahead seconds=%d", jump_ms // 1000)
        self._stamped_at = trio.current_time()
        return time_ms

    def _take_waiting(self) -> list[_Proposal]:
        taken = [self._waiting.popleft()]
        size = len(taken[0].encoded)
        while self._waiting and size + len(self._waiting[0].encoded) <= ENTRY_BYTES_MAX:
            taken.append(self._waiting.popleft())
            size += len(taken[-1].encoded)
        self._pending_bytes -= size
        self._room.set()
        self._room = trio.Event()
        return taken

    def _apply_committed(self) -> None:
        for _ in range(min(len(self._committed), APPLY_ENTRIES_MAX)):
            self._apply(self._committed.popleft())
        if not self._committed:
            core = self._core
            if core.role is Role.LEADER and core.has_committed_in_term:
                self._serving.set()
            if not (self._waiting or self._offered or self._taken):
                self._idle.set()
        if self._log_bytes > MEMORY_LOG_BYTES:
            self._log_bytes = 0
            self._post(Compact(self.state.applied_index))
        if self._snapshot_due() or self._written_bytes >= TIDY_BYTES:
            self._upkeep.set()

    def _apply(self, entry: Entry) -> None:
        self._log_bytes += len(entry.data)
        batch = self._taken.pop(entry.index, None)
        time_ms, commands = 0, []
        if batch is not None:
            time_ms, commands = batch.time_ms, [p.command for p in batch.proposals]
        elif entry.kind is EntryKind.DATA:
            time_ms, commands = decode_entry(entry.data)
        applied = self.state.apply(entry.index, time_ms, commands)
        self._remember(entry.index, commands)
        self._on_applied(applied)
        if batch is not None:
            self._answer(batch, applied.outcomes)

    def _answer(self, batch: _Batch, outcomes: list[Outcome]) -> None:
        now = trio.current_time()
        for proposal, outcome in zip(batch.proposals, outcomes, strict=True):
            proposal.outcome = outcome
            proposal.done.set()
            self._commit_seconds += now - proposal.started
            bucket = bisect_left(COMMIT_BUCKETS_SECONDS, now - proposal.started)
            self._commit_buckets[bucket] += 1
        self._commands += len(batch.proposals)

    def _snapshot_due(self) -> bool:
        # A large state is worth writing only once much has changed.
        entries = max(self._snapshot_entries, self.state.entries // 2)
        return (
            self.state.applied_index - self._snapshot_index >= entries
            or self._unsnapped_bytes >= SNAPSHOT_BYTES
        )

    def _remember(self, index: int, commands: Sequence[Command]) -> None:
        messages = [data for c in commands if isinstance(c, Publish) for data in c.data]
        if messages:
            self._keep(index, messages)

    def _keep(self, index: int, messages: list[bytes]) -> None:
        self._cache_bytes += _cached_bytes(messages) - _cached_bytes(self._cache.pop(index, []))
        self._cache[index] = messages
        while self._cache_bytes > CACHE_BYTES_MAX and len(self._cache) > 1:
            self._cache_bytes -= _cached_bytes(self._cache.popitem(last=False)[1])

    # --- upkeep ---

    async def _expire(self) -> None:
        while True:
            await trio.sleep(EXPIRY_INTERVAL_SECONDS)
            if self.state.expiry_due(self._time_ms()) and not self._closing:
                with suppress(RequestError):  # it may have waited into the shutdown
                    await self.propose(Expire())

    async def _maintain(self) -> None:
        while True:
            await self._upkeep.wait()
            self._upkeep = trio.Event()
            if self._snapshot_due():
                await self._compact()
            self._written_bytes = 0
            await self._in_thread(self._storage.tidy)
            self._store_bytes = self._storage.bytes

    async def _compact(self) -> None:
        """Take a snapshot; drop what it covers and nothing retains, in small transactions."""
        index = self.state.applied_index
        self._unsnapped_bytes = 0
        term = self._core.log.term(index)
        assert term is not None, "what is applied and above the snapshot is in memory"
        membership = self._core.membership_at(index).encode()
        snapshot = Snapshot(index, term, self.state.snapshot(), membership)
        dead, sparse = self.state.take_dead(index), self.state.take_sparse(index)
        await self._locked(self._storage.save_snapshot, snapshot)
        self._snapshot_index = index
        for start in range(0, len(dead), DROP_ENTRIES_MAX):
            await self._locked(self._storage.drop, dead[start : start + DROP_ENTRIES_MAX])
        for start in range(0, len(sparse), REWRITE_ENTRIES_MAX):
            await self._rewrite(sparse[start : start + REWRITE_ENTRIES_MAX])
        log.debug("compacted index=%d dropped=%d rewritten=%d", index, len(dead), len(sparse))

    async def _rewrite(self, indexes: list[int]) -> None:
        rewritten = {}
        for index, data in (await self._in_thread(self._storage.read, indexes)).items():
            dead = self.state.dead_ordinals(index, decode_entry(data)[1])
            rewritten[index] = without_messages(data, dead)
        await self._locked(self._storage.replace, rewritten)

    async def _locked(self, call: Callable[[T], None], argument: T) -> None:
        async with self._writer:
            with trio.CancelScope(shield=True):
                await self._in_thread(call, argument, limiter=self._writer_thread)


def _cached_bytes(messages: Sequence[bytes]) -> int:
    return sum(map(len, messages)) + CACHE_OVERHEAD_BYTES * len(messages)
