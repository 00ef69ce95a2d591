"""The stores: one conformance suite for both, then what SQLite alone can do wrong."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from repl_broker.errors import ConfigError, StorageError, StoreLockedError
from repl_broker.parts import parts_of
from repl_broker.raft.log import NUMBER_MAX, Entry, EntryKind, HardState, Snapshot, WriteBatch
from repl_broker.storage import (
    PAGE_BYTES,
    Identity,
    Loaded,
    MemoryStorage,
    SqliteStorage,
    Storage,
    StoreCopy,
    _meta_checksum,
    copy_store,
)
from tests.raft.power_loss import Image, image, put

Reopen = Callable[[], Storage]
LARGE = 70_000  # bytes: an entry of that size does not go into the journal


def entry(index: int, data: bytes = b"data", term: int = 1) -> Entry:
    return Entry(index, term, EntryKind.DATA, data)


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the same store, again and again."""
    opened: list[Storage] = []
    memory = MemoryStorage(Identity.draw("n1"))

    def open_again() -> Storage:
        if opened:
            opened.pop().close()
        opened.append(memory if request.param == "memory" else SqliteStorage(tmp_path, "n1"))
        return opened[0]

    yield open_again
    for storage in opened:
        storage.close()


# --- conformance ---


def test_a_new_store_is_empty(reopen: Reopen) -> None:
    """RAFT.md scenario 30: no term, no vote, no log."""
    assert reopen().load() == Loaded(HardState(0, None), None, [])


def test_what_was_written_is_there_after_reopening(reopen: Reopen) -> None:
    """RAFT.md scenario 30: any bytes, and terms that jump."""
    entries = (entry(1, b"a"), entry(2, b"b\0\xff", term=3))
    reopen().write(WriteBatch(entries, HardState(3, "n1")))
    assert reopen().load() == Loaded(HardState(3, "n1"), None, list(entries))


def test_the_greatest_term_that_a_peer_may_name_can_be_kept(reopen: Reopen) -> None:
    """RAFT.md scenarios 30, 49: and the next one, for who stands after it."""
    for term in (NUMBER_MAX, NUMBER_MAX + 1):
        reopen().write(WriteBatch(hard_state=HardState(term, "n1")))
        assert reopen().load().hard_state == HardState(term, "n1")


def test_a_write_without_hard_state_leaves_it(reopen: Reopen) -> None:
    """RAFT.md scenario 30: most writes are entries only."""
    storage = reopen()
    storage.write(WriteBatch(hard_state=HardState(7, "n1")))
    storage.write(WriteBatch((entry(1),)))
    assert reopen().load().hard_state == HardState(7, "n1")


def test_truncation_removes_the_suffix_before_new_entries_are_added(reopen: Reopen) -> None:
    """RAFT.md scenario 30: in one write."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i) for i in range(1, 6))))
    storage.write(WriteBatch((entry(3, b"new", term=2),), truncate_from=3))
    assert reopen().load().entries == [entry(1), entry(2), entry(3, b"new", term=2)]


def test_the_log_starts_above_the_snapshot(reopen: Reopen) -> None:
    """RAFT.md scenario 30: what it covers is not loaded."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i) for i in range(1, 6))))
    storage.save_snapshot(Snapshot(3, 1, b"state"))
    loaded = reopen().load()
    assert loaded.snapshot == Snapshot(3, 1, b"state")
    assert loaded.entries == [entry(4), entry(5)]


def test_a_newer_snapshot_replaces_the_older(reopen: Reopen) -> None:
    """RAFT.md scenario 30: there is one."""
    storage = reopen()
    storage.write(WriteBatch((entry(1), entry(2))))
    storage.save_snapshot(Snapshot(1, 1, b"old"))
    storage.save_snapshot(Snapshot(2, 1, b"new"))
    assert reopen().load().snapshot == Snapshot(2, 1, b"new")


def test_entries_below_the_snapshot_can_still_be_read(reopen: Reopen) -> None:
    """RAFT.md scenario 30: history is read from the log."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i, b"%d" % i) for i in range(1, 6))))
    storage.save_snapshot(Snapshot(5, 1, b"state"))
    assert reopen().read([4, 2]) == {2: b"2", 4: b"4"}


def test_dropped_entries_are_gone_and_others_stay(reopen: Reopen) -> None:
    """RAFT.md scenario 30: in ranges and alone."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i, b"%d" % i) for i in range(1, 10))))
    storage.drop([2, 3, 7])
    assert sorted(reopen().read(range(1, 10))) == [1, 4, 5, 6, 8, 9]


def test_dropping_stops_at_what_would_be_too_much_for_one_transaction(reopen: Reopen) -> None:
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i, b"x" * 100_000) for i in range(1, 8))))
    assert storage.drop([1, 2, 3, 9], 250_000) == 2
    assert sorted(storage.read(range(10))) == [3, 4, 5, 6, 7]
    assert storage.drop([2, 3, 9], 1) == 3, "one at least, and what is not there costs nothing"
    assert sorted(storage.read(range(10))) == [4, 5, 6, 7]
    assert storage.drop_others(7, [5], 0, 100, 250_000) == 6
    assert sorted(storage.read(range(10))) == [5, 7]
    assert storage.drop_others(7, [5], 6, 100, 250_000) == 7
    assert storage.drop([], 1) == 0
    assert sorted(reopen().read(range(10))) == [5]


def test_drop_others_keeps_what_is_named_and_what_is_above(reopen: Reopen) -> None:
    """RAFT.md scenario 30: the other way round."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i) for i in range(1, 10))))
    assert storage.drop_others(7, [2, 5, 9], 0, 100) == 7
    assert sorted(reopen().read(range(1, 10))) == [2, 5, 8, 9]


def test_others_are_dropped_in_pieces_up_to_where_it_is_said(reopen: Reopen) -> None:
    """RAFT.md scenario 30: however many there are, nothing waits for all of them."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i) for i in range(1, 13))))
    keep, after, pieces = [3, 9, 12], 0, 0
    while after < 11:
        before = len(storage.read(range(20)))
        after, pieces = storage.drop_others(11, keep, after, 2), pieces + 1
        assert before - len(storage.read(range(20))) <= 2
    assert [*storage.read(range(20))] == keep
    assert pieces >= 5


def test_replaced_entries_have_their_new_data(reopen: Reopen) -> None:
    """RAFT.md scenario 30: and their term and kind."""
    storage = reopen()
    storage.write(WriteBatch((entry(1, b"long"), entry(2, b"other"))))
    storage.replace({1: b"l"})
    assert reopen().read([1, 2]) == {1: b"l", 2: b"other"}
    assert reopen().load().entries == [entry(1, b"l"), entry(2, b"other")]


