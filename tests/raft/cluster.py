"""A few Cores, their RPCs delivered by hand: what the direct tests are written in.

Time moves only by ``advance``; RPCs wait in ``flying`` until a test delivers,
drops or repeats them; a write is on disk at once, unless its node is in
``slow``. For all that at random there is the simulator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from repl_broker.raft.core import (
    ChangeMembership,
    Compact,
    Core,
    CoreOptions,
    Effects,
    Event,
    MembershipChange,
    Persisted,
    Propose,
    Read,
    Receive,
    Refusal,
    Role,
    SnapshotInstalled,
    SnapshotSent,
    Transfer,
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
from repl_broker.raft.rpc import AppendReply, Heartbeat, HeartbeatReply, Rpc, SnapshotReceived
from tests.raft.simulator import Disk, Restore, SaveSnapshot

OPTIONS = CoreOptions(
    election_timeout_seconds=1.0, heartbeat_interval_seconds=0.1, commit_delay_seconds=0.0
)
AnyRpc = TypeVar("AnyRpc", bound=Rpc)


class Chosen:
    """Randomness that a test chooses: always so far from the lower to the upper bound."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def uniform(self, a: float, b: float, /) -> float:
        return a + (b - a) * self.fraction


def member(name: str, *, voter: bool = True) -> Member:
    return Member(name, f"{name}:4081", f"http://{name}", voter)


def members(voters: Iterable[str], learners: Iterable[str] = ()) -> Membership:
    all_members = [member(name) for name in voters]
    all_members += [member(name, voter=False) for name in learners]
    return Membership(tuple(sorted(all_members)))


def entries_of(terms: Sequence[int], start: int = 1) -> list[Entry]:
    """Data entries of these terms; what is equal in index and term is equal."""
    return [
        Entry(index, term, EntryKind.DATA, b"%d/%d" % (index, term))
        for index, term in enumerate(terms, start)
    ]


def accepted(index: int, *, term: int, sender: str = "n2", receiver: str = "n1") -> AppendReply:
    return AppendReply(
        sender=sender,
        receiver=receiver,
        term=term,
        accepted=True,
        index=index,
        hint_index=0,
        hint_term=0,
    )


