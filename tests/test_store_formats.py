"""What reading a store rests on is written down in it: another value, of another version, is read
rightly, or refused in one line that says what to do."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from unittest.mock import patch
from zlib import crc32

import pytest

from repl_broker import journal
from repl_broker.errors import ConfigError, StorageError
from repl_broker.journal import FIRST_SHAPE, Shape, shape
from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
from repl_broker.storage import FORMAT, JOURNAL_NAME, SqliteStorage, StoreCopy, copy_store
from tests.world.disk import SimDisk

ENTRIES = [Entry(n, 1, EntryKind.DATA, bytes([n]) * 700 * n) for n in range(1, 9)]


@pytest.fixture
def disk() -> Iterator[SimDisk]:
    disk = SimDisk(random.Random(1))
    with disk.mounted():
        yield disk


@contextlib.contextmanager
def other_sizes(file_bytes: int, block_bytes: int) -> Iterator[None]:
    """A version that makes journals of these."""
    after = lambda at, block=block_bytes: -(-at // block) * block  # noqa: E731
    with (
        patch.object(journal, "JOURNAL_BYTES", file_bytes),
        patch.object(journal, "BLOCK_BYTES", block_bytes),
        patch.object(journal, "_block_after", after),
    ):
        yield


def leave_in_journal(disk: SimDisk) -> None:
    """A node that was killed with all of its entries in the journal, each in a record."""
    store = SqliteStorage(disk.path, "n1")
    store.write(WriteBatch((), HardState(1, "n1")))
    for entry in ENTRIES:
        assert store.is_quick(WriteBatch((entry,)))
        store.write(WriteBatch((entry,)))
    disk.kill()
    store.close()


def entries_of(disk: SimDisk) -> list[Entry]:
    store = SqliteStorage(disk.path, "n1")
    try:
        store.write(WriteBatch((Entry(9, 1, EntryKind.DATA, b"behind them"),)))
        *found, last = store.load().entries
    finally:
        store.close()
    assert last.data == b"behind them"
    return found


def put(disk: SimDisk, key: str, value: object) -> None:
    """None: without the row."""
    with contextlib.closing(sqlite3.connect(disk.path / "broker.db")) as connection:
        connection.execute("DELETE FROM meta WHERE key = ?", (key,))
        if value is not None:
            connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
        connection.commit()


def get(disk: SimDisk, key: str) -> str:
    with contextlib.closing(sqlite3.connect(disk.path / "broker.db")) as connection:
        (value,) = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(value)


def with_checksum(words: str) -> str:
    return f"{words} {crc32(words.encode()):08x}"


def test_a_journal_of_before_its_shape_was_written_down_is_read(disk: SimDisk) -> None:
    leave_in_journal(disk)
    put(disk, "journal_shape", None)
    assert entries_of(disk) == ENTRIES


@pytest.mark.parametrize(
    ("file_bytes", "block_bytes"),
    [(64 << 10, 4096), (2 << 20, 4096), (128 << 10, 8192), (1 << 20, 512)],
)
def test_a_journal_of_another_size_is_read_and_made_anew(
    disk: SimDisk, file_bytes: int, block_bytes: int
) -> None:
    with other_sizes(file_bytes, block_bytes):
        leave_in_journal(disk)
        assert (disk.path / JOURNAL_NAME).stat().st_size == file_bytes
    store = SqliteStorage(disk.path, "n1")
    assert (disk.path / JOURNAL_NAME).stat().st_size == FIRST_SHAPE.file_bytes
    disk.crash()
    store.close()
    assert entries_of(disk) == ENTRIES


def test_what_has_another_size_is_copied_whole(disk: SimDisk) -> None:
    with other_sizes(64 << 10, 8192):
        leave_in_journal(disk)
    (disk.path / "copy").mkdir()
    copy_store(disk.path, disk.path / "copy" / "broker.db")
    copy = StoreCopy(disk.path / "copy", "the copy")
    assert copy.load().entries == ENTRIES
    copy.close()


@pytest.mark.parametrize(
    "change",
    [
        {"record_form": 2},
        {"checksum": "xxh3"},
        {"block_bytes": 0},
        {"file_bytes": 4097},
        {"file_bytes": 0},
    ],
)
def test_a_journal_that_cannot_be_read_here_is_refused_and_not_touched(
    disk: SimDisk, change: dict[str, object]
) -> None:
    leave_in_journal(disk)
    row = get(disk, "journal_shape")
    salt = row.split(" ")[0]
    other = Shape(**{**FIRST_SHAPE._asdict(), **change})
    put(disk, "journal_shape", with_checksum(" ".join(map(str, (salt, *other)))))
    before = (disk.path / JOURNAL_NAME).read_bytes()
    refusal = "a journal of another version.*start the node with the version that wrote it"
    with pytest.raises(ConfigError, match=refusal) as refused:
        SqliteStorage(disk.path, "n1")
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=refusal):
        copy_store(disk.path, disk.path / "copy")
    assert (disk.path / JOURNAL_NAME).read_bytes() == before
    put(disk, "journal_shape", row)
    assert entries_of(disk) == ENTRIES


def test_a_salt_of_another_length_is_refused(disk: SimDisk) -> None:
    leave_in_journal(disk)
    put(disk, "journal", with_checksum("ab" * 16))
    with pytest.raises(ConfigError, match="a salt of 16 bytes"):
        SqliteStorage(disk.path, "n1")


def test_a_shape_that_is_not_as_it_was_written_is_damage(disk: SimDisk) -> None:
    leave_in_journal(disk)
    put(disk, "journal_shape", get(disk, "journal_shape").replace("4096", "4097"))
    with pytest.raises(StorageError, match=r"damaged: its journal \(its shape\)"):
        SqliteStorage(disk.path, "n1")


def test_a_shape_that_an_older_version_left_standing_is_not_believed(disk: SimDisk) -> None:
    """One that does not know the row gives the journal another salt, and its own shape."""
    leave_in_journal(disk)
    put(disk, "journal_shape", with_checksum("00" * 8 + " 1 65536 512 crc32"))
    assert entries_of(disk) == ENTRIES


def test_a_store_whose_journal_is_closed_is_opened_whatever_shape_it_had(disk: SimDisk) -> None:
    with other_sizes(64 << 10, 8192):
        SqliteStorage(disk.path, "n1").close()
    put(disk, "journal_shape", with_checksum(" 2 1 1 md5"))
    SqliteStorage(disk.path, "n1").close()
    assert get(disk, "journal_shape") == with_checksum(" 1 1048576 4096 crc32")


def test_versions_that_read_no_shape_refuse_a_store_with_another_one() -> None:
    """They read up to format 2, and take every journal for one of the first shape."""
    assert shape() == FIRST_SHAPE or FORMAT > 2


def test_a_format_that_never_was_is_damage(disk: SimDisk) -> None:
    SqliteStorage(disk.path, "n1").close()
    put(disk, "format", 0)
    with pytest.raises(StorageError, match="its format"):
        SqliteStorage(disk.path, "n1")