def test_identity_lasts(reopen: Reopen) -> None:
    """RAFT.md scenario 30: it is drawn once."""
    identity = reopen().identity
    assert reopen().identity == identity
    assert len(identity.epoch) == 8
    assert identity.node_id == "n1"


def test_housekeeping_loses_nothing(reopen: Reopen) -> None:
    """RAFT.md scenario 30: it may come at any time."""
    storage = reopen()
    storage.write(WriteBatch((entry(1),)))
    storage.tidy()
    storage.write(WriteBatch((entry(2),)))
    assert reopen().load().entries == [entry(1), entry(2)]
    assert reopen().bytes > 0


INDEXES = st.integers(1, 12)
DATA = st.binary(max_size=5)
TERMS = st.integers(1, 3)
VOTES = st.sampled_from([None, "n1", "n2"])


class TwoStores(RuleBasedStateMachine):
    """Memory and SQLite, asked for the same; what they give back must be the same, too."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(prefix="stores")
        self.disk = SqliteStorage(Path(self.folder.name), "n1")
        self.memory = MemoryStorage(self.disk.identity)

    @property
    def snapshot_index(self) -> int:
        return self.memory.snapshot.index if self.memory.snapshot else 0

    @property
    def last_index(self) -> int:
        return max(self.memory.entries, default=0)

    def do(self, act: Callable[[Storage], object]) -> None:
        for storage in (self.disk, self.memory):
            act(storage)

    @rule(data=st.lists(DATA, max_size=4), term=TERMS, vote=VOTES)
    def append(self, data: list[bytes], term: int, vote: str | None) -> None:
        last = max(self.last_index, self.snapshot_index)
        entries = tuple(entry(last + i, each, term) for i, each in enumerate(data, 1))
        self.do(lambda s: s.write(WriteBatch(entries, HardState(term, vote)), WriteBatch()))

    @rule(data=st.lists(DATA, min_size=1, max_size=4), term=TERMS, count=st.integers(1, 4))
    def append_to_journal(self, data: list[bytes], term: int, count: int) -> None:
        last = max(self.last_index, self.snapshot_index)
        entries = [entry(last + i, each, term) for i, each in enumerate(data, 1)]
        batches = [WriteBatch(tuple(entries[:count])), WriteBatch(tuple(entries[count:]))]
        assert self.disk.is_quick(*batches)
        self.do(lambda s: s.write(*batches))

    @rule(index=INDEXES, data=st.none() | DATA)
    def truncate(self, index: int, data: bytes | None) -> None:
        index = max(self.snapshot_index + 1, min(index, self.last_index + 1))
        entries = () if data is None else (entry(index, data),)
        self.do(lambda s: s.write(WriteBatch(entries, truncate_from=index)))

    @rule(index=INDEXES, data=DATA)
    def save_snapshot(self, index: int, data: bytes) -> None:
        index = max(self.snapshot_index, min(index, self.last_index))
        self.do(lambda s: s.save_snapshot(Snapshot(index, 1, data, data)))

    @rule(index=INDEXES, data=DATA, staged=st.sets(INDEXES, max_size=3))
    def install(self, index: int, data: bytes, staged: set[int]) -> None:
        covered = [entry(i, data) for i in sorted(staged) if i <= index]
        self.do(lambda s: s.begin_install(Snapshot(index, 2, data)))
        self.do(lambda s: s.stage(covered))
        self.do(lambda s: s.install())

    @rule(index=INDEXES, data=DATA, staged=st.sets(INDEXES, max_size=3))
    def renew(self, index: int, data: bytes, staged: set[int]) -> None:
        covered = [entry(i, data) for i in sorted(staged) if i < index]
        self.do(lambda s: s.begin_install(Snapshot(index - 1, 2, b"first")))
        self.do(lambda s: s.stage(covered))
        self.do(lambda s: s.renew_install(Snapshot(index, 2, data)))
        self.do(lambda s: s.stage([entry(index, data)]))
        self.do(lambda s: s.install())

    @rule(index=INDEXES, data=DATA)
    def give_up_staging(self, index: int, data: bytes) -> None:
        self.do(lambda s: s.begin_install(Snapshot(index, 2, data)))
        self.do(lambda s: s.stage([entry(index, data)]))
        self.do(lambda s: s.unstage())

    @rule()
    def discard(self) -> None:
        self.do(lambda s: s.discard(10))

    @rule(indexes=st.sets(INDEXES), bytes_max=st.integers(0, 12) | st.just(math.inf))
    def drop(self, indexes: set[int], bytes_max: float) -> None:
        covered = sorted(i for i in indexes if i <= self.snapshot_index)
        counts: list[int] = []
        self.do(lambda s: counts.append(s.drop(covered, bytes_max)))
        assert len({*counts}) == 1
        assert counts[0] or not covered

    @rule(keep=st.sets(INDEXES), bytes_max=st.integers(0, 12) | st.just(math.inf))
    def drop_others(self, keep: set[int], bytes_max: float) -> None:
        upto, done = self.snapshot_index, list[int]()
        self.do(lambda s: done.append(s.drop_others(upto, sorted(keep), 0, 100, bytes_max)))
        assert len({*done}) == 1

    @rule(index=INDEXES, data=DATA)
    def replace(self, index: int, data: bytes) -> None:
        if index in self.memory.entries:
            self.do(lambda s: s.replace({index: data}))

    @rule()
    def tidy(self) -> None:
        self.do(lambda s: s.tidy())

    @rule()
    def reopen(self) -> None:
        self.disk.close()
        self.disk = SqliteStorage(Path(self.folder.name), "n1")

    @rule()
    def kill(self) -> None:
        """What is on the disk is found by the next, in another folder."""
        old = self.folder
        self.folder = TemporaryDirectory(prefix="stores")
        put(image(Path(old.name)), Path(self.folder.name))
        self.disk.close()
        old.cleanup()
        self.disk = SqliteStorage(Path(self.folder.name), "n1")

    @invariant()
    def they_are_equal(self) -> None:
        assert self.disk.load() == self.memory.load()
        assert self.disk.read(range(30)) == self.memory.read(range(30))
        for bytes_max in (1, 12, 1000):
            assert self.disk.history(1, 9, bytes_max) == self.memory.history(1, 9, bytes_max)
        assert self.disk.identity == self.memory.identity
        assert [*self.disk._pending] == sorted(self.disk._pending)

    def teardown(self) -> None:
        self.disk.close()
        self.folder.cleanup()


def test_both_stores_do_the_same_whatever_they_are_asked() -> None:
    """RAFT.md scenario 30: in any order; simulations run on the one, nodes on the other."""
    run_state_machine_as_test(
        TwoStores, settings=settings(max_examples=30, stateful_step_count=20, deadline=None)
    )


# --- conformance: a snapshot that comes from a peer ---


def test_history_gives_what_a_snapshot_covers_in_pieces(reopen: Reopen) -> None:
    """RAFT.md scenario 30: bounded, in order, with holes."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i, b"x" * 100) for i in range(1, 8))))
    storage.drop([2, 3])
    assert [e.index for e in storage.history(0, 6, 250)] == [1, 4]
    assert [e.index for e in storage.history(4, 6, 1)] == [5]
    assert [e.index for e in storage.history(5, 6, 1000)] == [6]
    assert storage.history(6, 6, 1000) == []