class Cluster:
    """Nodes n1, n2, … of which the first ``size`` are voters; n1 times out first."""

    def __init__(
        self,
        size: int = 3,
        *,
        learners: int = 0,
        outside: int = 0,
        logs: dict[str, Sequence[int]] | None = None,
        terms: dict[str, int] | None = None,
        options: CoreOptions = OPTIONS,
    ) -> None:
        self.now = 0.0
        self.options = options
        names = [f"n{i}" for i in range(1, size + learners + outside + 1)]
        self.membership = members(names[:size], names[size : size + learners])
        self.flying: list[Rpc] = []
        self.slow: set[str] = set()  # whose writes wait for ``persist``
        self.unwritten: dict[str, list[tuple[int, WriteBatch]]] = defaultdict(list)
        self.applied: dict[str, list[Entry]] = defaultdict(list)
        self.taken: dict[int, tuple[int, int]] = {}  # token: index, term
        self.refused: dict[int, Refusal] = {}
        self.readable: dict[int, int] = {}  # token: index
        self.disks: dict[str, Disk] = {}
        self.cores: dict[str, Core] = {}
        self._random = {name: Chosen(i / len(names)) for i, name in enumerate(names)}
        self._token = 0
        for name in names:
            disk = self.disks[name] = Disk()
            if name in self.membership.ids:
                disk.mark = SnapshotMark(0, 0, self.membership)
            log = entries_of((logs or {}).get(name, ()))
            term = (terms or {}).get(name, max((entry.term for entry in log), default=0))
            disk.write(WriteBatch(tuple(log), HardState(term)))
            self.start(name)

    def __getitem__(self, name: str) -> Core:
        return self.cores[name]

    # --- nodes ---

    def start(self, name: str) -> None:
        """Also after a crash: what was not on disk is gone."""
        disk = self.disks[name]
        self.unwritten[name].clear()
        self.applied[name].clear()
        self.cores[name] = Core(
            name,
            self.options,
            self._random[name],
            self.now,
            hard_state=disk.hard_state,
            mark=disk.mark,
            entries=disk.load(),
        )

    def step(self, name: str, *events: Event) -> Effects:
        core = self.cores[name]
        effects = core.step(self.now, events)
        assert effects.deadline > self.now
        self._take(name, effects)
        if name not in self.slow:
            self.persist(name)
        return effects

    def _take(self, name: str, effects: Effects) -> None:
        self.flying += effects.send
        self.applied[name] += effects.committed
        self.taken |= {token: (index, term) for token, index, term in effects.taken}
        self.refused |= dict(effects.refused)
        self.readable |= dict(effects.readable)
        if effects.persist is not None:
            self.unwritten[name].append((effects.persist_number, effects.persist))

    def persist(self, name: str) -> None:
        """All that waits for the disk of ``name`` is written, and what that leads to."""
        while self.unwritten[name]:
            number, batch = self.unwritten[name].pop(0)
            self.disks[name].write(batch)
            self._take(name, self.cores[name].step(self.now, [Persisted(number)]))

    def receive(self, rpc: Rpc) -> Effects:
        return self.step(rpc.receiver, Receive(rpc))

    # --- the network ---

    def deliver(self, *, drop: Callable[[Rpc], bool] = lambda rpc: False) -> None:
        """Deliver what flies, in order, and what that leads to, until all is still."""
        for _ in range(10_000):
            if not self.flying:
                return
            rpc = self.flying.pop(0)
            if not drop(rpc):
                self.receive(rpc)
        raise AssertionError("the nodes never fall silent")

    def deliver_only(self, *names: str) -> None:
        """Deliver between these; what goes to or comes from others is lost."""
        self.deliver(drop=lambda rpc: not {rpc.sender, rpc.receiver} <= set(names))

    def fly(self, kind: type[AnyRpc]) -> list[AnyRpc]:
        """Take the RPCs of that kind out of the air."""
        found = [rpc for rpc in self.flying if isinstance(rpc, kind)]
        self.flying = [rpc for rpc in self.flying if not isinstance(rpc, kind)]
        return found

    def snapshot(self, sender: str, receiver: str) -> SnapshotReceived:
        """What arrives when the driver has sent its newest snapshot."""
        core, mark = self.cores[sender], self.disks[sender].mark
        return SnapshotReceived(sender=sender, receiver=receiver, term=core.term, mark=mark)

    def install(self, name: str, mark: SnapshotMark) -> Effects:
        self.disks[name].write(Restore(mark, 0))
        return self.step(name, SnapshotInstalled(mark))

    def compact(self, name: str, index: int) -> None:
        core = self.cores[name]
        term = core.log.term(index)
        assert term is not None
        mark = SnapshotMark(index, term, core.membership_at(index))
        self.disks[name].write(SaveSnapshot(mark, 0))
        self.step(name, Compact(index))

    def send_snapshot(self, sender: str, receiver: str) -> None:
        """The whole way: chunks, the last one, the installing, the answer."""
        effects = self.receive(self.snapshot(sender, receiver))
        self.step(sender, SnapshotSent(receiver))
        if effects.restore is not None:
            self.install(receiver, effects.restore)
        self.deliver()

    # --- time ---

    def advance(
        self, seconds: float, *names: str, drop: Callable[[Rpc], bool] | None = None
    ) -> None:
        """Time passes, in small steps, with all delivered at once, but for what ``drop`` says.

        With ``names``, only these live and reach each other."""
        alive = set(names or self.cores)

        def lost(rpc: Rpc) -> bool:
            return not {rpc.sender, rpc.receiver} <= alive or (drop is not None and drop(rpc))

        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.05)
            for name in sorted(alive):
                self.step(name)
            self.deliver(drop=lost)

    def elect(self, name: str, *reached: str) -> None:
        """``name`` times out and stands; only it and ``reached`` (all by default) hear."""
        self.now += 2.0  # longer than anyone has heard of a leader
        others = set(reached or self.cores) | {name}
        self.step(name)
        self.deliver(drop=lambda rpc: not {rpc.sender, rpc.receiver} <= others)
        assert self.cores[name].role is Role.LEADER

    # --- clients ---

    def propose(self, name: str, data: bytes = b"x") -> int:
        self._token += 1
        self.step(name, Propose(self._token, data))
        return self._token

    def read(self, name: str) -> int:
        self._token += 1
        self.step(name, Read(self._token))
        return self._token

    def transfer(self, name: str, target: str) -> int:
        self._token += 1
        self.step(name, Transfer(self._token, target))
        return self._token

    def change(self, name: str, change: MembershipChange, *, forced: bool = False) -> int:
        self._token += 1
        self.step(name, ChangeMembership(self._token, change, forced))
        return self._token

    # --- what there is to see ---

    def log(self, name: str) -> list[int]:
        """The terms of the entries that it has."""
        log = self.cores[name].log
        return [entry.term for entry in log.slice(log.first_index, log.last_index)]

    def leaders(self) -> list[str]:
        return [name for name, core in self.cores.items() if core.role is Role.LEADER]

    def heartbeat(self, leader: str) -> None:
        """One round of heartbeats and what they lead to."""
        self.now += self.options.heartbeat_interval_seconds
        self.step(leader)
        self.deliver()


def is_heartbeat(rpc: Rpc) -> bool:
    return isinstance(rpc, Heartbeat | HeartbeatReply)


def to(receiver: str, rpc: AnyRpc) -> AnyRpc:
    """The same, for another receiver."""
    return replace(rpc, receiver=receiver)
