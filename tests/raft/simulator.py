"""A whole cluster in one process, in simulated time, replayable from its seed.

Real is the Core of every node. Simulated are its driver, its disk, its clock
and the network, and all of them misbehave:

    network   loses, delays, duplicates and reorders; cuts links both ways, one
              way, in part, in a chain; drops snapshots on their way
    disk      slow, or stalled for seconds; merges writes; fails (the node stops);
              at a crash, a prefix of what waits is there, the rest is lost
    node      crashes, also right before and right after a write; restarts;
              is paused, and then gets all that waited in one step
    clock     jumps ahead
    operator  adds, promotes and removes members, the leader too; hands over

After each step the invariants at the end of RAFT.md section 1 are checked
(``Oracle``); at the end everything heals and the cluster must converge.

    python -m tests.raft.simulator --seeds 0-999 [--nodes 5] [--keep-going]
"""

from __future__ import annotations

import argparse
import heapq
import math
import sys
import time as wall_clock
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from repl_broker.raft.core import (
    AddLearner,
    ChangeMembership,
    Compact,
    Core,
    CoreOptions,
    Effects,
    Event,
    PartReceived,
    Persisted,
    Promote,
    Propose,
    Read,
    Receive,
    Remove,
    Role,
    SnapshotFailed,
    SnapshotInstalled,
    SnapshotSent,
    Transfer,
    Unreachable,
)
from repl_broker.raft.log import (
    Entry,
    EntryKind,
    HardState,
    Member,
    Membership,
    SnapshotMark,
    WriteBatch,
)
from repl_broker.raft.rpc import (
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    Rpc,
    SnapshotReceived,
    Vote,
    VoteReply,
)

CHAOS_SECONDS = 10.0
HEAL_SECONDS_MAX = 40.0  # from the heal to convergence
STRAGGLE_SECONDS = 4.0  # after the heal old RPCs may still come
QUIET_SECONDS = 2.0  # … which then must last, and be quiet
PARTS = 4  # in which what straggles arrives
TRACE_LINES = 60
SPARE_NODES = 2  # not members at first
SIZES = (1, 3, 3, 3, 4, 4, 5, 5, 7)  # 4: changes of members go wrong in even ones

# Small bounds, so that they are reached.
OPTIONS = CoreOptions(
    election_timeout_seconds=0.3,
    heartbeat_interval_seconds=0.08,
    append_bytes_max=120,
    window_appends_max=4,
    window_bytes_max=400,
    uncommitted_bytes_max=4000,
)


class Violation(AssertionError):  # noqa: N818  a finding, not an error
    """An invariant does not hold. The seed and the last steps are in the message."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad it is, for one run."""

    loss: float
    duplicate: float
    straggle: float  # an RPC comes up to four seconds late
    delay: tuple[float, float]
    write: tuple[float, float]  # seconds that a write takes
    crash_at_write: float
    fail_write: float
    unreachable: float  # a lost RPC is noticed
    blow_every: float  # mean seconds between the blows of ``Simulator.blow``
    compact_every: int  # entries
    members_every: float  # mean seconds between changes of membership
    new_leader: float  # a new leader is asked for a change, and cut off, at once

    @classmethod
    def draw(cls, random: Random) -> Weather:
        storm = random.random() < 0.5  # leaders come and go
        lossy = random.random() < 0.5
        return cls(
            loss=random.choice((0.01, 0.05, 0.2)) if lossy else 0.0,
            duplicate=random.choice((0.0, 0.02, 0.3)),
            straggle=random.choice((0.1, 0.3)) if storm else random.choice((0.0, 0.02)),
            delay=(0.001, random.choice((0.003, 0.02, 0.1))),
            write=(0.0005, random.choice((0.002, 0.01, 0.05, 0.2))),
            crash_at_write=random.choice((0.0, 0.002, 0.01)),
            fail_write=random.choice((0.0, 0.002, 0.005)),
            unreachable=random.choice((0.0, 0.5)),
            blow_every=random.choice((0.2, 0.4)) if storm else random.choice((1.0, 3.0)),
            compact_every=random.choice((5, 20, 60, 1000)),
            members_every=random.choice((0.3, 1.0, 4.0, math.inf)),
            new_leader=random.choice((0.0, 0.3, 0.7)),
        )


CALM = Weather(
    loss=0,
    duplicate=0,
    straggle=0,
    delay=(0.001, 0.005),
    write=(0.001, 0.003),
    crash_at_write=0,
    fail_write=0,
    unreachable=0,
    blow_every=math.inf,
    compact_every=50,
    members_every=math.inf,
    new_leader=0,
)


# Nothing but new leaders who are asked for changes of members, and cut off.
CHANGING = replace(
    CALM,
    delay=(0.001, 0.02),
    blow_every=2.0,
    compact_every=1000,
    members_every=1.0,
    new_leader=0.8,
)


