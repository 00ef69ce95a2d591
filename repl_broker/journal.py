"""The newest entries of the log, on disk sooner than SQLite could have them there.

A commit of SQLite costs several writes and more of the processor than all else
that a publish needs. So what is small goes first into a file that is as long as
it will ever be: one write, behind the one before, synced. The store keeps what
is in it in memory, and moves it into SQLite many entries at a time, with a new
*salt*: then the file is begun anew, and what it holds of the old salt counts no
more (storage.py).

A *record* is what became durable together; it begins at a multiple of a block,
and is filled up with zeros to the next, so that no write touches a block that
has something of the one before:

    salt · checksum · index of the first entry · number of entries · bytes behind
    for each entry: term · kind · bytes, and its data

The checksum is over all that follows it, and the salt is random, so neither a
half written record, nor an old one, nor a message that looks like one is taken
for a record. Each is durable before the next is begun: one that does not fit its
checksum is the end, torn by a crash, unless another of this salt comes behind it.

What one must know to read it is its *shape*. The store has it, beside the salt, so
that a version that makes others reads the records as they were written.

What cannot be told: damage to the last record looks like a torn one.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from repl_broker.files import make_file
from repl_broker.raft.log import Entry, EntryKind

__all__ = ["BLOCK_BYTES", "FIRST_SHAPE", "JOURNAL_BYTES", "SALT_BYTES", "Journal", "Shape", "shape"]

JOURNAL_BYTES: Final = 1 << 20  # of the file; when it is full, what it holds is moved
RECORD_BYTES_MAX: Final = 64 << 10  # what is larger is better off in SQLite at once
BLOCK_BYTES: Final = 4096  # what disks and file systems write as a whole, or several of it
SALT_BYTES: Final = 8
RECORD_FORM: Final = 1  # as above; another number where any of it changes
CHECKSUM: Final = "crc32"

_HEAD: Final = Struct(">8sI")  # salt, checksum
_BODY: Final = Struct(">QHI")  # index of the first entry, entries, bytes behind
_ENTRY: Final = Struct(">QBI")  # term, kind, bytes
_FRAME_BYTES: Final = _HEAD.size + _BODY.size


class Shape(NamedTuple):
    """What one must know of a journal to read it, beside its salt."""

    record_form: int
    file_bytes: int
    block_bytes: int
    checksum: str

    @property
    def is_known(self) -> bool:
        sizes = 0 < self.block_bytes <= self.file_bytes and not self.file_bytes % self.block_bytes
        return sizes and (self.record_form, self.checksum) == (RECORD_FORM, CHECKSUM)

    def __str__(self) -> str:
        return (
            f"records of form {self.record_form} with {self.checksum}, in blocks of "
            f"{self.block_bytes} bytes, {self.file_bytes} in all"
        )


FIRST_SHAPE: Final = Shape(1, 1 << 20, 4096, "crc32")  # of journals whose store does not say it


def shape() -> Shape:
    """Of the journals that this version makes."""
    return Shape(RECORD_FORM, JOURNAL_BYTES, BLOCK_BYTES, CHECKSUM)


class Journal:
    """The file, and where its next record goes. Methods block; errors are OSError."""

    def __init__(self, path: Path, salt: bytes) -> None:
        """Open a file that ``make`` made; no record in it has this ``salt``."""
        self._salt = salt
        self._at = 0
        self._bytes = shape().file_bytes
        self._page = memoryview(mmap.mmap(-1, RECORD_BYTES_MAX))  # aligned, as O_DIRECT wants it
        self._file = _open(path, self._page[:BLOCK_BYTES])

    @staticmethod
    def make(path: Path) -> None:
        """Write a file without records, and sync it; its name in the folder is not synced."""
        make_file(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            # Zeros, and not a hole: a write into it then changes nothing but its data.
            file.write(bytes(JOURNAL_BYTES))
            file.flush()
            os.fsync(descriptor)

    @staticmethod
    def read(path: Path, salt: bytes, shape: Shape) -> list[Entry]:
        """The entries of all records of this ``salt``, in a file of a ``shape`` that is known.
        Raises ValueError for what is damaged."""
        assert shape.is_known
        size, block = shape.file_bytes, shape.block_bytes
        try:
            data = path.read_bytes()[:size]
        except FileNotFoundError:
            raise ValueError("it is not there") from None
        if len(data) < size:
            raise ValueError(f"{len(data)} bytes of {size}")
        entries: list[Entry] = []
        at = 0
        while found := _record_at(data, at, salt):
            if entries and found[0].index != entries[-1].index + 1:
                raise ValueError(f"entry {found[0].index} after {entries[-1].index}")
            entries += found
            at = _block_after(at + _size(found), block)
        if any(_record_at(data, later, salt) for later in range(at, len(data), block)):
            raise ValueError(f"a record before the last, at byte {at}")
        return entries

    def takes(self, entries: Sequence[Entry]) -> bool:
        """Whether there is room for them, and they are small enough."""
        size = _size(entries)
        return size <= RECORD_BYTES_MAX and self._at + size <= self._bytes

    def append(self, entries: Sequence[Entry]) -> None:
        """Put a record of them, one after the other, behind the rest; then it is on disk."""
        first = entries[0].index
        assert entries[-1].index == first + len(entries) - 1, "the log has no holes"
        behind = b"".join(_ENTRY.pack(e.term, e.kind, len(e.data)) + e.data for e in entries)
        body = _BODY.pack(first, len(entries), len(behind)) + behind
        record = _HEAD.pack(self._salt, _checksum(body, self._salt)) + body
        size = _block_after(len(record))
        self._page[:size] = record.ljust(size, b"\0")
        written = os.pwrite(self._file, self._page[:size], self._at)
        if written < size:
            raise OSError(f"only {written} of {size} bytes were written")
        self._at += size

    def begin_anew(self, salt: bytes) -> None:
        """What it holds counts no more."""
        self._salt = salt
        self._at = 0

    def close(self) -> None:
        os.close(self._file)


def _open(path: Path, block: memoryview) -> int:
    """For writes that are durable when they return, and go past the page cache if the file
    system can do that: it saves a copy, and the search for what is to be written back."""
    flags = os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC
    file = -1
    try:
        file = os.open(path, flags | os.O_DIRECT)
        with path.open("rb") as old:
            old.readinto(block)
        os.pwrite(file, block, 0)  # what is there already: some refuse only now
    except OSError as error:
        if file >= 0:
            os.close(file)
        if error.errno != errno.EINVAL:
            raise
        file = os.open(path, flags)
    return file


def _record_at(data: bytes, at: int, salt: bytes) -> list[Entry]:
    """The entries of the record that begins there, if a whole one of this salt does."""
    if data[at : at + SALT_BYTES] != salt:
        return []
    _, checksum = _HEAD.unpack_from(data, at)
    first, count, size = _BODY.unpack_from(data, at + _HEAD.size)
    body = data[at + _HEAD.size : at + _FRAME_BYTES + size]
    if _checksum(body, salt) != checksum:
        return []
    return list(_entries(data, at + _FRAME_BYTES, first, count))


def _entries(data: bytes, at: int, first: int, count: int) -> Iterator[Entry]:
    for index in range(first, first + count):
        term, kind, size = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        yield Entry(index, term, EntryKind(kind), data[at : at + size])
        at += size


def _checksum(body: bytes, salt: bytes) -> int:
    return crc32(body, crc32(salt))


def _size(entries: Sequence[Entry]) -> int:
    return _FRAME_BYTES + sum(_ENTRY.size + len(e.data) for e in entries)


def _block_after(at: int, block_bytes: int = BLOCK_BYTES) -> int:
    return -(-at // block_bytes) * block_bytes
