"""The node's store on a disk that fails at any moment, held to a model.

What was acknowledged is there when it is opened again, in order, and nothing else is;
what was under way is there as a whole or not at all; and a store that failed refuses
everything until then. A longer run: REPL_BROKER_TEST_SEEDS=5000.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest

from repl_broker import journal, parts, storage
from repl_broker.errors import ConfigError, StorageError
from repl_broker.raft.log import Entry, EntryKind, HardState, Snapshot, WriteBatch
from repl_broker.storage import SqliteStorage
from tests.world.disk import SimDisk
from tests.world.files import Fault, Stop

SEEDS = int(os.environ.get("REPL_BROKER_TEST_SEEDS", "40"))
STEPS = 40
# So small that they are full now and then.
JOURNAL_BYTES = (32 << 10, 32 << 10, 24 << 10, 64 << 10)
RECORD_BYTES_MAX, WAL_BYTES_MAX = 16 << 10, 100_000
ROW_BYTES_MAX, PART_BYTES = 2500, 1200  # of a state: those that are larger are in parts
DROP_BYTES = (1, 5000, math.inf)  # in one transaction


@dataclass
class Model:
    """What a store holds."""

    hard_state: HardState = HardState()  # noqa: RUF009  (it is frozen)
    snapshot: Snapshot | None = None
    entries: dict[int, Entry] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    staged: tuple[Snapshot, dict[int, Entry]] | None = None  # in this life

    @property
    def start(self) -> int:
        return self.snapshot.index if self.snapshot else 0

    @property
    def last(self) -> int:
        return max(self.start, *self.entries) if self.entries else self.start

    @property
    def term(self) -> int:
        """Of the last entry."""
        found = self.entries.get(self.last)
        return found.term if found else self.snapshot.term if self.snapshot else 0

    def copy(self) -> Model:
        staged = self.staged and (self.staged[0], dict(self.staged[1]))
        return Model(self.hard_state, self.snapshot, dict(self.entries), dict(self.notes), staged)

    def write(self, *batches: WriteBatch) -> None:
        for batch in batches:
            if batch.truncate_from is not None:
                kept = {i: e for i, e in self.entries.items() if i < batch.truncate_from}
                self.entries = kept
            self.entries.update((e.index, e) for e in batch.entries)
            self.hard_state = batch.hard_state or self.hard_state

    def save_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def begin_install(self, snapshot: Snapshot) -> None:
        self.staged = (snapshot, {})

    def save_part(self, number: int, data: bytes) -> None:
        pass

    def stage_part(self, number: int, data: bytes) -> None:
        pass

    def renew_install(self, snapshot: Snapshot) -> None:
        assert self.staged is not None
        self.staged = (snapshot, self.staged[1])

    def unstage(self) -> None:
        self.staged = None

    def discard(self, bytes_max: int) -> None:
        pass

    def stage(self, entries: Sequence[Entry]) -> None:
        assert self.staged is not None
        self.staged[1].update((e.index, e) for e in entries)

    def install(self) -> None:
        assert self.staged is not None
        self.snapshot, self.entries = self.staged
        self.staged = None

    def drop(self, indexes: list[int], bytes_max: float = math.inf) -> None:
        size = 0
        for count, index in enumerate(i for i in indexes if i in self.entries):
            size += len(self.entries[index].data)
            if count and size > bytes_max:
                break
            del self.entries[index]

    def drop_others(
        self,
        upto: int,
        keep: list[int],
        after: int,
        entries_max: int,
        bytes_max: float = math.inf,
    ) -> None:
        others = [i for i in sorted(self.entries) if after < i <= upto and i not in keep]
        self.drop(others[:entries_max], bytes_max)

    def replace(self, entries: dict[int, bytes]) -> None:
        for index, data in entries.items():
            old = self.entries[index]
            self.entries[index] = Entry(index, old.term, old.kind, data)

    def write_notes(self, notes: dict[str, object]) -> None:
        self.notes.update(notes)
        self.notes = {name: value for name, value in self.notes.items() if value is not None}

    def tidy(self) -> None:
        pass

    @property
    def visible(self) -> tuple[object, ...]:
        entries = [self.entries[i] for i in sorted(self.entries)]
        return self.hard_state, self.snapshot, entries, self.notes


NOTES = ("one", "two")

Call = tuple[str, tuple[object, ...]]


def read(store: SqliteStorage) -> Model:
    """All that it shows, which is to be sound in itself."""
    loaded = store.load()
    start = loaded.snapshot.index if loaded.snapshot else 0
    older = store.history(0, start, 1 << 40) if start else []
    assert all(entry.index <= start for entry in older)
    assert [e.index for e in loaded.entries] == [start + 1 + n for n in range(len(loaded.entries))]
    entries = [*older, *loaded.entries]
    assert [e.index for e in entries] == sorted({e.index for e in entries})
    terms = [entry.term for entry in entries]
    assert terms == sorted(terms), "terms fall"
    assert max(terms, default=0) <= loaded.hard_state.term
    assert store.read([e.index for e in entries]) == {e.index: e.data for e in entries}
    notes = {name: store.note(name) for name in NOTES}
    return Model(
        loaded.hard_state,
        loaded.snapshot,
        {entry.index: entry for entry in entries},
        {name: value for name, value in notes.items() if value is not None},
    )


class Calls:
    """What a replica may ask of its store next, drawn at random."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def draw(self, model: Model) -> Call:
        kinds: list[Callable[[Model], Call]] = [self._append] * 8
        kinds += [self._vote, self._notes, self._tidy, self._tidy, self._begin]
        kinds += [self._part, self._discard, self._discard, self._unstage]
        if model.last > model.start:
            kinds += [self._truncate, self._truncate, self._snapshot, self._snapshot]
        if any(index <= model.start for index in model.entries):
            kinds += [self._drop, self._drop_others, self._replace]
        if model.staged is not None:
            kinds += [self._stage, self._stage, self._install, self._renew]
        return self._chance.choice(kinds)(model)

    def _data(self) -> bytes:
        size = self._chance.choice((0, 10, 100, 100, 3000, 20_000))
        return bytes([self._chance.randrange(256)]) * size

    def _entries(self, first: int, term: int, count: int) -> tuple[Entry, ...]:
        kinds = list(EntryKind)
        return tuple(
            Entry(first + n, term, self._chance.choice(kinds), self._data()) for n in range(count)
        )

    def _append(self, model: Model) -> Call:
        term, last = max(model.hard_state.term, 1), model.last
        hard_state = HardState(term, "n1") if model.hard_state.term < term else None
        batches = []
        for _ in range(self._chance.choice((1, 1, 1, 3))):
            entries = self._entries(last + 1, term, self._chance.choice((1, 1, 1, 2, 2, 5, 5, 70)))
            batches.append(WriteBatch(entries, hard_state))
            last, hard_state = entries[-1].index, None
        return "write", tuple(batches)

    def _truncate(self, model: Model) -> Call:
        first = self._chance.randint(model.start + 1, model.last)
        term = model.hard_state.term + 1
        new = self._entries(first, term, self._chance.randint(0, 3))
        more = self._entries(first + len(new), term, self._chance.randint(0, 2))
        return "write", (WriteBatch(new, HardState(term), first), WriteBatch(more))

    def _vote(self, model: Model) -> Call:
        term = model.hard_state.term + self._chance.randint(1, 2)
        vote = self._chance.choice((None, "n1", "n2"))
        return "write", (WriteBatch((), HardState(term, vote)),)

    def _snapshot(self, model: Model) -> Call:
        index = self._chance.randint(model.start + 1, model.last)
        return "save_snapshot", (
            Snapshot(index, model.entries[index].term, self._data(), b"membership"),
        )

    def _begin(self, model: Model) -> Call:
        index = model.last + self._chance.randint(1, 5)
        return "begin_install", (Snapshot(index, max(model.hard_state.term, 1), self._data()),)

    def _renew(self, model: Model) -> Call:
        assert model.staged is not None
        index = model.staged[0].index + self._chance.randint(0, 5)
        return "renew_install", (Snapshot(index, max(model.hard_state.term, 1), self._data()),)

    def _part(self, model: Model) -> Call:
        """Of a state that is given up, as nothing follows."""
        name = self._chance.choice(("save_part", "stage_part"))
        return name, (0, self._data())

    def _unstage(self, model: Model) -> Call:
        return "unstage", ()

    def _discard(self, model: Model) -> Call:
        return "discard", (self._chance.choice((0, 5000, 1 << 20)),)

    def _stage(self, model: Model) -> Call:
        assert model.staged is not None
        snapshot, entries = model.staged
        last = max(entries, default=0)
        room = snapshot.index - last
        count = min(room, self._chance.choice((1, 3, 70)))
        skip = self._chance.randint(0, max(room - count, 0))
        return "stage", (self._entries(last + skip + 1, 1, count),)

    def _install(self, model: Model) -> Call:
        return "install", ()

    def _older(self, model: Model) -> list[int]:
        older = sorted(index for index in model.entries if index <= model.start)
        return sorted(self._chance.sample(older, self._chance.randint(0, len(older))))

    def _drop(self, model: Model) -> Call:
        return "drop", (self._older(model), self._chance.choice(DROP_BYTES))

    def _drop_others(self, model: Model) -> Call:
        upto = self._chance.randint(0, model.start)
        after, most = self._chance.randint(0, upto), self._chance.choice((1, 3, 1000))
        bytes_max = self._chance.choice(DROP_BYTES)
        return "drop_others", (upto, self._older(model), after, most, bytes_max)

    def _replace(self, model: Model) -> Call:
        return "replace", ({index: self._data() for index in self._older(model)[:5]},)

    def _notes(self, model: Model) -> Call:
        return "write_notes", ({self._chance.choice(NOTES): self._chance.choice((None, 1, "x"))},)

    def _tidy(self, model: Model) -> Call:
        return "tidy", ()