@dataclass(frozen=True, slots=True)
class SaveSnapshot:
    """The driver's own write: its state at ``mark``, so that the log can be compacted."""

    mark: SnapshotMark
    digest: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Another write: a received snapshot takes the place of log and state, at once."""

    mark: SnapshotMark
    digest: int


@dataclass(slots=True)
class Disk:
    """What survives a crash. Each write is there whole or not at all."""

    hard_state: HardState = field(default_factory=HardState)
    mark: SnapshotMark = field(default_factory=SnapshotMark)
    digest: int = 0  # of the state at ``mark``
    entries: dict[int, Entry] = field(default_factory=dict)
    last_index: int = 0

    def term(self, index: int) -> int | None:
        if index == self.mark.index:
            return self.mark.term
        entry = self.entries.get(index)
        return entry.term if entry else None

    def holds(self, index: int, term: int) -> bool:
        """Whether the log up to the entry at ``index`` of ``term`` is here."""
        return index <= self.mark.index or self.term(index) == term

    def write(self, item: WriteBatch | SaveSnapshot | Restore) -> None:
        match item:
            case WriteBatch():
                if item.truncate_from is not None:
                    self._truncate_from(item.truncate_from)
                for entry in item.entries:
                    self.entries[entry.index] = entry
                    self.last_index = entry.index
                if item.hard_state is not None:
                    self.hard_state = item.hard_state
            case SaveSnapshot(mark, digest):
                self.mark, self.digest = mark, digest
                for index in [i for i in self.entries if i <= mark.index]:
                    del self.entries[index]
                self.last_index = max(self.last_index, mark.index)
            case Restore(mark, digest):
                self.mark, self.digest = mark, digest
                self.entries.clear()
                self.last_index = mark.index

    def _truncate_from(self, index: int) -> None:
        for gone in range(index, self.last_index + 1):
            self.entries.pop(gone, None)
        self.last_index = min(self.last_index, index - 1)

    def load(self) -> list[Entry]:
        """The entries behind the snapshot, as far as there is no hole."""
        loaded = []
        while (entry := self.entries.get(self.mark.index + 1 + len(loaded))) is not None:
            loaded.append(entry)
        return loaded


@dataclass(slots=True)
class Node:
    """One node: its disk, its driver's memory, and its Core while it runs."""

    id: str
    disk: Disk = field(default_factory=Disk)
    core: Core | None = None
    life: int = 0  # which start; what belongs to an earlier one is ignored
    clock_ahead: float = 0.0
    paused_until: float = 0.0
    mailbox: list[Event] = field(default_factory=list)
    wake_at: float = math.inf  # the earliest call that is due
    # The writer: what waits, in order, with the number to report.
    waiting: deque[tuple[WriteBatch | SaveSnapshot | Restore, int]] = field(default_factory=deque)
    writing: int = 0  # how many of them are being written
    disk_stalled_until: float = 0.0
    fail_next_write: bool = False
    # The state machine: how far it is, and a digest of all data that it has seen.
    applied: int = 0
    digest: int = 0
    received: dict[SnapshotMark, int] = field(default_factory=dict)  # snapshots' digests
    proposed: dict[int, tuple[int, int]] = field(default_factory=dict)  # index: term, token
    asked_reads: dict[int, int] = field(default_factory=dict)  # token: must be at least
    snapshot_pending: bool = False
    restoring: bool = False


@dataclass(slots=True)
class Oracle:
    """All that was ever true, to hold what happens against."""

    committed: list[Entry] = field(default_factory=list)
    digests: list[int] = field(default_factory=lambda: [0])
    leaders: dict[int, str] = field(default_factory=dict)  # by term
    votes: dict[tuple[str, int], str] = field(default_factory=dict)  # by voter and term
    entries: dict[tuple[int, int], tuple[Entry, int]] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)  # token: index
    acknowledged_index: int = 0

    def digest(self, index: int) -> int:
        return self.digests[index]

    def commit(self, entry: Entry) -> None:
        self.committed.append(entry)
        self.digests.append(next_digest(self.digests[-1], entry))


def next_digest(digest: int, entry: Entry) -> int:
    return hash((digest, entry.data)) if entry.kind is EntryKind.DATA else digest