def test_an_installed_snapshot_takes_the_place_of_the_log(reopen: Reopen) -> None:
    """RAFT.md scenarios 30, 32: the conflicting log is discarded, the configuration restored."""
    storage = reopen()
    storage.write(WriteBatch(tuple(entry(i, b"old") for i in range(1, 8)), HardState(3, "n2")))
    storage.begin_install(Snapshot(20, 2, b"state", b"members"))
    storage.stage([entry(4, b"a", term=2)])
    storage.stage([entry(17, b"b", term=2)])
    storage.install()
    loaded = reopen().load()
    assert loaded == Loaded(HardState(3, "n2"), Snapshot(20, 2, b"state", b"members"), [])
    assert reopen().read(range(1, 30)) == {4: b"a", 17: b"b"}


def test_a_partial_snapshot_is_never_visible(reopen: Reopen) -> None:
    """RAFT.md scenarios 30, 33: nothing changes before the whole is installed."""
    storage = reopen()
    storage.write(WriteBatch((entry(1), entry(2))))
    storage.begin_install(Snapshot(20, 2, b"state"))
    storage.stage([entry(4, b"a", term=2)])
    assert reopen().load() == Loaded(HardState(0, None), None, [entry(1), entry(2)])
    storage = reopen()
    storage.begin_install(Snapshot(9, 2, b"other"))
    storage.install()
    assert reopen().read([1, 2, 4]) == {}


def test_a_store_adopts_the_cluster_that_it_joins(reopen: Reopen) -> None:
    """RAFT.md scenario 30: and stays who it is."""
    incarnation = reopen().identity.incarnation
    reopen().adopt("c" * 32, "0badcafe")
    assert reopen().identity == Identity("c" * 32, "0badcafe", "n1", incarnation, adopted=True)


# --- SQLite: much at once ---


def filled(folder: Path, count: int = 40) -> SqliteStorage:
    """With as many entries of 100 kB in the log, and as many of a peer's staged."""
    storage = SqliteStorage(folder, "n1")
    for start in range(1, count, 10):
        entries = tuple(entry(i, b"x" * 100_000) for i in range(start, start + 10))
        storage.write(WriteBatch(entries))
    storage.begin_install(Snapshot(100, 2, b"state"))
    for start in range(1, count, 10):
        storage.stage([entry(i, b"y" * 100_000) for i in range(start, start + 10)])
    storage.tidy()
    storage._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return storage


def written_bytes(folder: Path) -> int:
    return (folder / "broker.db-wal").stat().st_size


def test_an_install_writes_little_however_much_is_installed(tmp_path: Path) -> None:
    """Copying took 5.5 s a GiB, and all that waited for the disk as long."""
    storage = filled(tmp_path)
    storage.install()
    assert written_bytes(tmp_path) < 100_000
    assert storage.read([1, 40]) == {1: b"y" * 100_000, 40: b"y" * 100_000}
    storage.close()


def test_what_the_old_log_took_is_given_back_bit_by_bit_and_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(f_bavail=0, f_frsize=4096)  # others use this disk, too
    monkeypatch.setattr("repl_broker.storage.os.statvfs", lambda folder: full)
    storage = filled(tmp_path)
    before = storage.free_bytes()
    storage.install()
    freed = storage.free_bytes() - before
    assert 3_900_000 < freed < 4_400_000, "it will be free"
    pieces = 1
    while storage.discard(500_000):
        pieces += 1
        assert written_bytes(tmp_path) < pieces * 200_000
        assert abs(storage.free_bytes() - before - freed) < 1_000_000
    assert pieces >= 8
    assert 3_900_000 < storage.free_bytes() - before < 4_400_000, "it is free"
    assert not storage.discard(500_000)
    storage.close()


def test_what_a_crash_left_of_the_old_log_is_found_and_removed_after_it(tmp_path: Path) -> None:
    storage = filled(tmp_path / "old")
    storage.install()
    storage.discard(500_000)
    known = storage._forgotten.bytes
    put(image(tmp_path / "old"), tmp_path / "new")
    storage.close()
    storage = SqliteStorage(tmp_path / "new", "n1")
    assert storage.has_forgotten
    assert storage._forgotten.bytes == known > 3_000_000
    while storage.discard(1 << 20):
        pass
    assert not storage.has_forgotten
    assert len(storage.read(range(1, 41))) == 40
    storage.close()


def test_a_copy_has_nothing_of_what_was_put_aside(tmp_path: Path) -> None:
    storage = filled(tmp_path / "data")
    storage.install()
    copy_store(tmp_path / "data", tmp_path / "copy.db")
    assert (tmp_path / "copy.db").stat().st_size < 5_000_000, "the log of now, and no other"
    storage.close()


def test_a_reader_sees_the_log_of_before_or_of_after_an_install(tmp_path: Path) -> None:
    """Each read is of one moment."""
    storage = filled(tmp_path)
    stop = threading.Event()
    mixed: list[object] = []

    def read() -> None:
        while not stop.is_set():
            kinds = {data[:1] for data in storage.read([1, 20, 40]).values()}
            if len(kinds) != 1:
                mixed.append(kinds)

    reader = threading.Thread(target=read)
    reader.start()
    for data in (b"z", b"x", b"y") * 5:
        storage.begin_install(Snapshot(100, 2, b"state"))
        storage.stage([entry(i, data * 1000) for i in (1, 20, 40)])
        storage.install()
    stop.set()
    reader.join()
    assert mixed == []
    storage.close()


