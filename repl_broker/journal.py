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

What cannot be told: damage to the last record looks like a torn one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

from repl_broker.raft.log import Entry, EntryKind

__all__ = ["BLOCK_BYTES", "JOURNAL_BYTES", "SALT_BYTES", "Journal"]

JOURNAL_BYTES: Final = 1 << 20  # of the file; when it is full, what it holds is moved
RECORD_BYTES_MAX: Final = 64 << 10  # what is larger is better off in SQLite at once
BLOCK_BYTES: Final = 4096  # what disks and file systems write as a whole, or several of it
SALT_BYTES: Final = 8

_HEAD: Final = Struct(">8sI")  # salt, checksum
_BODY: Final = Struct(">QHI")  # index of the first entry, entries, bytes behind
_ENTRY: Final = Struct(">QBI")  # term, kind, bytes
_FRAME_BYTES: Final = _HEAD.size + _BODY.size


class Journal:
    """The file, and where its next record goes. Methods block; errors are OSError."""

    def __init__(self, path: Path, salt: bytes) -> None:
        """Open a file that ``make`` made; no record in it has this ``salt``."""
        self._salt = salt
        self._at = 0
        self._file = os.open(path, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC)

    @staticmethod
    def make(path: Path) -> None:
        """Write a file without records, and sync it; its name in the folder is not synced."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            # Zeros, and not a hole: a write into it then changes nothing but its data.
            file.write(bytes(JOURNAL_BYTES))
            file.flush()
            os.fsync(descriptor)

    @staticmethod
    def read(path: Path, salt: bytes) -> list[Entry]:
        """The entries of all records of this ``salt``. Raises ValueError for what is damaged."""
        try:
            data = path.read_bytes()[:JOURNAL_BYTES]
        except FileNotFoundError:
            raise ValueError("it is not there") from None
        if len(data) < JOURNAL_BYTES:
            raise ValueError(f"{len(data)} bytes of {JOURNAL_BYTES}")
        entries: list[Entry] = []
        at = 0
        while found := _record_at(data, at, salt):
            if entries and found[0].index != entries[-1].index + 1:
                raise ValueError(f"entry {found[0].index} after {entries[-1].index}")
            entries += found
            at = _block_after(at + _size(found))
        if any(_record_at(data, later, salt) for later in range(at, len(data), BLOCK_BYTES)):
            raise ValueError(f"a record before the last, at byte {at}")
        return entries

    def takes(self, entries: Sequence[Entry]) -> bool:
        """Whether there is room for them, and they are small enough."""
        size = _size(entries)
        return size <= RECORD_BYTES_MAX and self._at + size <= JOURNAL_BYTES

    def append(self, entries: Sequence[Entry]) -> None:
        """Put a record of them, one after the other, behind the rest; then it is on disk."""
        first = entries[0].index
        assert entries[-1].index == first + len(entries) - 1, "the log has no holes"
        behind = b"".join(_ENTRY.pack(e.term, e.kind, len(e.data)) + e.data for e in entries)
        body = _BODY.pack(first, len(entries), len(behind)) + behind
        record = _HEAD.pack(self._salt, _checksum(body, self._salt)) + body
        size = _block_after(len(record))
        written = os.pwrite(self._file, record.ljust(size, b"\0"), self._at)
        if written < size:
            raise OSError(f"only {written} of {size} bytes were written")
        self._at += size

    def begin_anew(self, salt: bytes) -> None:
        """What it holds counts no more."""
        self._salt = salt
        self._at = 0

    def close(self) -> None:
        os.close(self._file)


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


def _block_after(at: int) -> int:
    return -(-at // BLOCK_BYTES) * BLOCK_BYTES