class Simulator:
    """``Simulator(seed).run()`` raises Violation, or the cluster stood it."""

    def __init__(
        self,
        seed: int,
        nodes: int | None = None,
        *,
        core_class: type[Core] = Core,
        weather: Weather | None = None,
        ignore_write_errors: bool = False,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.weather = weather or Weather.draw(self.random)
        size = nodes or self.random.choice(SIZES)
        self.core_class = core_class
        self.ignore_write_errors = ignore_write_errors
        self.time = 0.0
        self.steps = 0
        self.healed = False
        self.oracle = Oracle()
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=TRACE_LINES)
        self.blocked: dict[tuple[str, str], float] = {}  # links, and until when
        self.rpc_counts: dict[type, int] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._token = 0
        ids = [f"n{i}" for i in range(1, size + SPARE_NODES + 1)]
        self.nodes = {name: Node(name) for name in ids}
        first = Membership(tuple(Member(name, f"{name}:1", "", voter=True) for name in ids[:size]))
        for name in ids[:size]:
            self.nodes[name].disk.mark = SnapshotMark(0, 0, first)
        for node in self.nodes.values():
            self.start(node)

    # --- running ---

    def run(self) -> None:
        try:
            self._run()
        except Violation:
            raise
        except Exception as error:
            raise Violation(self.report(f"{type(error).__name__}: {error}")) from error

    def _run(self) -> None:
        self.at(self.random.random(), self.propose)
        self.at(self.random.random(), self.read)
        self.later(self.weather.blow_every, self.blow)
        self.later(self.weather.members_every, self.change_membership)
        self.run_until(CHAOS_SECONDS)
        self.heal()
        self.converge()

    def run_until(self, end: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.time, _, call, arguments = heapq.heappop(heap)
            call(*arguments)
        self.time = end

    def at(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.time + delay, self._count, call, arguments))

    def later(self, mean: float, call: Callable[..., None]) -> None:
        if mean < math.inf:
            self.at(self.random.expovariate(1 / mean), call)

    def note(self, *what: Any) -> None:
        self.trace.append((self.time, *what))

    def report(self, what: str) -> str:
        lines = [f"seed {self.seed}, {self.time:.3f} s, step {self.steps}: {what}"]
        lines += [
            f"  {at:8.3f} " + " ".join(str(part) for part in rest) for at, *rest in self.trace
        ]
        for node in self.nodes.values():
            lines.append(f"  {describe(node)}")
        return "\n".join(lines)

    def require(self, condition: bool, what: str, *values: Any) -> None:
        if not condition:
            raise Violation(self.report(" ".join((what, *map(str, values)))))

    # --- nodes ---

    def start(self, node: Node) -> None:
        disk = node.disk
        node.life += 1
        node.core = self.core_class(
            node.id,
            OPTIONS,
            Random(self.random.getrandbits(32)),
            self.time + node.clock_ahead,
            hard_state=disk.hard_state,
            mark=disk.mark,
            entries=disk.load(),
        )
        node.applied, node.digest = disk.mark.index, disk.digest
        self.note(node.id, "starts", disk.hard_state, "log to", disk.last_index)
        self.wake(node, 0.0)

    def crash(self, node: Node, why: str) -> None:
        """It is gone at once. Some of what was being written may be on disk nonetheless."""
        if node.core is None:
            return
        self.note(node.id, "crashes:", why)
        survives = self.random.randint(0, len(node.waiting))
        for item, _ in list(node.waiting)[:survives]:
            self.write(node, item)
        node.core = None
        node.life += 1
        node.waiting.clear()
        node.writing = 0
        node.mailbox.clear()
        node.received.clear()
        node.proposed.clear()
        node.asked_reads.clear()
        node.snapshot_pending = node.restoring = False
        node.wake_at = math.inf
        node.fail_next_write = False
        self.at(self.random.uniform(0.0, 1.5), self.restart, node)

    def restart(self, node: Node) -> None:
        if node.core is None:
            self.start(node)

    def post(self, node: Node, life: int, event: Event) -> None:
        if node.core is None or node.life != life:
            return
        node.mailbox.append(event)
        self.wake(node, self.random.random() * 0.002)

    def wake(self, node: Node, delay: float) -> None:
        when = max(self.time + delay, node.paused_until)
        if when < node.wake_at:
            node.wake_at = when
            self.at(when - self.time, self.awake, node, node.life)

    def awake(self, node: Node, life: int) -> None:
        if node.core is None or node.life != life or self.time < node.wake_at:
            return
        node.wake_at = math.inf
        if self.time < node.paused_until:
            self.wake(node, 0.0)
            return
        self.step(node)

    def step(self, node: Node) -> None:
        core = node.core
        assert core is not None
        events, node.mailbox = node.mailbox, []
        for event in events:
            if isinstance(event, SnapshotInstalled):
                node.applied, node.digest = event.mark.index, node.disk.digest
            elif isinstance(event, Read):
                node.asked_reads[event.token] = self.oracle.acknowledged_index
        before = Before(core)
        now = self.time + node.clock_ahead
        effects = core.step(now, events)
        self.steps += 1
        if events or effects.persist or effects.committed or core.role is not before.role:
            self.trace.append((self.time, Step(node.id, events, effects, core.role, core.term)))
        self.require(effects.deadline > now, node.id, "deadline is not ahead:", effects.deadline)
        self.check(node, core, before, effects)
        if core.role is Role.LEADER and before.role is not Role.LEADER:
            self.greet(node)
        self.carry_out(node, core, effects)
        if core.log.compacted_index > node.disk.mark.index:
            self.require(False, node.id, "compacted beyond its snapshot")
        self.wake(node, max(effects.deadline - now, 0.0001))

    def carry_out(self, node: Node, core: Core, effects: Effects) -> None:
        """What the driver does, in the order that Effects asks for."""
        if effects.persist is not None:
            node.waiting.append((effects.persist, effects.persist_number))
        if effects.restore is not None:
            node.restoring = True  # no snapshot of an older state may follow
            node.waiting.append(
                (Restore(effects.restore, node.received[effects.restore]), -1),
            )
        for rpc in effects.send:
            self.send(rpc)
        for token, index, term in effects.taken:
            if token > 0:  # a proposal: wait for it
                node.proposed[index] = (term, token)
        for entry in effects.committed:
            self.apply(node, core, entry)
        for token, index in effects.readable:
            wanted = node.asked_reads.pop(token)
            self.require(index >= wanted, node.id, "stale read:", index, "acknowledged:", wanted)
        for peer in effects.snapshots:
            self.send_snapshot(node, core, peer)
        every = self.weather.compact_every
        busy = node.snapshot_pending or node.restoring
        if node.applied - node.disk.mark.index >= every and not busy:
            mark = self.mark_at(core, node.applied)
            node.snapshot_pending = True
            node.waiting.append((SaveSnapshot(mark, node.digest), -1))
        self.start_writing(node)

    @staticmethod
    def mark_at(core: Core, index: int) -> SnapshotMark:
        term = core.log.term(index)
        assert term is not None
        return SnapshotMark(index, term, core.membership_at(index))

    def apply(self, node: Node, core: Core, entry: Entry) -> None:
        """RAFT.md scenario 23: every node applies the same entries, in order, once."""
        oracle = self.oracle
        self.require(entry.index == node.applied + 1, node.id, "applies out of order", entry)
        if entry.index > len(oracle.committed):
            oracle.commit(entry)
        known = oracle.committed[entry.index - 1]
        self.require(known == entry, node.id, "applies", entry, "and another applied", known)
        node.applied = entry.index
        node.digest = next_digest(node.digest, entry)
        term, token = node.proposed.pop(entry.index, (0, 0))
        if term == entry.term:
            self.require(token not in oracle.acknowledged, "acknowledged twice", token)
            oracle.acknowledged[token] = entry.index
            oracle.acknowledged_index = max(oracle.acknowledged_index, entry.index)

    # --- disks ---

    def start_writing(self, node: Node) -> None:
        if node.writing or not node.waiting:
            return
        # All that waits goes under one fsync, mostly.
        node.writing = self.random.choice((1, len(node.waiting), len(node.waiting)))
        seconds = self.random.uniform(*self.weather.write)
        seconds += max(0.0, node.disk_stalled_until - self.time)
        self.at(seconds, self.written, node, node.life)

    def written(self, node: Node, life: int) -> None:
        if node.life != life:
            return
        random = self.random.random()
        fails = node.fail_next_write or random < self.weather.fail_write
        if fails and self.ignore_write_errors:
            self.note(node.id, "lost a write and does not say so")
        elif fails:
            self.crash(node, "a write failed")
            return
        elif random > 1 - self.weather.crash_at_write:
            self.crash(node, "in a write")
            return
        node.fail_next_write = False
        for _ in range(node.writing):
            item, number = node.waiting.popleft()
            if not fails or not isinstance(item, WriteBatch):
                self.write(node, item)
            match item:
                case WriteBatch():
                    self.post(node, life, Persisted(number))
                case SaveSnapshot(mark):
                    node.snapshot_pending = False
                    tail = self.random.choice((0, 3, 30))
                    self.post(node, life, Compact(mark.index - tail))
                case Restore(mark):
                    node.restoring = False
                    self.post(node, life, SnapshotInstalled(mark))
        node.writing = 0
        if self.random.random() < self.weather.crash_at_write:
            self.crash(node, "right after a write")
            return
        self.start_writing(node)

    def write(self, node: Node, item: WriteBatch | SaveSnapshot | Restore) -> None:
        """RAFT.md scenarios 28, 29: no disk has an entry before its term, or loses a committed
        one."""
        disk, committed = node.disk, self.oracle.committed
        gone = item.truncate_from if isinstance(item, WriteBatch) else None
        if gone is not None and gone <= len(committed):
            self.require(
                not disk.holds(gone, committed[gone - 1].term) or gone > disk.last_index,
                *(node.id, "removes a committed entry from its disk:", committed[gone - 1]),
            )
        disk.write(item)
        if isinstance(item, WriteBatch):
            self.require(
                all(entry.term <= disk.hard_state.term for entry in item.entries),
                *(node.id, "writes an entry before its term:", item),
            )
        else:
            self.require(
                item.mark.index <= len(committed)
                and item.digest == self.oracle.digest(item.mark.index)
                and (item.mark.index == 0 or item.mark.term == committed[item.mark.index - 1].term),
                *(node.id, "has a snapshot of what was never committed:", item),
            )

    # --- the network ---

    def send(self, rpc: Rpc) -> None:
        """RAFT.md scenarios 16, 20: RPCs are lost, late, reordered and repeated."""
        self.rpc_counts[type(rpc)] = self.rpc_counts.get(type(rpc), 0) + 1
        random, weather = self.random, self.weather
        if self.is_blocked(rpc.sender, rpc.receiver) or random.random() < weather.loss:
            if random.random() < weather.unreachable:
                sender = self.nodes[rpc.sender]
                self.at(random.random(), self.post, sender, sender.life, Unreachable(rpc.receiver))
            return
        receiver = self.nodes[rpc.receiver]
        delay = random.uniform(*weather.delay)
        if random.random() < weather.straggle:
            delay += 4 * random.random()
            for part in range(1, PARTS):  # it is long, and the link is slow
                arrives = delay * part / PARTS
                self.at(arrives, self.post, receiver, receiver.life, PartReceived(rpc.sender))
        self.at(delay, self.deliver, receiver, rpc, self.healed)
        if random.random() < weather.duplicate:
            late = delay + random.choice((0.1, 4.0)) * random.random()
            self.at(late, self.deliver, receiver, rpc, self.healed)

    def deliver(self, receiver: Node, rpc: Rpc, calm: bool = True) -> None:
        """What was sent in bad weather (not ``calm``) is lost some time after the heal."""
        if calm or not self.healed or self.time < CHAOS_SECONDS + STRAGGLE_SECONDS:
            self.post(receiver, receiver.life, Receive(rpc))

    def send_snapshot(self, node: Node, core: Core, peer: str) -> None:
        """RAFT.md scenarios 31, 33: a stream of its own, which may break; the last chunk is one
        RPC."""
        mark, digest = node.disk.mark, node.disk.digest
        rpc = SnapshotReceived(sender=node.id, receiver=peer, term=core.term, mark=mark)
        receiver = self.nodes[peer]
        seconds = self.random.uniform(0.01, 0.8)
        cut = self.is_blocked(node.id, peer) or receiver.core is None
        if cut or self.random.random() < self.weather.loss:
            self.at(seconds, self.post, node, node.life, SnapshotFailed(peer))
            return

        def arrive() -> None:
            receiver.received[mark] = digest
            self.deliver(receiver, rpc)

        self.at(seconds, arrive)
        self.at(seconds + 0.01, self.post, node, node.life, SnapshotSent(peer))

    # --- clients and operators ---

    def token(self) -> int:
        self._token += 1
        return self._token

    def propose(self) -> None:
        if self.healed:
            return
        node = self.random.choice(list(self.nodes.values()))
        if self.random.random() < 0.8:
            node = self.a_leader() or node
        for _ in range(self.random.choice((1, 1, 2, 8))):
            self.propose_to(node)
        self.at(self.random.expovariate(30), self.propose)

    def propose_to(self, node: Node) -> int:
        token = self.token()
        data = b"%d" % token + b"." * self.random.randrange(40)
        self.post(node, node.life, Propose(token, data))
        return token

    def read(self) -> None:
        """RAFT.md scenarios 44, 45: no read is older than what was acknowledged before it was
        asked."""
        if self.healed:
            return
        node = self.random.choice(list(self.nodes.values()))
        if self.random.random() < 0.5:
            node = self.a_leader() or node
        self.post(node, node.life, Read(self.token()))
        self.at(self.random.expovariate(10), self.read)

    def a_leader(self) -> Node | None:
        leaders = [n for n in self.nodes.values() if n.core and n.core.role is Role.LEADER]
        return self.random.choice(leaders) if leaders else None

    def greet(self, leader: Node) -> None:
        """RAFT.md scenario 37: a new leader is asked for a change, and cut off, before it has
        committed."""
        if self.random.random() >= self.weather.new_leader:
            return
        if self.weather.members_every < math.inf:
            # Mostly a removal: it changes the majority at once.
            self.ask_for_change(leader, self.random.choice((0.0, 0.7, 0.8, 0.8)))
        delay = self.random.choice((0.0, 0.0, 0.02, 0.2))
        if delay:
            self.at(delay, self.cut_off, leader)
        else:
            self.cut_off(leader)  # not even its no-op goes to all

    def cut_off(self, node: Node) -> None:
        """From all, or all but one."""
        if not self.healed:
            spared = self.random.choice(list(self.nodes))
            cut = [name for name in self.nodes if name != spared]
            self.block([(node.id, name) for name in cut] + [(name, node.id) for name in cut])

    def change_membership(self) -> None:
        """RAFT.md scenarios 39, 40, 42: members come and go, the leader too."""
        if self.healed:
            return
        leader = self.a_leader()
        if leader is not None:
            self.ask_for_change(leader)
        self.later(self.weather.members_every, self.change_membership)

    def ask_for_change(self, leader: Node, at_least: float = 0.0) -> None:
        if leader.core is not None:
            membership = leader.core.membership
            change: AddLearner | Promote | Remove
            outside = sorted(self.nodes.keys() - membership.ids)
            draw = self.random.uniform(at_least, 1.0)
            if draw < 0.5 and outside:
                name = self.random.choice(outside)
                change = AddLearner(Member(name, f"{name}:1", "", voter=False))
            elif draw < 0.6 and membership.learners:
                change = Promote(self.random.choice(sorted(membership.learners)))
            elif draw < 0.8:
                change = Remove(leader.id)
            else:
                change = Remove(self.random.choice(sorted(membership.ids)))
            self.note("operator asks", leader.id, change)
            self.post(leader, leader.life, ChangeMembership(-self.token(), change, forced=True))

    # --- blows ---

    def blow(self) -> None:
        if self.healed:
            return
        node = self.random.choice(list(self.nodes.values()))
        if self.random.random() < 0.6:
            node = self.a_leader() or node
        action = self.random.choice(BLOWS)
        self.note("blow:", action.__name__, node.id)
        action(self, node)
        self.later(self.weather.blow_every, self.blow)

    def crash_one(self, node: Node) -> None:
        """RAFT.md scenarios 1, 23: one crashes; of its waiting writes a prefix is there."""
        self.crash(node, "a blow")

    def crash_all(self, node: Node) -> None:
        """RAFT.md scenario 13: all crash, and start again one after the other."""
        for each in self.nodes.values():
            self.crash(each, "all at once")

    def pause(self, node: Node) -> None:
        """RAFT.md scenario 45: one stands still, and then gets all that waited in one step."""
        node.paused_until = self.time + self.random.uniform(0.1, 1.5)

    def jump_clock(self, node: Node) -> None:
        """RAFT.md scenario 45: the clock of one jumps ahead."""
        node.clock_ahead += self.random.uniform(0.1, 2.0)
        if node.core is not None:
            self.wake(node, 0.0)

    def stall_disk(self, node: Node) -> None:
        """RAFT.md scenario 48: the disk of one hangs for a while."""
        node.disk_stalled_until = self.time + self.random.uniform(0.1, 1.5)

    def fail_disk(self, node: Node) -> None:
        """RAFT.md scenario 27: the next write of one fails: it stops, and nobody hears of what
        rested on it."""
        node.fail_next_write = True

    def is_blocked(self, sender: str, receiver: str) -> bool:
        return self.blocked.get((sender, receiver), 0.0) > self.time

    def block(self, pairs: Iterable[tuple[str, str]]) -> None:
        until = self.time + self.random.uniform(0.2, 1.5)
        for pair in pairs:
            self.blocked[pair] = max(until, self.blocked.get(pair, 0.0))

    def isolate(self, node: Node) -> None:
        """RAFT.md scenarios 9, 10: one is cut off."""
        self.deafen(node)
        self.mute(node)

    def deafen(self, node: Node) -> None:
        """RAFT.md scenario 11: one hears nobody."""
        self.block((name, node.id) for name in self.nodes)

    def mute(self, node: Node) -> None:
        """RAFT.md scenario 11: nobody hears one."""
        self.block((node.id, name) for name in self.nodes)

    def split(self, node: Node) -> None:
        """RAFT.md scenarios 9, 10: the nodes are in two parts."""
        side = {name: self.random.random() < 0.5 for name in self.nodes}
        self.block((a, b) for a in side for b in side if side[a] != side[b])

    def chain(self, node: Node) -> None:
        """RAFT.md scenario 11: each reaches its neighbours only."""
        names = self.random.sample(sorted(self.nodes), len(self.nodes))
        self.block(
            (a, b) for i, a in enumerate(names) for j, b in enumerate(names) if abs(i - j) > 1
        )

    def cut_some(self, node: Node) -> None:
        """RAFT.md scenario 11: some links are broken, each in one direction."""
        pairs = [(a, b) for a in self.nodes for b in self.nodes]
        self.block(pair for pair in pairs if self.random.random() < 0.3)

    def transfer(self, node: Node) -> None:
        """RAFT.md scenario 43: one is asked to hand over, to anyone: itself, a learner, a
        stranger."""
        target = self.random.choice(list(self.nodes))
        self.post(node, node.life, Transfer(-self.token(), target))

    # --- after each step ---

    def check(self, node: Node, core: Core, before: Before, effects: Effects) -> None:
        require, oracle, disk = self.require, self.oracle, node.disk
        require(effects.loss is None, node.id, "misses what no disk has lost:", effects.loss)
        # Terms and commit indexes only grow; the order of the indexes.
        require(core.term >= max(before.term, disk.hard_state.term), node.id, "term runs back")
        require(core.committed_index >= before.committed, node.id, "commit index runs back")
        applied = node.applied + len(effects.committed)
        require(
            core.log.compacted_index <= applied == core.committed_index <= core.log.last_index,
            *(node.id, "indexes are out of order"),
        )
        # Log matching: an index and a term name one entry and one predecessor.
        if effects.persist is not None:
            self.check_entries(node, core, effects.persist)
            if effects.persist.truncate_from is not None:
                self.check_membership(node, core)
        # Election safety, and leader completeness.
        if core.role is Role.LEADER:
            first = oracle.leaders.setdefault(core.term, node.id)
            require(first == node.id, "two leaders in term", core.term, first, node.id)
            if before.role is not Role.LEADER or before.term != core.term:
                self.check_completeness(node, core)
            elif effects.persist is not None:
                require(effects.persist.truncate_from is None, node.id, "truncates as leader")
        # What is newly committed is on a majority's disks.
        if core.committed_index > len(oracle.committed):
            self.check_quorum(node, core, before)
        # Nothing is said that is not on disk.
        for rpc in effects.send:
            self.check_durable(node, core, rpc)

    def check_entries(self, node: Node, core: Core, batch: WriteBatch) -> None:
        """RAFT.md scenarios 14, 16: an index and a term name one entry and one predecessor."""
        for entry in batch.entries:
            prev_term = core.log.term(entry.index - 1)
            if prev_term is None or core.log.term(entry.index) != entry.term:
                continue  # compacted or replaced in this very step
            known = self.oracle.entries.setdefault((entry.index, entry.term), (entry, prev_term))
            self.require(
                known == (entry, prev_term),
                *(node.id, "logs do not match:", (entry, prev_term), known),
            )

    def check_membership(self, node: Node, core: Core) -> None:
        """RAFT.md scenario 37: the newest in the log is in force; one that was truncated is not."""
        log = core.log
        newest = core.membership_at(log.compacted_index)
        for entry in log.slice(log.first_index, log.last_index):
            if entry.kind is EntryKind.MEMBERSHIP:
                newest = Membership.decode(entry.data)
        self.require(core.membership == newest, node.id, "keeps a truncated membership")

    def check_completeness(self, node: Node, core: Core) -> None:
        """RAFT.md scenarios 4, 15: whoever is elected has every committed entry."""
        committed = self.oracle.committed
        if committed and core.log.compacted_index < len(committed):
            last = committed[-1]
            self.require(
                core.log.term(last.index) == last.term,
                *(node.id, "leads without the committed", last),
            )

    def check_quorum(self, node: Node, core: Core, before: Before) -> None:
        """RAFT.md scenarios 24, 40: what is committed is on the disks of a majority."""
        index, term = core.committed_index, core.log.term(core.committed_index)
        assert term is not None
        for membership in (before.membership, core.membership):
            voters = membership.voters
            have = [name for name in voters if self.nodes[name].disk.holds(index, term)]
            if len(have) * 2 > len(voters):
                return
        self.require(False, node.id, "commits", index, "which no majority has on disk:", have)

    def check_durable(self, node: Node, core: Core, rpc: Rpc) -> None:
        """RAFT.md scenarios 1, 2, 24: no vote is given and no append acknowledged that is not on
        disk."""
        disk, name = node.disk, node.id
        match rpc:
            case VoteReply(granted=True):
                wanted: tuple[int, str] | None = (rpc.term, rpc.receiver)
            case Vote():
                wanted = (rpc.term, name)
            case AppendReply(accepted=True):
                wanted = None
                mine = core.log.term(rpc.index)
                self.require(
                    mine is None or disk.holds(rpc.index, mine),
                    *(name, "acknowledges what is not on its disk:", rpc),
                )
            case _:
                return
        if wanted is not None:
            self.require(
                (disk.hard_state.term, disk.hard_state.vote) == wanted,
                *(name, "votes before that is on its disk:", rpc, disk.hard_state),
            )
            first = self.oracle.votes.setdefault((name, rpc.term), wanted[1])
            self.require(
                first == wanted[1], name, "votes twice in term", rpc.term, first, wanted[1]
            )

    # --- the end ---

    def heal(self) -> None:
        """The weather is fine, everyone runs, and clients are silent."""
        self.healed = True
        self.note("all heals")
        self.weather = CALM
        self.blocked.clear()
        for node in self.nodes.values():
            node.paused_until = node.disk_stalled_until = 0.0
            node.fail_next_write = False
            if node.core is None:
                self.start(node)
            else:
                node.wake_at = math.inf  # it may be set for the end of a pause
                self.wake(node, 0.0)

    def converge(self) -> None:
        """RAFT.md scenarios 7, 9, 20: in the end there is one leader, all are level, and it
        lasts."""
        self.run_until(self.time + STRAGGLE_SECONDS + 0.5)
        end = self.time + HEAL_SECONDS_MAX
        while not self.has_converged():
            self.require(self.time < end, "no convergence:", self.why_not())
            self.run_until(self.time + 0.2)
        leader = self.the_leader()
        assert leader is not None
        assert leader.core is not None
        term = leader.core.term
        # It lasts, and whoever is out of the cluster disturbs nobody.
        self.run_until(self.time + 1.0)
        self.rpc_counts.clear()
        self.run_until(self.time + QUIET_SECONDS)
        self.require(
            self.has_converged() and self.the_leader() is leader and leader.core.term == term,
            *("what had converged did not last", self.why_not()),
        )
        quiet = {Heartbeat, HeartbeatReply, PreVote, PreVoteReply}
        self.require(self.rpc_counts.keys() <= quiet, "idle nodes chatter:", self.rpc_counts)
        # It serves.
        token, read = self.propose_to(leader), self.token()
        self.post(leader, leader.life, Read(read))
        self.run_until(self.time + 1.0)
        self.require(token in self.oracle.acknowledged, "a proposal is not served")
        self.require(read not in leader.asked_reads, "a read is not served")
        self.require(self.has_converged(), self.why_not())
        self.check_acknowledged()

    def check_acknowledged(self) -> None:
        """RAFT.md scenario 23: every acknowledged proposal is there, once; so is every other, at
        most."""
        seen: dict[int, int] = {}
        for entry in self.oracle.committed:
            if entry.kind is EntryKind.DATA:
                token = int(entry.data.rstrip(b"."))
                self.require(token not in seen, "applied twice:", token)
                seen[token] = entry.index
        for token, index in self.oracle.acknowledged.items():
            self.require(seen.get(token) == index, "acknowledged and lost:", token)

    def the_leader(self) -> Node | None:
        leaders = [n for n in self.nodes.values() if n.core and n.core.role is Role.LEADER]
        return leaders[0] if len(leaders) == 1 else None

    def has_converged(self) -> bool:
        return not self.why_not()

    def why_not(self) -> str:
        leader = self.the_leader()
        if leader is None or leader.core is None:
            return "not one leader"
        core = leader.core
        if core.membership.learners:
            return "learners are not promoted"
        for name in sorted(core.membership.ids):
            peer = self.nodes[name]
            if peer.core is None or (peer.core.leader, peer.core.term) != (leader.id, core.term):
                return f"{name} does not follow {leader.id}"
            if not (
                (peer.core.log.last_index, peer.core.log.last_term)
                == (core.log.last_index, core.log.last_term)
                and peer.applied == core.log.last_index == len(self.oracle.committed)
                and peer.digest == self.oracle.digest(peer.applied)
            ):
                return f"{name} is not level with {leader.id}"
        return ""