@pytest.fixture
def small_values(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is in one row, as SQLite takes no value beyond some size."""
    monkeypatch.setattr("repl_broker.parts.ROW_BYTES_MAX", 30_000)
    monkeypatch.setattr("repl_broker.parts.PART_BYTES", 7_000)
    return 40_000


def limited(folder: Path, size: int) -> SqliteStorage:
    storage = SqliteStorage(folder, "n1")
    for connection in (storage._writer, storage._reader):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, size)
    return storage


def test_a_state_that_no_row_can_hold_is_saved_in_parts(tmp_path: Path, small_values: int) -> None:
    """SQLite takes no value of more than 1e9 bytes, and settings that are allowed lead there."""
    large = bytes(range(256)) * 500
    storage = limited(tmp_path, small_values)
    storage.write(WriteBatch((entry(1), entry(2))))
    storage.save_snapshot(Snapshot(1, 1, large, b"members"))
    storage.close()
    storage = limited(tmp_path, small_values)
    assert storage.load() == Loaded(HardState(), Snapshot(1, 1, large, b"members"), [entry(2)])
    storage.begin_install(Snapshot(9, 2, large[::-1]))
    storage.renew_install(Snapshot(10, 2, large * 2))
    assert storage.load().snapshot == Snapshot(1, 1, large, b"members")
    storage.install()
    assert storage.load().snapshot == Snapshot(10, 2, large * 2)
    storage.close()


def test_only_a_store_whose_state_is_in_parts_has_the_newer_format(
    tmp_path: Path, small_values: int
) -> None:
    """Earlier versions read all others, also once it has become smaller again."""
    storage = limited(tmp_path, small_values)
    storage.write(WriteBatch((entry(1),)))
    assert storage._meta()["format"] == 2
    storage.save_snapshot(Snapshot(1, 1, b"x" * 50_000))
    assert storage._meta()["format"] == 3
    storage.save_snapshot(Snapshot(1, 1, b"small"))
    assert storage._meta()["format"] == 2
    storage.begin_install(Snapshot(9, 2, b"y" * 50_000))
    assert storage._meta()["format"] == 3
    storage.unstage()
    assert storage._meta()["format"] == 2
    storage.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE snapshot_part SET data = zeroblob(length(data)) WHERE number = 1",
        "DELETE FROM snapshot_part WHERE number = 3",
        "UPDATE snapshot_part SET number = 99 WHERE number = 0",
        "UPDATE snapshot_part SET data = 'text' WHERE number = 0",
        """UPDATE snapshot SET data = CAST('{"parts":2}' AS BLOB)""",
        """UPDATE snapshot SET data = CAST('{"parts":"x"}' AS BLOB)""",
        """UPDATE snapshot SET data = CAST('{"parts":' AS BLOB)""",
    ],
)
def test_damage_to_the_parts_of_a_state_is_told(
    tmp_path: Path, small_values: int, statement: str
) -> None:
    storage = limited(tmp_path, small_values)
    storage.write(WriteBatch((entry(1),)))
    storage.save_snapshot(Snapshot(1, 1, b"x" * 50_000))
    storage._writer.execute(statement)
    with pytest.raises(StorageError, match="the snapshot at 1 is not what was written"):
        storage.load()
    storage.close()


def test_a_state_in_parts_is_in_a_backup_and_comes_back_from_it(
    tmp_path: Path, small_values: int
) -> None:
    storage = limited(tmp_path / "data", small_values)
    storage.write(WriteBatch((entry(1),)))
    storage.save_snapshot(Snapshot(1, 1, b"x" * 50_000))
    (tmp_path / "copy").mkdir()
    copy_store(tmp_path / "data", tmp_path / "copy" / "broker.db")
    storage.close()
    copy = StoreCopy(tmp_path / "copy", "the copy")
    copy.check_file()
    assert copy.load().snapshot == Snapshot(1, 1, b"x" * 50_000)
    copy.close()


def test_parts_that_were_saved_ahead_are_not_taken_for_those_of_another_state(
    tmp_path: Path, small_values: int
) -> None:
    storage = limited(tmp_path, small_values)
    storage.write(WriteBatch((entry(1),)))
    for number, part in enumerate(parts_of(b"x" * 50_000)):
        storage.save_part(number, part)
    storage.save_snapshot(Snapshot(1, 1, b"y" * 50_000))
    assert storage.load().snapshot == Snapshot(1, 1, b"y" * 50_000)
    storage.close()


# --- SQLite: durability ---


def test_a_write_is_on_disk_when_it_returns_even_if_the_process_dies(tmp_path: Path) -> None:
    """RAFT.md scenario 24; promise 2: what was reported durable survives kill -9."""
    script = """
        import os, signal, sys
        from pathlib import Path
        from repl_broker.raft.log import Entry, EntryKind, WriteBatch
        from repl_broker.storage import SqliteStorage
        storage = SqliteStorage(Path(sys.argv[1]), "n1")
        for i in range(1, 51):
            storage.write(WriteBatch((Entry(i, 1, EntryKind.DATA, b"x" * 100),)))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    storage = SqliteStorage(tmp_path, "n1")
    assert [e.index for e in storage.load().entries] == list(range(1, 51))
    storage.close()


def test_every_connection_syncs_each_commit(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path, "n1")
    for connection in (storage._writer, storage._reader, storage._tidier):
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    storage.close()


@pytest.mark.parametrize("before", [4096, 64 << 10])
def test_a_store_keeps_the_pages_that_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Those of other versions are of SQLite's own 4096 bytes, and what is in them is read."""
    entries = [entry(1), entry(2, b"x" * LARGE), entry(3, b"y" * 5000)]
    monkeypatch.setattr("repl_broker.storage.PAGE_BYTES", before)
    with closing(SqliteStorage(tmp_path / "old", "n1")) as old:
        old.write(WriteBatch(tuple(entries[:2])))
    monkeypatch.undo()
    with closing(SqliteStorage(tmp_path / "old", "n1")) as old:
        old.write(WriteBatch((entries[2],)))
        assert old.load().entries == entries
        assert page_bytes(old) == before
        copy_store(tmp_path / "old", tmp_path / "copy.db")
    with closing(SqliteStorage(tmp_path / "new", "n1")) as new:
        assert page_bytes(new) == PAGE_BYTES == 16 << 10


def page_bytes(storage: SqliteStorage) -> int:
    (found,) = storage._reader.execute("PRAGMA page_size").fetchone()
    assert isinstance(found, int)
    return found


def test_after_a_failed_write_nothing_is_accepted_any_more(tmp_path: Path) -> None:
    """RAFT.md scenario 27: a failed fsync is never retried ("fsyncgate")."""
    script = """
        import resource, sys
        from pathlib import Path
        from repl_broker.errors import StorageError
        from repl_broker.raft.log import Entry, EntryKind, WriteBatch
        from repl_broker.storage import SqliteStorage
        storage = SqliteStorage(Path(sys.argv[1]), "n1")
        storage.write(WriteBatch((Entry(1, 1, EntryKind.DATA, b"kept"),)))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the disk is full now
        try:
            storage.write(WriteBatch((Entry(2, 1, EntryKind.DATA, b"x" * 500_000),)))
            sys.exit("the write should have failed")
        except StorageError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # there is room again
        try:
            storage.write(WriteBatch((Entry(2, 1, EntryKind.DATA, b"small"),)))
            sys.exit("the second write should have been refused")
        except StorageError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == second
    assert "failed to write" in first
    assert "Check the disk" in first
    storage = SqliteStorage(tmp_path, "n1")
    assert storage.load().entries == [entry(1, b"kept")]
    storage.close()


def test_the_write_ahead_log_does_not_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repl_broker.storage.WAL_BYTES_MAX", 200_000)
    storage = SqliteStorage(tmp_path, "n1")
    for index in range(1, 30):
        storage.write(WriteBatch((entry(index, b"x" * LARGE),)))
    assert (tmp_path / "broker.db-wal").stat().st_size < 300_000
    storage.close()


def test_what_is_moved_from_the_journal_is_cut_from_the_write_ahead_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repl_broker.storage.WAL_BYTES_MAX", 200_000)
    monkeypatch.setattr("repl_broker.journal.JOURNAL_BYTES", 100_000)
    storage = SqliteStorage(tmp_path, "n1")
    for index in range(1, 300):
        storage.write(WriteBatch((entry(index, b"x" * 5000),)))
    assert (tmp_path / "broker.db-wal").stat().st_size < 500_000
    assert (tmp_path / "broker.journal").stat().st_size == 100_000
    assert storage.bytes > 300 * 5000
    storage.close()


def test_a_program_that_reads_the_file_does_not_hold_writes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction keeps the write-ahead log from being truncated, and nothing else."""
    monkeypatch.setattr("repl_broker.storage.WAL_BYTES_MAX", 400_000)
    storage = SqliteStorage(tmp_path, "n1")
    other = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM log").fetchall()
    attempts: list[str] = []
    storage._writer.set_trace_callback(lambda sql: attempts.append(sql) if "TRUNC" in sql else None)
    for index in range(1, 30):
        storage.write(WriteBatch((entry(index, b"x" * LARGE),)))
    assert 1 <= len(attempts) < 10, "it is tried again only after the log has grown as much again"
    other.close()
    for index in range(30, 40):
        storage.write(WriteBatch((entry(index, b"x" * LARGE),)))
    assert (tmp_path / "broker.db-wal").stat().st_size < 300_000
    storage.close()


# --- SQLite: what is in the journal alone ---


def pending(folder: Path, count: int = 5) -> SqliteStorage:
    """A store whose newest entries are in the journal alone."""
    storage = SqliteStorage(folder, "n1")
    storage.write(WriteBatch((entry(1), entry(2)), HardState(1, "n1")))
    for index in range(3, count + 1):
        storage.write(WriteBatch((entry(index),)))
    assert [*storage._pending] == [*range(3, count + 1)]
    return storage


def killed(storage: SqliteStorage, folder: Path) -> Path:
    """The folder of a node that was killed with this store."""
    put(image(storage._folder), folder)
    storage.close()
    return folder


def all_indexes(storage: SqliteStorage) -> list[int]:
    """By all ways to read it, which must say the same."""
    loaded = [e.index for e in storage.load().entries]
    assert [e.index for e in storage.history(0, 99, 1 << 30)] == loaded
    assert sorted(storage.read(range(99))) == loaded
    return loaded


def test_small_writes_of_entries_are_quick_and_others_are_not(tmp_path: Path) -> None:
    storage = pending(tmp_path)
    statements: list[str] = []
    storage._writer.set_trace_callback(statements.append)
    quick = [
        (WriteBatch((entry(6),)),),
        (WriteBatch((entry(7),)), WriteBatch((entry(8), entry(9)))),
    ]
    for batches in quick:
        assert storage.is_quick(*batches)
        storage.write(*batches)
    assert statements == []
    slow = [
        (),
        (WriteBatch(),),
        (WriteBatch((entry(10, b"x" * LARGE),)),),
        (WriteBatch(tuple(entry(i, b"x" * 1000) for i in range(11, 90))),),
        (WriteBatch((entry(90),), HardState(2)),),
        (WriteBatch((entry(91),)), WriteBatch((entry(91),), truncate_from=91)),
    ]
    for batches in slow:
        statements.clear()
        assert not storage.is_quick(*batches)
        storage.write(*batches)
        assert statements[-1] == "COMMIT"
    assert all_indexes(storage) == [*range(1, 92)]
    storage.close()


def test_a_full_journal_is_moved_with_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repl_broker.journal.JOURNAL_BYTES", 3 * 4096)
    storage = SqliteStorage(tmp_path, "n1")
    left = []
    for index in range(1, 9):
        storage.write(WriteBatch((entry(index),)))
        left.append(len(storage._pending))
        assert all_indexes(storage) == [*range(1, index + 1)]
    assert left == [1, 2, 3, 0, 1, 2, 3, 0]
    storage.close()


def test_readers_miss_nothing_while_entries_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in memory, in SQLite or in both, at each moment."""
    storage = pending(tmp_path)
    seen: list[list[int]] = []

    def look(*_: object) -> None:
        found = sorted(storage.read(range(9)))
        assert [e.index for e in storage.history(0, 9, 1 << 30)] == found
        seen.append(found)

    assert storage._journal is not None
    begin_anew = storage._journal.begin_anew
    storage._writer.set_trace_callback(look)
    monkeypatch.setattr(storage._journal, "begin_anew", lambda salt: (look(), begin_anew(salt)))
    storage.write(WriteBatch(hard_state=HardState(2)))
    assert len(seen) > 3
    assert {*map(tuple, seen)} == {(1, 2, 3, 4, 5)}
    storage._writer.set_trace_callback(None)
    storage.close()


def test_a_reader_that_began_before_a_move_has_what_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may move all between two looks of one reader."""
    storage = pending(tmp_path)

    class Lock:
        def __enter__(self) -> None:
            storage.write(WriteBatch(hard_state=HardState(2)))
            storage.write(WriteBatch((entry(6),)))

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(storage, "_read_lock", Lock())
    assert sorted(storage.read(range(6))) == [1, 2, 3, 4, 5]
    storage.write(WriteBatch((entry(7),)))
    assert [e.index for e in storage.history(0, 7, 1 << 30)] == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.undo()
    storage.close()


def test_an_error_of_any_kind_is_the_last_and_loses_nothing_that_was_written(
    tmp_path: Path,
) -> None:
    """What it left behind is unknown to whoever goes on; the next start looks."""
    storage = pending(tmp_path / "first")

    def broken() -> Iterator[int]:
        yield 1
        raise RuntimeError("a mistake of ours")

    with pytest.raises(StorageError, match=r"failed to write: a mistake of ours; nothing more"):
        storage.drop(broken())
    for call in (lambda: storage.write(WriteBatch((entry(6),))), storage.tidy):
        with pytest.raises(StorageError, match="a mistake of ours"):
            call()
    folder = killed(storage, tmp_path / "second")
    storage = SqliteStorage(folder, "n1")
    assert all_indexes(storage) == [1, 2, 3, 4, 5]
    storage.close()


def test_a_disk_that_is_full_when_entries_are_moved_loses_none(tmp_path: Path) -> None:
    """The journal has its room already; the node ends at the first move."""
    script = """
        import resource, sys
        from pathlib import Path
        from repl_broker.errors import StorageError
        from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
        from repl_broker.storage import SqliteStorage
        folder = Path(sys.argv[1])
        storage = SqliteStorage(folder, "n1")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (folder / "broker.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # the disk is full now
        for i in range(1, 4):
            storage.write(WriteBatch((Entry(i, 1, EntryKind.DATA, b"data"),)))
        try:
            storage.write(WriteBatch(hard_state=HardState(2)))
            sys.exit("the write should have failed")
        except StorageError as error:
            print(error)
        storage.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "failed to write" in result.stdout
    assert "Check the disk and its free space" in result.stdout
    storage = SqliteStorage(tmp_path, "n1")
    assert all_indexes(storage) == [1, 2, 3]
    assert storage.load().hard_state == HardState()
    storage.close()


def test_a_disk_without_room_for_a_journal_is_told_at_the_start(tmp_path: Path) -> None:
    """And not when the first half of it is full; with more room the node starts."""
    script = """
        import resource, sys
        from pathlib import Path
        from repl_broker.storage import SqliteStorage
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        SqliteStorage(Path(sys.argv[1]), "n1")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "StorageError" in result.stderr
    assert "failed to write: [Errno 27] File too large" in result.stderr
    pending(tmp_path).close()


def test_a_store_that_was_closed_is_one_file(tmp_path: Path) -> None:
    storage = pending(tmp_path)
    assert (tmp_path / "broker.journal").stat().st_mode & 0o777 == 0o600
    storage.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broker.db", "lock"]
    connection = sqlite3.connect(tmp_path / "broker.db")
    assert connection.execute("SELECT count(*) FROM log").fetchone() == (5,)
    connection.close()


@pytest.mark.parametrize("salt", [True, False], ids=["killed", "stopped"])
def test_a_journal_of_an_older_life_brings_nothing_back(tmp_path: Path, salt: bool) -> None:
    """Put beside a store that has moved all of it, and truncated some."""
    storage = pending(tmp_path / "first")
    old = (tmp_path / "first" / "broker.journal").read_bytes()
    storage.write(WriteBatch((entry(4, b"new", 2),), HardState(2), 4))
    if salt:
        folder = killed(storage, tmp_path / "second")
    else:
        storage.close()
        folder = tmp_path / "first"
    (folder / "broker.journal").write_bytes(old)
    storage = SqliteStorage(folder, "n1")
    assert storage.load().entries == [entry(1), entry(2), entry(3), entry(4, b"new", 2)]
    storage.close()


def _cut(content: bytes) -> bytes:
    return content[:1000]


def _flip(content: bytes) -> bytes:
    return content[:40] + bytes([content[40] ^ 1]) + content[41:]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (None, "it is not there"),
        (_cut, "1000 bytes of 1048576"),
        (_flip, "a record before the last, at byte 0"),
    ],
    ids=["missing", "cut", "flipped"],
)
def test_a_damaged_journal_is_told_and_left_as_it_is(
    tmp_path: Path, change: Callable[[bytes], bytes] | None, what: str
) -> None:
    """RAFT.md scenario 26: what is missing was acknowledged."""
    folder = killed(pending(tmp_path / "first"), tmp_path / "second")
    path = folder / "broker.journal"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    before = image(folder).get("broker.journal")
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"its journal \({what}\) is not .* from a backup"):
            SqliteStorage(folder, "n1")
        with pytest.raises(StorageError, match=rf"its journal \({what}\) is not .* from a backup"):
            copy_store(folder, tmp_path / "copy")
    assert (image(folder).get("broker.journal") == before) is True
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = replace(value, substr(value, 1, 1), 'x') WHERE key = 'journal'",
        "UPDATE meta SET value = NULL WHERE key = 'journal'",
        "UPDATE meta SET value = ' 00000001' WHERE key = 'journal'",
        "UPDATE meta SET key = 'journaM' WHERE key = 'journal'",
    ],
)
def test_without_a_sound_salt_the_journal_is_not_taken_for_an_empty_one(
    tmp_path: Path, statement: str
) -> None:
    """RAFT.md scenario 26: or a flipped bit would cost all that is in it."""
    folder = killed(pending(tmp_path / "first"), tmp_path / "second")
    damage(folder, statement)
    with pytest.raises(StorageError, match=r"its journal \(its salt\) is not what was written"):
        SqliteStorage(folder, "n1")
    with pytest.raises(StorageError, match=r"its journal \(its salt\) is not what was written"):
        copy_store(folder, tmp_path / "copy")
    assert (folder / "broker.journal").exists()


