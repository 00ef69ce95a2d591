"""Any order of events on a disk that is killed, or fails, at any job: what is left is whole.

The product's own Disk over the product's own store, with a writer that runs a job when the
schedule says so. A model of some lines says what a reopened store may hold: what was reported
durable, and of what was decided since as much as had its turn, in its order.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker.command import Configure, Publish, Retention, Settings
from repl_broker.disk import Disk, _Job
from repl_broker.errors import StorageError
from repl_broker.raft.log import Entry, EntryKind, HardState, Membership, Snapshot, WriteBatch
from repl_broker.soundness import load_sound
from repl_broker.state import BrokerState
from repl_broker.storage import Loaded, SqliteStorage, Storage
from repl_broker.wire import decode_entry, encode_command, encode_entry
from repl_broker.writer import Done, Writer
from tests.stores import in_place

EVENTS = 25  # of a life
LIVES = 3
FAILS = 0.03  # of the jobs
SEEDS = 40
KEPT = 4  # messages that are retained
FAILURES: list[Callable[[], Exception]] = [
    lambda: OSError(5, "Input/output error"),
    lambda: MemoryError(),
    lambda: ValueError("a mistake of ours"),
]


class Hand:
    """A writer that moves when it is told to: a job is done at one moment, and heard of later."""

    is_quick = False
    busy_seconds = 0.0

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.next: list[Callable[[], None]] = []  # to be done, or to be heard

    def submit(self, job: Callable[[], None], done: Done, *, quick: bool = False) -> None:
        assert not self.next, "one at a time"
        self.next.append(lambda: self._do(job, done))

    def move(self) -> None:
        if self.next:
            self.next.pop()()

    def _do(self, job: Callable[[], None], done: Done) -> None:
        error: Exception | None = None
        fails = self.chance.random() < FAILS
        try:
            if fails and self.chance.random() < 0.5:
                raise self.chance.choice(FAILURES)()
            job()
            if fails:
                raise self.chance.choice(FAILURES)()
        except Exception as raised:  # noqa: BLE001  the disk decides
            error = raised
        self.next.append(lambda: done(error))
        if self.chance.random() < 0.6:
            self.move()

    async def close(self) -> None:
        pass


def data_of(index: int, term: int) -> bytes:
    return b"%d of term %d" % (index, term)


def message(index: int, term: int) -> Entry:
    command = Publish("chat", (data_of(index, term),), None, b"")
    return Entry(index, term, EntryKind.DATA, encode_entry(index, [encode_command(command)]))


def first() -> Entry:
    settings = Settings(True, Retention(KEPT, 86_400, 64 << 20), 100, 86_400)
    return Entry(1, 1, EntryKind.DATA, encode_entry(1, [encode_command(Configure(settings))]))


def state_of(log: list[Entry]) -> BrokerState:
    state = BrokerState()
    for entry in log:
        state.apply(entry.index, *decode_entry(entry.data))
    return state


class Moment(NamedTuple):
    """What the store should say after all that was decided so far, and nothing else."""

    log: list[Entry]  # from the first entry on
    term: int


class Life:
    """One run of a node, from a store to a kill. The log is as the core has it: what is
    committed never changes, the rest may be taken back."""

    def __init__(self, folder: Path, chance: random.Random, log: list[Entry], term: int) -> None:
        self.folder = folder
        self.chance = chance
        self.storage = SqliteStorage(folder, "n1")
        self.hand = Hand(chance)
        self.disk = make_disk(self.storage, self.hand, self._durable)
        self.state = load_sound(self.storage)[1]
        self.disk.loaded(len(log))
        self.log = log
        self.committed = self.state.applied_index
        self.term = term
        self.moments = [Moment([*log], term)]
        self.written: dict[int, int] = {}  # the moment, by the number of the write
        self.acknowledged = 0  # the newest moment that was reported durable
        self.receiving = self.installing = False
        self.faults: list[str] = []

    def _durable(self, number: int, size: int) -> None:
        self.acknowledged = self.written[number]

    # --- what is decided ---

    def _write(self, batch: WriteBatch) -> None:
        self.written[len(self.moments)] = len(self.moments)
        self.disk.append(len(self.moments), batch)
        self.moments.append(Moment([*self.log], self.term))

    def _add(self, count: int) -> tuple[Entry, ...]:
        start = len(self.log) + 1
        entries = [message(index, self.term) for index in range(start, start + count)]
        self.log += entries
        return tuple(entries)

    async def append(self) -> None:
        if not self.installing:
            self._write(WriteBatch(self._add(self.chance.randint(1, 3))))

    async def truncate(self) -> None:
        """Another leads, and has other entries from some place on."""
        if self.installing or self.committed == len(self.log):
            return
        self.term += 1
        start = self.chance.randint(self.committed + 1, len(self.log))
        del self.log[start - 1 :]
        entries = self._add(self.chance.randint(0, 3))
        self._write(WriteBatch(entries, HardState(self.term), start))

    async def commit(self) -> None:
        """A majority has more; this disk perhaps not."""
        if self.receiving:
            return
        before = self.committed
        self.committed = self.chance.randint(before, len(self.log))
        for entry in self.log[before : self.committed]:
            self.state.apply(entry.index, *decode_entry(entry.data))

    async def compact(self) -> None:
        state, generation = self.state, self.disk.generation
        if not state.applied_index:
            return
        term = self.log[state.applied_index - 1].term
        members = Membership().encode()
        snapshot = Snapshot(state.applied_index, term, state.snapshot(), members)
        dead = state.take_dead(state.applied_index)
        await self.disk.save_snapshot(snapshot, generation)
        await self.disk.drop(dead, generation)

    async def install(self) -> None:
        """The leader's log is longer, and another above what is committed here."""
        if self.receiving:
            return
        self.receiving = True  # what it sends is of what is committed now
        self.term += 1
        self._write(WriteBatch((), HardState(self.term)))
        start, log = len(self.log), self.log[: self.committed]
        count = start - len(log) + self.chance.randint(1, 3)
        log += [message(len(log) + 1 + n, self.term) for n in range(count)]
        state = state_of(log)
        members = Membership().encode()
        snapshot = Snapshot(len(log), self.term, state.snapshot(), members)
        await self.disk.begin_install(snapshot)
        await self.disk.stage([log[index - 1] for index in state.live_entries()])
        self.installing = True
        moment = len(self.moments)
        self.moments.append(Moment(log, self.term))

        def switch() -> None:
            self.log, self.state, self.committed = [*log], state, len(log)
            self.receiving = self.installing = False
            self.acknowledged = moment

        self.disk.install(len(log), switch)

    async def give_up(self) -> None:
        if self.chance.random() < 0.3 and not self.receiving:
            self.disk.unstage()

    async def read(self) -> None:
        """What is there is what was agreed on; what is retained is there."""
        generation, state = await self.disk.settled(), self.state
        live = state.live_entries()
        wanted = {index: self.log[index - 1].data for index in live}
        found = await self.disk.read(live)
        if wrong := [index for index in found if found[index] != wanted[index]]:
            self.faults.append(f"entries {wrong} are not what was agreed on")
        missing = set(live) & set(state.live_entries()) - found.keys()
        if await self.disk.settled() == generation and missing:
            self.faults.append(f"entries {sorted(missing)} are not there")

    # --- what happens ---

    async def run(self) -> None:
        events = [self.append, self.append, self.truncate, self.commit, self.commit]
        events += [self.compact, self.install, self.give_up, self.read]

        async def tolerant(event: Callable[[], Awaitable[None]]) -> None:
            with suppress(StorageError):
                await event()

        async with trio.open_nursery() as nursery:
            for _ in range(EVENTS):
                if self.disk.failure is None:
                    nursery.start_soon(tolerant, self.chance.choice(events))
                await wait_all_tasks_blocked()
                for _ in range(self.chance.choice([0, 0, 1, 1, 2, 5])):
                    self.hand.move()
                    await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    def check(self, folder: Path) -> tuple[list[Entry], int]:
        """The store as the kill left it. The log and the term with which the next life begins."""
        assert not self.faults, self.faults[0]
        storage = SqliteStorage(folder, "n1")
        try:
            loaded, state = load_sound(storage)
            start = state.applied_index
            found = [
                moment for moment in self.moments[self.acknowledged :] if is_of(loaded, moment)
            ]
            assert found, "it says nothing of what was decided since what was reported durable"
            log = found[0].log
            assert state.digest() == state_of(log[:start]).digest()
            live = state.live_entries()
            assert storage.read(live) == {index: log[index - 1].data for index in live}
        finally:
            storage.close()
        return [*log], loaded.hard_state.term