BLOWS: tuple[Callable[[Simulator, Node], None], ...] = (
    Simulator.crash_one,
    Simulator.crash_one,
    Simulator.crash_all,
    Simulator.pause,
    Simulator.pause,
    Simulator.jump_clock,
    Simulator.stall_disk,
    Simulator.fail_disk,
    Simulator.isolate,
    Simulator.isolate,
    Simulator.isolate,
    Simulator.deafen,
    Simulator.mute,
    Simulator.split,
    Simulator.chain,
    Simulator.cut_some,
    Simulator.transfer,
    Simulator.transfer,
)


class Before:
    """What a step is compared with."""

    __slots__ = ("committed", "membership", "role", "term")

    def __init__(self, core: Core) -> None:
        self.term = core.term
        self.role = core.role
        self.committed = core.committed_index
        self.membership = core.membership


@dataclass(slots=True)
class Step:
    """A line of the trace; spelled out only for a failure."""

    id: str
    events: Sequence[Event]
    effects: Effects
    role: Role
    term: int

    def __str__(self) -> str:
        parts = [f"{self.id} {self.role.value} of term {self.term}:"]
        parts += [short(e.rpc if isinstance(e, Receive) else e) for e in self.events]
        if self.effects.persist is not None:
            parts.append(f"| writes {self.effects.persist_number} {short(self.effects.persist)}")
        if self.effects.send:
            parts.append("| sends " + " ".join(short(rpc) for rpc in self.effects.send))
        if self.effects.committed:
            parts.append(f"| applies to {self.effects.committed[-1].index}")
        if self.effects.snapshots or self.effects.restore:
            parts.append(f"| snapshots {self.effects.snapshots} {self.effects.restore}")
        return " ".join(parts)