def test_entries_in_the_journal_that_are_in_the_store_too_are_damage(tmp_path: Path) -> None:
    folder = killed(pending(tmp_path / "first"), tmp_path / "second")
    damage(folder, "INSERT INTO log VALUES (4, 1, 0, x'00', 0)")
    with pytest.raises(StorageError, match="it has entries that are not new"):
        SqliteStorage(folder, "n1")


def test_an_install_an_adoption_and_a_founding_leave_nothing_pending(tmp_path: Path) -> None:
    """Each may make what was pending wrong, or end the log that it belongs to."""
    acts: list[Callable[[SqliteStorage], None]] = [
        lambda s: s.adopt("c" * 32, "0badcafe"),
        lambda s: s.begin_install(Snapshot(9, 2, b"theirs")),
        lambda s: s.install(),
        lambda s: s.found_cluster(s.identity, WriteBatch((entry(3, term=4),), HardState(4), 3), {}),
    ]
    storage = pending(tmp_path / "first")
    for index, act in enumerate(acts, 6):
        storage.write(WriteBatch((entry(index),)))
        act(storage)
        assert storage._pending == {}
    folder = killed(storage, tmp_path / "second")
    storage = SqliteStorage(folder, "n1")
    assert storage.load().hard_state == HardState(4)
    assert sorted(storage.read(range(99))) == [3]
    storage.close()


