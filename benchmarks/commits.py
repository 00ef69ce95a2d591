"""The other baseline: what SQLite commits, with nothing around it."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path

__all__ = ["rows_per_second"]

ROWS_MAX = 1_000_000


def rows_per_second(folder: Path, rows: int, row_bytes: int, seconds: float) -> float:
    """Commit ``rows`` at a time, each commit synced to the disk (WAL, synchronous=FULL)."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="commits-") as own:
        database = sqlite3.connect(Path(own) / "rows.db", isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("CREATE TABLE log (idx INTEGER PRIMARY KEY, data BLOB NOT NULL)")
            return _commit(database, [(b"x" * row_bytes,)] * rows, seconds)
        finally:
            database.close()


def _commit(database: sqlite3.Connection, page: list[tuple[bytes]], seconds: float) -> float:
    done = 0
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds and done < ROWS_MAX:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO log (data) VALUES (?)", page)
        database.execute("COMMIT")
        done += len(page)
    return done / elapsed
