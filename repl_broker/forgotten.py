"""What a store needs no more, much at once: put aside in an instant, removed bit by bit.

    log ──rename──▶ forgotten_1 ──a few megabytes of rows a transaction──▶ empty ──▶ dropped

To delete gigabytes in one transaction would take minutes, write as much, and hold up
whatever waits for the disk. A table that is renamed is gone for everybody with the
commit, and what is found under such a name is to be removed, whoever left it there:
so a crash in between loses nothing but time.
"""

from __future__ import annotations

import sqlite3
from typing import Final

__all__ = ["FORGOTTEN", "Forgotten", "drop_forgotten", "has_table"]

FORGOTTEN: Final = "forgotten_"  # what the names of such tables begin with
ROWS_MAX: Final = 2000  # removed in one transaction, however small they are


class Forgotten:
    """The tables that are put aside. The methods are for within a transaction of ``writer``.

    ``bytes`` is how much removing them will give back, as far as that is known; ``is_empty``
    is whether there are none.
    """

    def __init__(self, writer: sqlite3.Connection, known_bytes: int) -> None:
        self.is_empty = not _names(writer)
        self.bytes = 0 if self.is_empty else known_bytes
        self._writer = writer

    @property
    def used_bytes(self) -> int:
        """What all else takes in the file."""
        return max(0, self._used() - self.bytes)

    def put_aside(self, table: str, size: int = 0) -> None:
        """There is no such table from now on, which took about ``size`` bytes."""
        if not has_table(self._writer, table):
            return
        taken = [int(name.removeprefix(FORGOTTEN)) for name in _names(self._writer)]
        name = f"{FORGOTTEN}{max(taken, default=0) + 1}"
        self._writer.execute(f"ALTER TABLE {table} RENAME TO {name}")
        self.bytes += max(0, size)
        self.is_empty = False

    def remove(self, bytes_max: int) -> bool:
        """Remove about this much, at least something if there is something. Whether there is more.

        Sizes come from the heads of the rows, so large ones are not read for them.
        """
        names = _names(self._writer)
        if not names:
            self.is_empty = True
            return False
        before = self._used()
        first = min(names, key=lambda name: int(name.removeprefix(FORGOTTEN)))
        rows = self._writer.execute(
            f"SELECT rowid, length(data) FROM {first} ORDER BY rowid LIMIT {ROWS_MAX}"  # noqa: S608  # nosec B608  # of numbers and constants
        ).fetchall()
        last, size, count = 0, 0, 0
        for rowid, length in rows:
            if count and size + length > bytes_max:
                break
            last, size, count = rowid, size + length, count + 1
        if count == len(rows) < ROWS_MAX:
            self._writer.execute(f"DROP TABLE {first}")
            names.remove(first)
        else:
            self._writer.execute(f"DELETE FROM {first} WHERE rowid <= ?", (last,))  # noqa: S608  # nosec B608
        self.bytes = max(0, self.bytes - before + self._used()) if names else 0
        self.is_empty = not names
        return bool(names)

    def _used(self) -> int:
        """Of the file, in bytes."""
        ask = self._writer.execute
        (count,) = ask("PRAGMA page_count").fetchone()
        (free,) = ask("PRAGMA freelist_count").fetchone()
        (size,) = ask("PRAGMA page_size").fetchone()
        return int((count - free) * size)


def drop_forgotten(connection: sqlite3.Connection) -> bool:
    """Within a transaction, of a copy that nobody waits for. Whether there was something."""
    names = _names(connection)
    for name in names:
        connection.execute(f"DROP TABLE {name}")
    return bool(names)


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)
    )
    return found.fetchone() is not None


def _names(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [
        name
        for (name,) in found
        if name.startswith(FORGOTTEN) and name.removeprefix(FORGOTTEN).isdecimal()
    ]