# --- SQLite: a store of a version without a journal ---


def as_format_1(folder: Path) -> None:
    """What that version would have written. The store is closed."""
    connection = sqlite3.connect(folder / "broker.db")
    with connection:
        connection.execute("DELETE FROM meta WHERE key = 'journal'")
        connection.execute("UPDATE meta SET value = 1 WHERE key = 'format'")
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        connection.execute("REPLACE INTO meta VALUES ('checksum', ?)", (_meta_checksum(meta),))
    connection.close()


def format_of(folder: Path) -> int:
    connection = sqlite3.connect(folder / "broker.db")
    (found,) = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    connection.close()
    return int(found)


@pytest.mark.parametrize(
    "left",
    [None, b"", bytes(5000), bytes(1 << 20), b"x" * (2 << 20)],
    ids=["nothing", "empty", "a part", "all", "something else"],
)
def test_a_store_of_format_1_is_upgraded_whatever_a_killed_upgrade_left(
    used: Path, left: bytes | None
) -> None:
    """Killed before there is a journal, within it, behind it: the store was of format 1 still."""
    before = SqliteStorage(used, "n1")
    expected = before.load(), before.identity
    before.close()
    as_format_1(used)
    if left is not None:
        (used / "broker.journal").write_bytes(left)
    storage = SqliteStorage(used, "n1")
    assert (storage.load(), storage.identity) == expected
    storage.write(WriteBatch((entry(6),)))
    folder = killed(storage, used / "killed")
    assert format_of(folder) == 2
    storage = SqliteStorage(folder, "n1")
    assert [e.index for e in storage.load().entries] == [3, 4, 5, 6]
    storage.close()


