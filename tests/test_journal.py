"""The journal: what of it counts after a crash, and what tells of damage."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_broker import journal as module
from repl_broker.journal import (
    BLOCK_BYTES,
    JOURNAL_BYTES,
    RECORD_BYTES_MAX,
    Journal,
    shape,
)
from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
from repl_broker.storage import SqliteStorage
from tests.raft.power_loss import SECTOR_BYTES, image, put

SALT = b"salt 001"
OTHER = b"salt 002"


def entry(index: int, size: int = 10, term: int = 1) -> Entry:
    return Entry(index, term, EntryKind.DATA, (b"%d " % index).ljust(size, b"."))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "broker.journal"
    Journal.make(path)
    return path


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, SALT)
    yield journal
    journal.close()


def indexes(path: Path, salt: bytes = SALT) -> list[int]:
    return [entry.index for entry in Journal.read(path, salt, shape())]


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


# --- a file of records ---


def test_a_new_journal_is_as_long_as_it_will_ever_be_and_private(path: Path) -> None:
    assert path.read_bytes() == bytes(JOURNAL_BYTES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert indexes(path) == []


def test_a_journal_is_made_over_whatever_has_its_name(path: Path) -> None:
    path.write_bytes(b"x" * (JOURNAL_BYTES + 1))
    Journal.make(path)
    assert path.read_bytes() == bytes(JOURNAL_BYTES)


def test_what_was_appended_is_read_in_its_order(journal: Journal, path: Path) -> None:
    """Any kind, any bytes, terms as great as a peer may name."""
    first = [Entry(7, 2**62 + 1, EntryKind.MEMBERSHIP, bytes(range(256)))]
    second = [Entry(8, 2**62 + 1, EntryKind.NO_OP, b""), entry(9, 10_000, 2**62 + 1)]
    journal.append(first)
    journal.append(second)
    assert Journal.read(path, SALT, shape()) == first + second
    assert path.stat().st_size == JOURNAL_BYTES


def test_a_write_is_synced_when_it_returns(journal: Journal) -> None:
    """There is no fsync behind it."""
    flags = int(
        next(
            line.split()[1]
            for line in Path(f"/proc/self/fdinfo/{journal._file}").read_text().splitlines()
            if line.startswith("flags")
        ),
        8,
    )
    assert flags & os.O_DSYNC


@pytest.mark.parametrize("refused", ["opening", "writing"])
def test_a_file_system_without_direct_writes_gets_others(path: Path, refused: str) -> None:
    Journal.make(path)
    before = path.read_bytes()
    open_file, write = os.open, os.pwrite

    def is_direct(file: int) -> bool:
        return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)

    def open_or_refuse(path: Path, flags: int, *mode: int) -> int:
        if refused == "opening" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "it cannot do that")
        return open_file(path, flags, *mode)

    def write_or_refuse(file: int, data: bytes, at: int) -> int:
        if refused == "writing" and is_direct(file):
            raise OSError(errno.EINVAL, "it cannot do that")
        return write(file, data, at)

    with patch.object(os, "open", open_or_refuse), patch.object(os, "pwrite", write_or_refuse):
        journal = Journal(path, SALT)
        assert path.read_bytes() == before
        journal.append([entry(1)])
    assert not is_direct(journal._file)
    assert indexes(path) == [1]
    journal.close()


def test_no_write_touches_a_block_of_the_one_before(journal: Journal, path: Path) -> None:
    """A disk that fails in the middle of a block may lose the whole block."""
    written: list[tuple[int, int]] = []
    real = os.pwrite

    def watch(file: int, data: bytes, at: int) -> int:
        written.append((at, len(data)))
        return real(file, data, at)

    with patch.object(os, "pwrite", watch):
        for index, size in enumerate((1, 5000, 100), 1):
            journal.append([entry(index, size)])
    assert written == [
        (0, BLOCK_BYTES),
        (BLOCK_BYTES, 2 * BLOCK_BYTES),
        (3 * BLOCK_BYTES, BLOCK_BYTES),
    ]


def test_what_is_of_another_salt_does_not_count(journal: Journal, path: Path) -> None:
    for index in range(1, 6):
        journal.append([entry(index)])
    journal.begin_anew(OTHER)
    assert indexes(path, OTHER) == []
    journal.append([entry(6)])
    assert indexes(path, OTHER) == [6]


def test_what_is_large_or_has_no_room_is_not_taken(journal: Journal, path: Path) -> None:
    assert not journal.takes([entry(1, RECORD_BYTES_MAX)])
    assert not journal.takes([entry(i, 1000) for i in range(1, 70)])
    index = 1
    while journal.takes([entry(index, 60_000)]):
        journal.append([entry(index, 60_000)])
        index += 1
    assert index == JOURNAL_BYTES // (15 * BLOCK_BYTES) + 1
    while journal.takes([entry(index)]):
        journal.append([entry(index)])
        index += 1
    assert indexes(path) == [*range(1, index)]
    assert path.stat().st_size == JOURNAL_BYTES
    journal.begin_anew(OTHER)
    assert journal.takes([entry(index, 60_000)])


def test_a_record_may_be_as_large_as_is_said(journal: Journal, path: Path) -> None:
    size = RECORD_BYTES_MAX
    while not journal.takes([entry(1, size)]):
        size -= 1
    assert size > RECORD_BYTES_MAX - 100
    journal.append([entry(1, size)])
    assert Journal.read(path, SALT, shape()) == [entry(1, size)]


def test_a_short_write_is_an_error(journal: Journal, path: Path) -> None:
    real = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        return real(file, data[:512], at)

    with patch.object(os, "pwrite", full), pytest.raises(OSError, match="512 of 4096 bytes"):
        journal.append([entry(1, 1000)])
    assert indexes(path) == []


# --- a torn record, and damage ---


def test_a_torn_record_is_the_end(journal: Journal, path: Path) -> None:
    """Whichever of its sectors are there."""
    for index in (1, 2):
        journal.append([entry(index)])
    torn = path.read_bytes()
    journal.append([entry(3, 3000)])
    whole = path.read_bytes()
    start = 2 * BLOCK_BYTES
    for lost in range(start, start + 3000, SECTOR_BYTES):
        path.write_bytes(whole)
        change(path, lost, torn[lost : lost + SECTOR_BYTES])
        assert indexes(path) == [1, 2]


def test_damage_before_the_last_record_is_no_torn_one(journal: Journal, path: Path) -> None:
    """What is behind it was acknowledged."""
    for index in range(1, 5):
        journal.append([entry(index, 5000)])
    whole = path.read_bytes()
    for record in range(3):
        for place in (0, 9, 15, 30, 4999):
            path.write_bytes(whole)
            at = record * 2 * BLOCK_BYTES + place
            change(path, at, bytes([whole[at] ^ 1]))
            with pytest.raises(ValueError, match="a record before the last, at byte"):
                Journal.read(path, SALT, shape())


def test_a_record_that_is_not_the_next_is_damage(journal: Journal, path: Path) -> None:
    journal.append([entry(1)])
    journal.append([entry(3)])
    with pytest.raises(ValueError, match="entry 3 after 1"):
        Journal.read(path, SALT, shape())


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, JOURNAL_BYTES - 1])
def test_a_journal_that_was_cut_short_is_damaged(journal: Journal, path: Path, size: int) -> None:
    """As by a copy to a disk that was full: what is missing may have been acknowledged."""
    journal.append([entry(1)])
    os.truncate(path, size)
    with pytest.raises(ValueError, match=f"{size} bytes of {JOURNAL_BYTES}"):
        Journal.read(path, SALT, shape())


def test_a_journal_that_is_not_there_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is not there"):
        Journal.read(tmp_path / "none", SALT, shape())


@given(st.binary(max_size=200), st.binary(min_size=8, max_size=8))
def test_garbage_is_no_record(garbage: bytes, salt: bytes) -> None:
    with TemporaryDirectory() as folder, patch.object(module, "JOURNAL_BYTES", 2 * BLOCK_BYTES):
        path = Path(folder, "journal")
        Journal.make(path)
        change(path, 0, salt + garbage)
        assert Journal.read(path, salt, shape()) == []


def test_a_message_that_looks_like_a_record_is_none(journal: Journal, path: Path) -> None:
    """Who publishes what an older journal held does not know the salt of this one."""
    journal.append([entry(1)])
    old = path.read_bytes()[:BLOCK_BYTES]
    journal.begin_anew(OTHER)
    looks = Entry(2, 1, EntryKind.DATA, bytes(BLOCK_BYTES - 39) + old + old)
    journal.append([looks])
    assert path.read_bytes()[BLOCK_BYTES:].startswith(old), "it is where one could begin"
    change(path, 0, b"x")  # torn
    assert Journal.read(path, OTHER, shape()) == []


# --- a store, and a power that fails ---


class PowerLossError(BaseException):
    """Nothing in the store catches it."""


class Life:
    """A store in one folder after the other, and what it has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.storage = SqliteStorage(folder / "0", "n1")
        self.acknowledged: list[Entry] = []
        self.under_way: list[Entry] = []
        self.term = 1

    def _next(self, sizes: list[int]) -> list[Entry]:
        first = len(self.acknowledged) + 1
        return [entry(first + i, size, self.term) for i, size in enumerate(sizes)]

    def append(self, sizes: list[int]) -> None:
        entries = self._next(sizes)
        self.storage.write(*(WriteBatch((each,)) for each in entries))
        self.acknowledged += entries

    def move(self) -> None:
        self.term += 1
        self.storage.write(WriteBatch(hard_state=HardState(self.term, "n1")))

    def truncate(self, count: int) -> None:
        kept = max(0, len(self.acknowledged) - count)
        self.storage.write(WriteBatch(truncate_from=kept + 1))
        del self.acknowledged[kept:]

    def stop(self) -> None:
        self.storage.close()
        self.storage = SqliteStorage(self.folder / str(self.number), "n1")

    def crash(self, sizes: list[int], seed: int) -> None:
        """Some sectors of the record that was being written are on the disk."""
        draw = random.Random(seed)
        real = os.pwrite

        def write_some(file: int, data: bytes, at: int) -> int:
            for start in range(0, len(data), SECTOR_BYTES):
                if draw.random() < (0.3, 0.7, 1.0)[seed % 3]:
                    real(file, data[start : start + SECTOR_BYTES], at + start)
            raise PowerLossError

        self.under_way = self._next(sizes)
        with patch.object(os, "pwrite", write_some):
            try:
                self.storage.write(*(WriteBatch((each,)) for each in self.under_way))
            except PowerLossError:
                pass
            else:
                self.acknowledged += self.under_way  # it was a transaction of SQLite's
        old = self.folder / str(self.number)
        self.number += 1
        new = put(image(old), self.folder / str(self.number))
        self.storage.close()
        self.storage = SqliteStorage(new, "n1")

    def check(self) -> None:
        found = self.storage.load().entries
        assert found in (self.acknowledged, self.acknowledged + self.under_way)
        self.acknowledged, self.under_way = found, []
        assert self.storage.read(range(1, len(found) + 1)) == {e.index: e.data for e in found}
        assert self.storage.history(0, len(found), 1 << 30) == found


SIZES = st.lists(st.integers(3, 6000), min_size=1, max_size=3)
ACTS = st.lists(
    st.tuples(st.just("append"), SIZES)
    | st.tuples(st.just("move"))
    | st.tuples(st.just("truncate"), st.integers(0, 3))
    | st.tuples(st.just("stop"))
    | st.tuples(st.just("crash"), SIZES, st.integers(0, 1000)),
    max_size=20,
)


@given(ACTS)
@settings(deadline=None)
def test_after_any_power_loss_there_is_what_was_acknowledged_and_nothing_else(
    acts: list[tuple[str, ...]],
) -> None:
    """RAFT.md scenarios 24, 25: and perhaps, as a whole, what was being written."""
    with TemporaryDirectory() as folder, patch.object(module, "JOURNAL_BYTES", 8 * BLOCK_BYTES):
        life = Life(Path(folder))
        try:
            for name, *arguments in acts:
                getattr(life, name)(*arguments)
                life.check()
        finally:
            life.storage.close()