class Run:
    """One store, over the lives of many processes, beside its model."""

    def __init__(self, disk: SimDisk, sizes: random.Random | None = None) -> None:
        self.disk = disk
        self.sizes = sizes  # of journals, within ``small``
        self.model = Model()
        self.store: SqliteStorage | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None

    def open(self) -> None:
        """Without a fault: it must. Perhaps by a version whose journals have another size."""
        self.leave()
        self.disk.limit_bytes = None
        self.disk.start()
        if self.sizes is not None:
            journal.JOURNAL_BYTES = self.sizes.choice(JOURNAL_BYTES)  # type: ignore[misc]
        self.store = SqliteStorage(self.disk.path, "n1")

    def try_to_open(self) -> None:
        """With one: if it says that it cannot, another process may."""
        self.leave()
        self.disk.start()
        if self.sizes is not None:
            journal.JOURNAL_BYTES = self.sizes.choice(JOURNAL_BYTES)  # type: ignore[misc]
        with contextlib.suppress(StorageError, ConfigError):
            self.store = SqliteStorage(self.disk.path, "n1")

    def call(self, call: Call) -> list[Model]:
        """What the store may hold then: it was done, or failed."""
        assert self.store is not None
        name, arguments = call
        before, after = self.model, self.model.copy()
        getattr(after, name)(*arguments)
        try:
            getattr(self.store, name)(*arguments)
        except StorageError:
            for refused in (WriteBatch((), HardState(1 << 40)), WriteBatch(())):
                with pytest.raises(StorageError):
                    self.store.write(refused)
            return [before, after]
        self.model = after
        return []

    def compare(self, possible: Sequence[Model]) -> None:
        assert self.store is not None
        found = read(self.store)
        assert found.visible in [model.visible for model in possible or [self.model]]
        found.staged = None if possible else self.model.staged
        self.model = found

    def leaves_nothing_behind(self) -> None:
        """Whatever was put aside, given up or left by the dead is gone once that is asked for."""
        assert self.store is not None
        self.store.unstage()
        while self.store.discard(5000):
            pass
        rows = self.store._reader.execute("SELECT name FROM sqlite_master")
        tables = {name for (name,) in rows} - {"snapshot_part_new"}  # with the next large state
        has_parts = (
            self.model.snapshot is not None and len(self.model.snapshot.data) > ROW_BYTES_MAX
        )
        assert tables == {
            *("meta", "log", "snapshot", "staged_log", "staged_snapshot"),
            *(["snapshot_part"] if has_parts else []),
        }
        assert self.store._meta()["format"] == (3 if has_parts else 2)
        assert self.store.note("forgotten_bytes") is None
        assert self.store._forgotten.bytes == 0
        self.compare([])