def test_an_upgrade_that_is_killed_anywhere_can_be_made_again(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each barrier and each statement, with the files as they are then."""
    as_format_1(used)
    images: list[Image] = []
    fsync, connect = os.fsync, sqlite3.connect

    def keep(*_: object) -> None:
        images.append(image(used))

    def sync(descriptor: int) -> None:
        keep()
        fsync(descriptor)
        keep()

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(keep)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr(sqlite3, "connect", watched)
        storage = SqliteStorage(used, "n1")
    keep()
    logs = [(each.get("broker.db-wal"), each.get("broker.journal")) for each in images]
    moments = len({*logs})
    assert moments == 4, "before it is read, before it, with a journal, and behind it"
    for number, each in enumerate(images):
        again = SqliteStorage(put(each, tmp_path / f"again {number}"), "n1")
        assert [e.index for e in again.load().entries] == [3, 4, 5]
        again.close()
    storage.close()


def test_a_copy_of_a_store_of_format_1_is_of_format_1(used: Path, tmp_path: Path) -> None:
    """A version that cannot read the journal may restore it; there is none in it."""
    as_format_1(used)
    (tmp_path / "copy").mkdir()
    copy_store(used, tmp_path / "copy" / "broker.db")
    assert format_of(tmp_path / "copy") == 1
    storage = SqliteStorage(tmp_path / "copy", "n1")
    assert [e.index for e in storage.load().entries] == [3, 4, 5]
    storage.close()


# --- SQLite: what is found there ---


def damage(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "broker.db")
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The folder of a node that stopped in good order."""
    storage = SqliteStorage(tmp_path, "n1")
    storage.write(WriteBatch(tuple(entry(i, b"data %d" % i) for i in range(1, 6))))
    storage.save_snapshot(Snapshot(2, 1, b"state"))
    storage.close()
    return tmp_path


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE log SET data = x'00' WHERE idx = 4", "entry 4"),
        ("UPDATE log SET term = 9 WHERE idx = 4", "entry 4"),
        ("DELETE FROM log WHERE idx = 4", "what should precede entry 5"),
        ("UPDATE snapshot SET data = x'00'", "the snapshot at 2"),
    ],
)
def test_damage_is_told_and_not_served(used: Path, statement: str, what: str) -> None:
    """RAFT.md scenarios 26, 33: damage is told from a torn tail, and refuses to start."""
    damage(used, statement)
    storage = SqliteStorage(used, "n1")
    with pytest.raises(StorageError, match=f"{what} .* restore it from a backup"):
        storage.load()
    storage.close()


@pytest.mark.parametrize(
    "change",
    [
        "value = 'n3' WHERE key = 'vote'",
        "value = NULL WHERE key = 'vote'",
        "value = x'6e32' WHERE key = 'vote'",
        "value = 6 WHERE key = 'term'",
        "value = '7' WHERE key = 'term'",
        "value = 'x' WHERE key = 'cluster_id'",
        "value = 'x' WHERE key = 'epoch'",
        "value = 'x' WHERE key = 'incarnation'",
        "key = 'adopteD' WHERE key = 'adopted'",
        "value = 1 WHERE key = 'checksum'",
        "value = 'x' WHERE key = 'checksum'",
        "value = NULL WHERE key = 'checksum'",
    ],
)
def test_a_damaged_vote_or_identity_is_told(used: Path, change: str) -> None:
    """RAFT.md scenario 26: or the node could vote twice in a term."""
    storage = SqliteStorage(used, "n1")
    storage.adopt("c" * 32, "0badcafe")
    storage.write(WriteBatch(hard_state=HardState(7, "n2")))
    storage.close()
    damage(used, f"UPDATE meta SET {change}")
    with pytest.raises(StorageError, match="its identity, term or vote is not what was written"):
        SqliteStorage(used, "n1")


def test_a_vote_that_changes_under_a_store_is_told_when_it_is_loaded(used: Path) -> None:
    """RAFT.md scenario 26."""
    storage = SqliteStorage(used, "n1")
    damage(used, "UPDATE meta SET value = 'n3' WHERE key = 'vote'")
    with pytest.raises(StorageError, match="its identity, term or vote is not what was written"):
        storage.load()
    storage.close()


