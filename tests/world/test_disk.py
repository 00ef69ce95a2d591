"""The disk of memory is one: SQLite and the journal keep on it what they keep on a real one, and
lose what they would lose there. A seed that fails is in the name of the test's failure."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from repl_broker.journal import BLOCK_BYTES, Journal, shape
from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
from repl_broker.storage import SqliteStorage
from tests.world import sqlite_vfs
from tests.world.disk import SLOW_SECONDS, SimDisk

SALT = b"saltsalt"


@pytest.fixture
def disk() -> Iterator[SimDisk]:
    disk = SimDisk(random.Random(1))
    with disk.mounted():
        yield disk


def connect(disk: SimDisk, mode: str = "WAL") -> sqlite3.Connection:
    connection = sqlite3.connect(disk.path / "db", isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={mode}")
    # Where a commit is the removal of a file, FULL does not sync the folder.
    connection.execute(f"PRAGMA synchronous={'EXTRA' if mode == 'DELETE' else 'FULL'}")
    connection.execute("PRAGMA busy_timeout=0")
    connection.execute("PRAGMA wal_autocheckpoint=4")
    connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, data BLOB)")
    return connection


def add(connection: sqlite3.Connection, number: int, count: int, size: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    rows = [(number + i, bytes([number % 256]) * size) for i in range(count)]
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    connection.execute("COMMIT")


def sync_all(disk: SimDisk) -> None:
    for path in (*map(disk.path.joinpath, os.listdir(disk.path)), disk.path):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


def rounds(seed: int, count: int, mode: str, *, lies: bool = False) -> int:
    """Crash it so often at any moment; how many committed rows were missed. Asserts the rest."""
    chance = random.Random(seed)
    disk = SimDisk(chance)
    with disk.mounted():
        connect(disk, mode).close()
        sync_all(disk)
        acknowledged = lost = 0
        for _ in range(count):
            disk.loses_syncs = lies
            disk.stop_in(chance.randint(1, 40), "crash" if chance.random() < 0.8 else "kill")
            connections: list[sqlite3.Connection] = []
            under_way = 0
            with contextlib.suppress(sqlite3.Error):
                connections += [connect(disk, mode) for _ in range(2)]
                while not disk.is_down:
                    under_way = chance.randint(1, 5)
                    writer = chance.choice(connections)
                    add(writer, acknowledged + 1, under_way, chance.choice((10, 900, 9000)))
                    acknowledged += under_way
                    under_way = 0
            for connection in connections:
                connection.close()
            disk.start()
            disk.loses_syncs = False
            sync_all(disk)  # a commit that a killed process left in memory is seen, and counts
            with contextlib.closing(sqlite3.connect(disk.path / "db")) as looked:
                assert looked.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                numbers = [n for (n,) in looked.execute("SELECT n FROM t ORDER BY n")]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) in (acknowledged, acknowledged + under_way) or lies, seed
            lost += max(acknowledged - len(numbers), 0)
            acknowledged = len(numbers)
    return lost


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE"])
def test_sqlite_keeps_what_was_committed_through_any_crash(mode: str) -> None:
    for seed in range(25):
        assert rounds(seed, 20 if mode == "WAL" else 10, mode) == 0


def test_sqlite_loses_what_was_committed_if_the_disk_lies_about_syncs() -> None:
    found = 0
    for seed in range(20):
        with contextlib.suppress(AssertionError, sqlite3.DatabaseError):  # or it is damaged
            found += rounds(seed, 5, "WAL", lies=True)
    assert found > 0


def entry(index: int, size: int) -> Entry:
    return Entry(index, 1, EntryKind.DATA, bytes([index % 256]) * size)


def journal_lost(seed: int, *, lies: bool) -> int:
    """How many acknowledged entries a crash took from a journal."""
    chance = random.Random(seed)
    disk = SimDisk(chance)
    disk.has_direct_writes = chance.random() < 0.7
    with disk.mounted():
        path = disk.path / "journal"
        Journal.make(path)
        sync_all(disk)
        disk.loses_syncs = lies
        journal = Journal(path, SALT)
        acknowledged: list[Entry] = []
        disk.stop_in(chance.randint(1, 30), "crash")
        with contextlib.suppress(OSError):
            while not disk.is_down:
                entries = [entry(len(acknowledged) + 1, chance.choice((1, 4000, 20_000)))]
                assert journal.takes(entries)
                journal.append(entries)
                acknowledged += entries
        journal.close()
        disk.start()
        found = Journal.read(path, SALT, shape())
        assert found[: len(acknowledged)] == acknowledged[: len(found)]
        assert len(found) <= len(acknowledged) + 1
        return len(acknowledged) - min(len(found), len(acknowledged))


def test_the_journal_keeps_what_was_acknowledged_through_any_crash() -> None:
    for seed in range(100):
        assert journal_lost(seed, lies=False) == 0, seed


def test_the_journal_loses_what_was_acknowledged_if_the_disk_lies_about_syncs() -> None:
    lost = 0
    for seed in range(30):
        with contextlib.suppress(ValueError):  # a record before the last is gone
            lost += journal_lost(seed, lies=True)
    assert lost > 0


# --- the files ---


def write(disk: SimDisk, name: str, data: bytes, *, synced: bool = False) -> Path:
    path = disk.path / name
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())
    return path


def sync_names(disk: SimDisk) -> None:
    folder = os.open(disk.path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def after_crashes(prepare: str, count: int = 100) -> set[bytes | None]:
    """What a file may be after a crash, over many seeds; None where it is not there."""
    found: set[bytes | None] = set()
    for seed in range(count):
        disk = SimDisk(random.Random(seed))
        with disk.mounted():
            path = write(disk, "file", b"old" * 1000, synced=True)
            sync_names(disk)
            match prepare:
                case "written anew":
                    write(disk, "file", b"new" * 1000)
                case "replaced":
                    write(disk, "other", b"new" * 1000, synced=True).replace(path)
                case "removed":
                    path.unlink()
                case "written without a sync":
                    with path.open("r+b") as file:
                        file.write(b"N" * 3000)
                case "written and synced":
                    write(disk, "file", b"new" * 1000, synced=True)
            disk.crash()
            found.add(path.read_bytes() if path.exists() else None)
    return found


def test_what_was_synced_is_there() -> None:
    assert after_crashes("written and synced") == {b"new" * 1000}


def test_a_file_that_is_replaced_is_the_old_one_or_the_new_one() -> None:
    assert after_crashes("replaced") == {b"old" * 1000, b"new" * 1000}


def test_a_file_that_was_removed_may_be_there_again() -> None:
    assert after_crashes("removed") == {b"old" * 1000, None}


def test_a_write_without_a_sync_is_there_or_not_or_any_sectors_of_it_are() -> None:
    found = after_crashes("written without a sync")
    assert {b"old" * 1000, b"N" * 3000} < found
    for data in found:
        assert data is not None
        for at in range(0, 3000, 512):
            sector = data[at : at + 512]
            assert sector in (b"N" * len(sector), (b"old" * 1000)[at : at + 512])


def test_a_file_that_was_cut_short_and_written_anew_is_any_mixture() -> None:
    found = after_crashes("written anew")
    assert {b"old" * 1000, b"new" * 1000, b""} < found


def test_a_name_in_a_folder_that_was_not_synced_may_be_lost() -> None:
    there = set()
    for seed in range(50):
        disk = SimDisk(random.Random(seed))
        with disk.mounted():
            path = write(disk, "file", b"data", synced=True)
            disk.crash()
            there.add(path.exists())
    assert there == {True, False}


def test_a_process_that_dies_leaves_all_that_was_written(disk: SimDisk) -> None:
    path = write(disk, "file", b"data")
    disk.kill()
    assert path.read_bytes() == b"data"


def test_what_was_open_is_dead_with_its_process(disk: SimDisk) -> None:
    path = write(disk, "file", b"data")
    for stop in (disk.kill, disk.crash):
        sync_names(disk)
        file = os.open(path, os.O_RDWR)
        stop()
        with pytest.raises(OSError, match="dead"):
            os.pwrite(file, b"x", 0)
        with pytest.raises(OSError, match="dead"):
            os.pread(file, 1, 0)
        with pytest.raises(OSError, match="dead"):
            os.fsync(file)
        with pytest.raises(OSError, match="dead"):
            os.ftruncate(file, 0)
        os.close(file)


def test_locks_are_freed_with_their_process(disk: SimDisk) -> None:
    path = write(disk, "lock", b"")
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    disk.kill()
    third = os.open(path, os.O_RDWR)
    fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for file in (first, second, third):
        os.close(file)


def test_direct_writes_are_to_be_aligned(disk: SimDisk) -> None:
    write(disk, "file", bytes(8192))
    file = os.open(disk.path / "file", os.O_WRONLY | os.O_DIRECT)
    page = memoryview(mmap.mmap(-1, 4096))
    assert os.pwrite(file, page, 4096) == 4096
    with pytest.raises(OSError, match="not aligned"):
        os.pwrite(file, page[1:513], 0)
    os.close(file)
    disk.has_direct_writes = False
    with pytest.raises(OSError) as refused:
        os.open(disk.path / "file", os.O_WRONLY | os.O_DIRECT)
    assert refused.value.errno == errno.EINVAL


def test_a_full_disk_takes_what_fits_and_no_more(disk: SimDisk) -> None:
    disk.limit_bytes = 10_000
    path = write(disk, "file", bytes(5000))
    assert os.statvfs(disk.path).f_bavail == 1
    file = os.open(path, os.O_WRONLY)
    assert os.pwrite(file, bytes(8192), 5000) == 4096
    with pytest.raises(OSError) as full:
        os.pwrite(file, bytes(8192), 9096)
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        os.posix_fallocate(file, 0, 20_000)
    assert os.pwrite(file, b"within", 0) == 6
    assert disk.used_bytes == 9096
    path.unlink()
    assert disk.used_bytes == 9096  # it is open
    os.close(file)
    assert disk.used_bytes == 0


def test_a_call_fails_once(disk: SimDisk) -> None:
    path = write(disk, "file", b"data")
    file = os.open(path, os.O_RDWR)
    for fault, call in (
        ("write", lambda: os.pwrite(file, b"DATA", 0)),
        ("sync", lambda: os.fsync(file)),
        ("read", lambda: os.pread(file, 4, 0)),
    ):
        disk.fail_once(fault)  # type: ignore[arg-type]
        with pytest.raises(OSError) as failed:
            call()
        assert failed.value.errno == errno.EIO
        call()
    os.close(file)


def test_what_a_sync_failed_for_is_in_memory_and_no_later_sync_makes_it_last() -> None:
    """As on Linux, where the pages count as clean then."""
    found = set()
    for seed in range(50):
        disk = SimDisk(random.Random(seed))
        with disk.mounted():
            path = write(disk, "file", b"old!", synced=True)
            sync_names(disk)
            with path.open("r+b", buffering=0) as file:
                file.write(b"new!")
                disk.fail_once("sync")
                with pytest.raises(OSError):
                    os.fsync(file.fileno())
                os.fsync(file.fileno())
            assert path.read_bytes() == b"new!"
            disk.crash()
            found.add(path.read_bytes())
    assert found == {b"old!", b"new!"}


def test_nothing_is_reached_below_a_path_of_no_disk() -> None:
    with SimDisk(random.Random(1)).mounted():
        with pytest.raises(FileNotFoundError):
            Path("/dev/null/nobody/file").read_bytes()
    with pytest.raises(NotADirectoryError):
        Path("/dev/null/nobody/file").read_bytes()


def test_other_files_are_the_systems(disk: SimDisk, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert (tmp_path / "file").read_text() == "text"
    with contextlib.closing(sqlite3.connect(tmp_path / "db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (n)")
        assert {p.name for p in tmp_path.iterdir()} == {"file", "db", "db-wal", "db-shm"}
    assert disk.used_bytes == 0


# --- SQLite on it ---


def test_connections_see_each_others_locks_and_commits(disk: SimDisk) -> None:
    writer, reader = connect(disk), connect(disk)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        connect_and_begin(disk)
    writer.execute("INSERT INTO t VALUES (1, x'')")
    writer.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
    (busy, *_) = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 1
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
    (busy, *_) = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0
    assert (disk.path / "db-wal").stat().st_size == 0
    writer.close()
    assert (disk.path / "db-wal").exists()
    reader.close()
    assert os.listdir(disk.path) == ["db"]


def connect_and_begin(disk: SimDisk) -> None:
    with contextlib.closing(connect(disk)) as third:
        third.execute("BEGIN IMMEDIATE")


def test_a_connection_is_dead_with_its_process_and_its_locks_are_freed(disk: SimDisk) -> None:
    dead = connect(disk)
    dead.execute("BEGIN IMMEDIATE")
    dead.execute("INSERT INTO t VALUES (1, x'')")
    disk.kill()
    with contextlib.closing(connect(disk)) as alive:
        add(alive, 7, 1, 10)
        with pytest.raises(sqlite3.OperationalError, match="I/O"):
            dead.execute("COMMIT")
        with pytest.raises(sqlite3.OperationalError, match="I/O"):
            dead.execute("SELECT * FROM t").fetchall()
        dead.close()
        assert alive.execute("SELECT n FROM t").fetchall() == [(7,)]


def test_sqlite_says_that_the_disk_is_full_and_goes_on_when_there_is_room(disk: SimDisk) -> None:
    with contextlib.closing(connect(disk)) as connection:
        disk.limit_bytes = disk.used_bytes + 20_000
        with pytest.raises(sqlite3.OperationalError, match="full"):
            add(connection, 1, 10, 9000)
        disk.limit_bytes = None
        add(connection, 1, 10, 9000)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (10,)


@pytest.mark.parametrize("fault", ["write", "sync"])
def test_sqlite_hears_of_a_fault(disk: SimDisk, fault: str) -> None:
    with contextlib.closing(connect(disk)) as connection:
        disk.fail_once(fault)  # type: ignore[arg-type]
        with pytest.raises(sqlite3.OperationalError, match="I/O"):
            add(connection, 1, 1, 10)


def test_sqlite_hears_of_a_fault_in_reading(disk: SimDisk) -> None:
    connect(disk).close()
    with contextlib.closing(sqlite3.connect(disk.path / "db")) as connection:
        disk.fail_once("read")
        with pytest.raises(sqlite3.OperationalError, match="I/O"):
            connection.execute("SELECT * FROM t").fetchall()
        assert connection.execute("SELECT * FROM t").fetchall() == []


def test_an_interpreter_whose_sqlite_cannot_be_reached_is_told_so() -> None:
    class Static:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    with patch.object(ctypes, "CDLL", lambda name: Static()):
        with pytest.raises(RuntimeError, match="does not show its sqlite3_vfs_register"):
            sqlite_vfs._library()


# --- the product's store on it ---


def run_store(seed: int) -> tuple[list[bytes], object, list[float]]:
    disk = SimDisk(random.Random(seed), name="n1")
    with disk.mounted():
        for term in range(1, 4):
            storage = SqliteStorage(disk.path, "n1")
            storage.write(WriteBatch((), HardState(term, "n1")))
            start = len(storage.load().entries)
            for index in range(start + 1, start + 10):
                storage.write(WriteBatch((Entry(index, term, EntryKind.DATA, b"x" * 50),)))
            if term != 2:
                storage.tidy()
            disk.crash()
            storage.close()
        files = [(disk.path / name).read_bytes() for name in os.listdir(disk.path)]
        storage = SqliteStorage(disk.path, "n1")
        loaded, identity = storage.load(), storage.identity
        storage.close()
        assert len(loaded.entries) == 27
        assert loaded.hard_state == HardState(3, "n1")
    return files, identity, [disk.delay_seconds() for _ in range(10)]


def test_a_seed_gives_the_run_to_the_byte() -> None:
    first, second, other = run_store(7), run_store(7), run_store(8)
    assert first == second
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert first[2] != other[2]


def test_disks_are_mounted_side_by_side() -> None:
    one, two = SimDisk(random.Random(1), name="n1"), SimDisk(random.Random(2), name="n2")
    with one.mounted():
        first = SqliteStorage(one.path, "n1")
        with two.mounted():
            second = SqliteStorage(two.path, "n2")
            one.crash()
            second.write(WriteBatch((), HardState(2, "n2")))
            second.close()
        first.close()
        first = SqliteStorage(one.path, "n1")
        assert first.identity.node_id == "n1"
        first.close()
    assert os.listdir.__module__ == "posix"


def test_a_slow_disk_is_slow_and_any_disk_stalls_now_and_then() -> None:
    slow = SimDisk(random.Random(1), mean_seconds=SLOW_SECONDS)
    delays = sorted(slow.delay_seconds() for _ in range(10_000))
    assert 0.02 < sum(delays) / len(delays) < 0.06
    assert delays[-1] > 20 * delays[5000]


def test_a_block_is_a_multiple_of_what_a_disk_writes_whole() -> None:
    assert BLOCK_BYTES % 512 == 0