def is_of(loaded: Loaded, moment: Moment) -> bool:
    start = loaded.snapshot.index if loaded.snapshot else 0
    is_same = loaded.entries == moment.log[start:] and loaded.hard_state.term == moment.term
    return is_same and start <= len(moment.log)


def make_disk(storage: Storage, writer: Writer, on_durable: Callable[[int, int], None]) -> Disk:
    return Disk(storage, writer, in_place, on_durable=on_durable)


async def lives(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = folder / str(seed)
    storage = SqliteStorage(folder, "n1")
    log, term = [first()], 1
    storage.write(WriteBatch((log[0],), HardState(1)))
    storage.close()
    for number in range(LIVES):
        life = Life(folder, chance, log, term)
        await life.run()
        killed = folder.with_name(f"{seed}-{number}")
        shutil.copytree(folder, killed)  # as the system has it when the process is gone
        life.storage.close()
        shutil.rmtree(folder)
        folder = killed
        try:
            log, term = life.check(folder)
        except (AssertionError, StorageError, LookupError) as error:
            raise AssertionError(f"seed {seed}, life {number}: {error}") from error
    shutil.rmtree(folder)


def run_seeds(folder: Path, seeds: range) -> None:
    for seed in seeds:
        trio.run(lives, folder, seed)


@pytest.mark.parametrize("start", range(0, SEEDS, 10))
def test_whatever_is_killed_is_whole_and_has_what_was_reported_durable(
    tmp_path: Path, start: int
) -> None:
    run_seeds(tmp_path, range(start, start + 10))


# --- it finds what is put back ---


def overtaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots go ahead of the log that waits."""

    async def save(disk: Disk, snapshot: Snapshot, generation: int) -> None:
        disk._queue.appendleft(_Job(lambda: disk._storage.save_snapshot(snapshot)))
        disk._advance()

    monkeypatch.setattr(Disk, "save_snapshot", save)


def unfenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was planned for the log before is run on the one that took its place."""
    run = Disk._run

    async def run_always(disk: Disk, call: Callable[[], object], generation: object = None) -> None:
        await run(disk, call)

    monkeypatch.setattr(Disk, "_run", run_always)


def reading_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the disk is no matter to who reads."""
    monkeypatch.setattr(Disk, "_waits_from", lambda disk: float("inf"))


def going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that failed is left out, and the next is done."""
    monkeypatch.setattr(Disk, "_fail", lambda disk, error: StorageError(str(error)))


def half_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits while store and memory are of two moments."""

    async def settled(disk: Disk) -> int:
        return 0

    monkeypatch.setattr(Disk, "settled", settled)


def unordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided last is done first."""
    add = Disk._add

    def add_first(disk: Disk, *arguments: Any) -> None:
        add(disk, *arguments)
        disk._queue.rotate(1)

    monkeypatch.setattr(Disk, "_add", add_first)


@pytest.mark.parametrize(
    "fault", [overtaking, unfenced, reading_through, going_on, half_switched, unordered]
)
def test_a_fault_that_is_put_back_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"seed \d+, life \d"):
        run_seeds(tmp_path, range(SEEDS))