def test_a_new_term_does_not_hide_that_the_identity_is_damaged(used: Path) -> None:
    """RAFT.md scenario 26: it has the same checksum."""
    storage = SqliteStorage(used, "n1")
    damage(used, "UPDATE meta SET value = 'x' WHERE key = 'cluster_id'")
    with pytest.raises(StorageError, match="its identity, term or vote is not what was written"):
        storage.write(WriteBatch(hard_state=HardState(8)))
    storage.close()


def test_a_store_without_a_checksum_of_its_vote_gets_one_with_the_next(used: Path) -> None:
    """Those that were made before there was one."""
    damage(used, "DELETE FROM meta WHERE key = 'checksum'")
    storage = SqliteStorage(used, "n1")
    storage.write(WriteBatch(hard_state=HardState(7, "n2")))
    storage.close()
    storage = SqliteStorage(used, "n1")
    assert storage.load().hard_state == HardState(7, "n2")
    storage.close()
    damage(used, "UPDATE meta SET value = 'n3' WHERE key = 'vote'")
    with pytest.raises(StorageError, match="its identity, term or vote"):
        SqliteStorage(used, "n1")


def test_notes_are_no_part_of_the_checksum(used: Path) -> None:
    storage = SqliteStorage(used, "n1")
    storage.write_notes({"a": [1], "b": "x"})
    storage.write_notes({"a": None})
    storage.close()
    damage(used, "DELETE FROM meta WHERE key = 'b'")
    SqliteStorage(used, "n1").close()


def test_a_write_of_entries_leaves_the_checksum_alone(used: Path) -> None:
    """It is what most writes are."""
    storage = SqliteStorage(used, "n1")
    statements: list[str] = []
    storage._writer.set_trace_callback(statements.append)
    storage.write(WriteBatch((entry(6, b"x" * LARGE),)))
    assert statements
    assert not [statement for statement in statements if "meta" in statement]
    storage.close()


def test_damage_in_history_is_found_when_it_is_read(used: Path) -> None:
    damage(used, "UPDATE log SET data = x'00' WHERE idx = 1")
    storage = SqliteStorage(used, "n1")
    with pytest.raises(StorageError, match="entry 1"):
        storage.read([1])
    storage.close()


def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broker.db").write_bytes(b"hello" * 1000)
    with pytest.raises(StorageError, match="cannot be read: file is not a database") as caught:
        SqliteStorage(tmp_path, "n1")
    assert "\n" not in str(caught.value)


def test_a_torn_tail_is_dropped(used: Path) -> None:
    """RAFT.md scenario 26: what a crash left half written was never acknowledged."""
    storage = SqliteStorage(used, "n1")
    storage.write(WriteBatch((entry(6, b"whole"),), HardState(1)))
    whole = (used / "broker.db-wal").read_bytes()
    storage.write(WriteBatch((entry(7, b"torn" * 2000),), HardState(2)))
    torn = (used / "broker.db-wal").read_bytes()
    image = {p.name: p.read_bytes() for p in used.iterdir() if p.name != "broker.db-shm"}
    storage.close()
    for path in used.iterdir():
        path.unlink()
    for name, content in image.items():
        (used / name).write_bytes(content)
    (used / "broker.db-wal").write_bytes(torn[: (len(whole) + len(torn)) // 2])
    storage = SqliteStorage(used, "n1")
    assert [e.index for e in storage.load().entries] == [3, 4, 5, 6]
    storage.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("broker.db")}


@pytest.fixture
def rotten(tmp_path: Path) -> Path:
    """The folder of a node that was killed, and in whose write-ahead log a bit flipped then."""
    storage = SqliteStorage(tmp_path / "old", "n1")
    storage.write(WriteBatch(hard_state=HardState(7, "n2")))
    for index in range(1, 6):
        storage.write(WriteBatch((entry(index),)))
    (tmp_path / "new").mkdir()
    for name, content in files_of(tmp_path / "old").items():
        changed = bytearray(content)
        if name == "broker.db-wal":
            changed[len(changed) // 2] ^= 1
        if name != "broker.db-shm":
            (tmp_path / "new" / name).write_bytes(changed)
    storage.close()
    return tmp_path / "new"


def test_damage_within_the_write_ahead_log_is_no_torn_tail(rotten: Path) -> None:
    """RAFT.md scenario 26: SQLite would drop the vote and all entries, without a word."""
    before = files_of(rotten)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"its write-ahead log is not .* from a backup"):
            SqliteStorage(rotten, "n1")
    assert files_of(rotten) == before, "what is left is there for whoever can read it"


def test_a_backup_of_a_damaged_write_ahead_log_is_refused(rotten: Path, tmp_path: Path) -> None:
    """RAFT.md scenario 26: SQLite would drop what is behind the damage, and remove the log."""
    before = files_of(rotten)
    with pytest.raises(StorageError, match=r"its write-ahead log is not .* from a backup"):
        copy_store(rotten, tmp_path / "copy")
    assert files_of(rotten) == before
    assert not (tmp_path / "copy").exists()


def test_a_log_that_cannot_be_read_is_refused_in_one_line(used: Path) -> None:
    (used / "broker.db-wal").mkdir()
    with pytest.raises(StorageError, match=r"cannot be read: .*directory") as caught:
        SqliteStorage(used, "n1")
    assert "\n" not in str(caught.value)


# --- the data directory ---


def test_a_directory_in_use_is_refused_and_the_holder_is_named(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path, "n1")
    with pytest.raises(
        StoreLockedError, match=rf"in use by a running node \(process {os.getpid()}\)"
    ):
        SqliteStorage(tmp_path, "n1")
    storage.close()
    SqliteStorage(tmp_path, "n1").close()


def test_a_directory_of_another_node_is_refused(used: Path) -> None:
    with pytest.raises(ConfigError, match=r"belongs to node 'n1', not to 'n2'.*--node-id n1"):
        SqliteStorage(used, "n2")


def test_a_store_of_a_newer_version_is_refused(used: Path) -> None:
    damage(used, "UPDATE meta SET value = 99 WHERE key = 'format'")
    with pytest.raises(ConfigError, match="written by a newer repl-broker"):
        SqliteStorage(used, "n1")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        SqliteStorage(tmp_path / "file" / "data", "n1")


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may write anywhere: for this test we are not root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_directory_without_the_right_to_write_is_refused(tmp_path: Path, nobody: None) -> None:
    folder = tmp_path / "data"
    if os.getuid() != 0:
        folder.mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="Permission denied; choose another with --data-dir"):
        SqliteStorage(folder, "n1")


def test_a_failed_opening_leaves_no_lock_behind(used: Path) -> None:
    with pytest.raises(ConfigError):
        SqliteStorage(used, "n2")
    SqliteStorage(used, "n1").close()