def short(value: Any) -> str:
    """Like repr, with entries as index/term and the route as sender>receiver."""
    names = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    shown = []
    for name in sorted(names):
        what = getattr(value, name)
        if name in ("sender", "receiver", "data") or what is None or what == ():
            continue
        if name == "entries":
            what = ",".join(f"{e.index}/{e.term}{e.kind.name[0]}" for e in what)
        shown.append(f"{name}={what}")
    route = f"{value.sender}>{value.receiver} " if isinstance(value, Rpc) else ""
    return f"{type(value).__name__}({route}{' '.join(shown)})"


def describe(node: Node) -> str:
    core = node.core
    if core is None:
        return f"{node.id} down, {node.disk.hard_state}, log to {node.disk.last_index}"
    log = core.log
    return (
        f"{node.id} {core.role.value} term {core.term} vote {core.vote} leader {core.leader}"
        f" log {log.compacted_index}..{log.last_index}/{log.last_term}"
        f" committed {core.committed_index} applied {node.applied}"
        f" disk {node.disk.mark.index}..{node.disk.last_index}"
        f" voters {','.join(sorted(core.membership.voters))}"
        f" learners {','.join(sorted(core.membership.learners))}"
        f" progress {core.progress}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.raft.simulator")
    parser.add_argument("--seeds", default="0-99", help="A-B, both included, or one")
    parser.add_argument("--nodes", type=int, help="how many at first; drawn by default")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    failed = []
    steps, began = 0, wall_clock.perf_counter()
    for seed in seeds:
        simulator = Simulator(seed, options.nodes)
        try:
            simulator.run()
        except Violation as violation:
            failed.append(seed)
            print(violation if not options.keep_going else str(violation).splitlines()[0])  # noqa: T201
            if not options.keep_going:
                break
        steps += simulator.steps
    seconds = wall_clock.perf_counter() - began
    print(f"{len(seeds)} seeds, {steps} steps, {seconds:.1f} s; failed: {failed or 'none'}")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
