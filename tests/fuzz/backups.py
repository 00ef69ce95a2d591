"""A sound backup, and one whose maker meant no good."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from repl_broker.backup import SEAL, backup
from repl_broker.raft.log import Entry, EntryKind, Snapshot
from repl_broker.storage import _checksum, _snapshot_checksum
from tests.stores import START_MS, make_store

__all__ = ["forged", "make"]


def make() -> bytes:
    """The bytes of a backup with messages, keys and members."""
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name, "data")).close()
        file = Path(name, "backup")
        backup(Path(name, "data"), file, force=False, now_ms=START_MS)
        return file.read_bytes()


def forged(file: Path, place: str, data: bytes) -> None:
    """Put ``data`` in the place of the last entry, or of the snapshot, of a backup, with the
    checksum that it wants, and take the seal off."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DELETE FROM meta WHERE key = ?", (SEAL,))
        if place == "log":
            (index, term) = connection.execute("SELECT max(idx), term FROM log").fetchone()
            checksum = _checksum(Entry(index, term, EntryKind.DATA, data))
            connection.execute(
                "UPDATE log SET kind = ?, data = ?, checksum = ? WHERE idx = ?",
                (int(EntryKind.DATA), data, checksum, index),
            )
        else:
            row = connection.execute("SELECT idx, term, membership FROM snapshot").fetchone()
            checksum = _snapshot_checksum(Snapshot(row[0], row[1], data, row[2]))
            connection.execute("UPDATE snapshot SET data = ?, checksum = ?", (data, checksum))