@contextlib.contextmanager
def small() -> Iterator[None]:
    with (
        patch.object(journal, "JOURNAL_BYTES", JOURNAL_BYTES[0]),
        patch.object(journal, "RECORD_BYTES_MAX", RECORD_BYTES_MAX),
        patch.object(storage, "WAL_BYTES_MAX", WAL_BYTES_MAX),
        patch.object(parts, "ROW_BYTES_MAX", ROW_BYTES_MAX),
        patch.object(parts, "PART_BYTES", PART_BYTES),
    ):
        yield


def arm(disk: SimDisk, chance: random.Random) -> None:
    """Something happens within the next operations."""
    match chance.randrange(7):
        case 0 | 1:
            disk.stop_in(chance.choice((1, 2, 3, 5, 10, 20, 40, 80)), "crash")
        case 2:
            disk.stop_in(chance.choice((1, 2, 3, 5, 10, 20, 40, 80)), "kill")
        case 3:
            disk.fail_once("write")
        case 4:
            disk.fail_once("sync")
        case 5:
            disk.fail_once("read")
        case _:
            disk.limit_bytes = disk.used_bytes + chance.choice((0, 5000, 50_000))


def live(seed: int) -> None:
    chance = random.Random(seed)
    disk = SimDisk(chance)
    disk.has_direct_writes = chance.random() < 0.7
    calls = Calls(chance)
    with small(), disk.mounted(), Run(disk, chance) as run:
        run.open()
        for _ in range(STEPS):
            if chance.random() < 0.3:
                arm(disk, chance)
            possible = run.call(calls.draw(run.model))
            ends = bool(possible) or chance.random() < 0.1
            if ends:
                possible = possible or [run.model]
                if chance.random() < 0.3:
                    run.leave()
                if chance.random() < 0.8:
                    chance.choice((disk.crash, disk.kill))()
                while chance.random() < 0.3:
                    arm(disk, chance)
                    run.try_to_open()
                    chance.choice((disk.crash, disk.kill, run.leave))()
                if run.store is not None:
                    disk.kill()
                run.open()
                run.compare(possible)
            elif chance.random() < 0.2 and not disk.has_fault:
                run.compare([])
        disk.kill()
        run.open()
        run.compare([run.model])
        run.leaves_nothing_behind()


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_a_store_holds_what_it_acknowledged_and_no_half_of_anything(first: int) -> None:
    for seed in range(first, min(first + 20, SEEDS)):
        try:
            live(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


SCRIPT: tuple[Call, ...] = (
    ("write", (WriteBatch((Entry(1, 1, EntryKind.NO_OP, b""),), HardState(1, "n1")),)),
    ("write", (WriteBatch(tuple(Entry(n, 1, EntryKind.DATA, b"a" * 99) for n in (2, 3, 4))),)),
    ("write", (WriteBatch((Entry(5, 1, EntryKind.DATA, b"b" * 20_000),)),)),
    ("write", (WriteBatch((Entry(6, 1, EntryKind.DATA, b"c"),)),)),
    ("write", (WriteBatch((Entry(5, 2, EntryKind.NO_OP, b""),), HardState(2), 5), WriteBatch())),
    ("write_notes", ({"one": 1},)),
    ("write", (WriteBatch((Entry(6, 2, EntryKind.DATA, b"d" * 99),)),)),
    ("save_snapshot", (Snapshot(5, 2, b"state" * 1000, b"members"),)),
    ("tidy", ()),
    ("drop", ([1, 3],)),
    ("replace", ({4: b"e"},)),
    ("drop_others", (5, [4, 5], 0, 1000)),
    ("write", (WriteBatch((Entry(7, 2, EntryKind.DATA, b"f" * 99),)),)),
    ("begin_install", (Snapshot(30, 2, b"another state"),)),
    ("stage", ([Entry(20, 1, EntryKind.DATA, b"g" * 5000)],)),
    ("stage", ([Entry(29, 2, EntryKind.DATA, b"h")],)),
    ("renew_install", (Snapshot(30, 2, b"renewed" * 1000),)),
    ("install", ()),
    ("discard", (6000,)),
    ("discard", (1 << 20,)),
    ("write", (WriteBatch((Entry(31, 2, EntryKind.DATA, b"i"),)),)),
    ("tidy", ()),
    ("write", (WriteBatch((Entry(31, 3, EntryKind.NO_OP, b""),), HardState(3, "n2"), 31),)),
    ("begin_install", (Snapshot(40, 3, b"given up"),)),
    ("stage", ([Entry(35, 3, EntryKind.DATA, b"j" * 5000)],)),
    ("unstage", ()),
    ("save_snapshot", (Snapshot(31, 3, b"small again"),)),
    ("discard", (1 << 20,)),
)


def play(seed: int, fault: Callable[[SimDisk], object] | None) -> int:
    """The script, with this armed before it, and again when the store is opened after that.

    How many operations of the disk there were without it."""
    disk = SimDisk(random.Random(seed))
    with small(), disk.mounted(), Run(disk, random.Random(seed)) as run:
        run.open()
        start = disk.operations
        if fault is not None:
            fault(disk)
        for call in SCRIPT:
            if possible := run.call(call):
                break
        else:
            run.leave()
            possible = [run.model]
            if fault is None:
                return disk.operations - start
        disk.kill()
        if fault is not None:
            disk.start()
            fault(disk)
            run.try_to_open()
            disk.crash()
        run.open()
        run.compare(possible)
    return 0


@pytest.mark.parametrize("how", ["crash", "kill"])
def test_a_store_may_be_stopped_at_any_moment_and_again_when_it_is_opened(how: Stop) -> None:
    for moment in range(1, play(0, None) + 1):
        for seed in range(2 if how == "crash" else 1):
            try:
                play(seed, lambda disk: disk.stop_in(moment, how))  # noqa: B023
            except BaseException as error:
                error.add_note(f"{how} at {moment}, seed {seed}")
                raise


@pytest.mark.parametrize("fault", ["write", "sync"])
def test_any_call_to_the_disk_may_fail(fault: Fault) -> None:
    for moment in range(1, play(0, None) + 1):
        try:
            play(moment, lambda disk: disk.fail_in(moment, fault))  # noqa: B023
        except BaseException as error:
            error.add_note(f"{fault} at {moment}")
            raise


def test_a_disk_may_be_full_at_any_size() -> None:
    for room in range(0, 400_000, 4096):
        try:
            play(room, lambda disk: setattr(disk, "limit_bytes", disk.used_bytes + room))  # noqa: B023
        except BaseException as error:
            error.add_note(f"room {room}")
            raise


def test_a_disk_that_lies_about_syncs_is_noticed() -> None:
    """Or these tests would tell nothing."""
    found = 0
    for seed in range(30):
        try:
            play(seed, lambda disk: (setattr(disk, "loses_syncs", True), disk.stop_in(60, "crash")))
        except (AssertionError, StorageError):
            found += 1
    assert found > 10


def entry(index: int) -> WriteBatch:
    return WriteBatch((Entry(index, 1, EntryKind.DATA, b"x" * 10_000),), HardState(index))


def test_a_commit_whose_sync_failed_is_on_disk_once_it_counts() -> None:
    """It is in the page cache when the node starts again, where a mere sync does not write it."""
    for seed in range(20):
        disk = SimDisk(random.Random(seed))
        with disk.mounted(), Run(disk) as run:
            run.open()
            run.call(("write", (entry(1),)))
            disk.fail_once("sync")
            possible = run.call(("write", (entry(2),)))
            assert possible
            disk.kill()
            run.open()
            run.compare(possible)
            run.call(("write", (entry(run.model.last + 1),)))
            disk.crash()
            run.open()
            run.compare([run.model])


# --- errors that are not the disk's ---

PLACES = (
    (storage, "_insert"),
    (storage, "_put_salt"),
    (storage, "_checksum"),
    (SqliteStorage, "_bound_wal"),  # after the commit
    (journal.Journal, "append"),
    (journal.Journal, "begin_anew"),  # after the commit, too
    (journal, "_checksum"),
)
ERRORS = (MemoryError(), OverflowError("too large"), KeyboardInterrupt(), SystemExit(1))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_an_error_of_any_kind_within_a_write_is_the_end_of_the_store(
    owner: Any, name: str, error: BaseException
) -> None:
    """Whatever is done later would rest on a write of which nobody knows what it left."""

    def fail(*_: object) -> None:
        raise error

    met = 0
    ends = StorageError if isinstance(error, Exception) else type(error)
    for number in (1, 4, 7, 10):  # an entry, a truncation, a snapshot, other data
        call = SCRIPT[number]
        disk = SimDisk(random.Random(number))
        with small(), disk.mounted(), Run(disk) as run:
            run.open()
            for earlier in SCRIPT[:number]:
                assert not run.call(earlier)
            assert run.store is not None
            after = run.model.copy()
            getattr(after, call[0])(*call[1])
            with patch.object(owner, name, fail):
                try:
                    getattr(run.store, call[0])(*call[1])
                    continue  # it does not get there
                except ends:
                    met += 1
            for later in (("write", (entry(99),)), ("write_notes", ({"one": 9},)), ("tidy", ())):
                with pytest.raises(StorageError, match="nothing more is acknowledged"):
                    getattr(run.store, later[0])(*later[1])
            possible = [run.model, after]
            run.open()
            run.compare(possible)
    assert met


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("write", WriteBatch((Entry(1, 1 << 70, EntryKind.DATA, b""),))),
        ("write", WriteBatch((Entry(1, 1, EntryKind.DATA, b""),), HardState(1 << 70))),
        ("write", WriteBatch((), HardState(1, "\ud800"))),
        ("write", WriteBatch((Entry(1, 1, EntryKind.DATA, "text"),))),  # type: ignore[arg-type]
        ("write_notes", {"one": object()}),
        ("save_snapshot", Snapshot(1 << 70, 1, b"", b"")),
    ],
)
def test_what_cannot_be_written_is_the_end_of_the_store(name: str, argument: object) -> None:
    disk = SimDisk(random.Random(1))
    with disk.mounted(), Run(disk) as run:
        run.open()
        assert run.store is not None
        with pytest.raises(StorageError, match="failed to write"):
            getattr(run.store, name)(argument)
        with pytest.raises(StorageError, match="failed to write"):
            run.store.write(entry(1))
        run.open()
        run.compare([run.model])
